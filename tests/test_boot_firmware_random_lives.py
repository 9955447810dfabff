"""Random lives of a machine that boots by its firmware alone: updates, verdicts, reboots, power cuts, odd firmware."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.boot_contract import FILES, boots_until_settled, place
from tests.firmware_world import FirmwareWorld
from updater.boot.firmware_model import Manner
from updater.slots import Slot

A, B = Slot.A, Slot.B
cuts = st.none() | st.floats(0, 0.999)
manners = st.sampled_from([
    Manner.PLAIN,
    Manner.STARTS_INACTIVE,
    Manner.DROPS_ORPHANS,
    Manner.DROPS_ORPHANS | Manner.DROPS_MISSING,
    Manner.LOSES_NEXT,
    Manner.KEEPS_NEXT,
])  # fmt: skip


class Machine(RuleBasedStateMachine):
    """A node whose engine keeps the order of the design, and whose power fails now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = FirmwareWorld.factory(live=True)
        self.proven = {A}
        self.running = A
        self.version = 1
        self.armed: Slot | None = None

    @initialize(manner=manners)
    def ship(self, manner: Manner) -> None:
        self.world = FirmwareWorld.factory(manner=manner, live=True)

    def do(self, cut: float | None, act: Callable[[], object]) -> bool:
        """Do one call; cut power at a share of its instants, and boot after that."""
        list(self.world.instants())
        act()
        instants = list(self.world.instants())
        if cut is None or not instants:
            return True
        world = instants[int(cut * len(instants))][1]
        assert isinstance(world, FirmwareWorld)
        self.world = world
        self.power_on()
        return False

    def power_on(self) -> None:
        started = self.world.power_on()
        assert started is not None
        self.running = started

    @property
    def on_trial(self) -> bool:
        return self.running not in self.proven

    @rule(cut=cuts)
    @precondition(lambda self: not self.on_trial)
    def stage(self, cut: float | None) -> None:
        other = self.running.other
        if not self.do(cut, lambda: self.world.backend().settle(self.running)):
            return
        if self.do(cut, lambda: self.world.backend().withdraw(other)):
            self.armed = None
            self.proven.discard(other)
            self.do(cut, lambda: place(self.world, other))

    @rule(cut=cuts)
    @precondition(lambda self: not self.on_trial)
    def finalize(self, cut: float | None) -> None:
        other = self.running.other
        if other in self.proven or self.world.backend().verify(other, FILES):
            return
        if not self.do(None, lambda: self.world.backend().settle(self.running)):
            return
        self.version += 1
        self.armed = other
        self.do(cut, lambda: self.world.backend().arm(other, str(self.version), tries=1))

    @rule()
    def reboot(self) -> None:
        self.power_on()

    @rule(cut=cuts)
    @precondition(lambda self: self.on_trial)
    def pass_the_health_check(self, cut: float | None) -> None:
        self.proven.add(self.running)
        self.armed = None
        self.do(cut, lambda: self.world.backend().commit(self.running, tries=1))

    @rule(cut=cuts)
    @precondition(lambda self: self.on_trial)
    def fail_the_health_check(self, cut: float | None) -> None:
        if self.do(cut, lambda: self.world.backend().condemn(self.running)):
            self.power_on()
        assert self.running in self.proven

    @rule(cut=cuts)
    @precondition(lambda self: not self.on_trial)
    def boot_healthily(self, cut: float | None) -> None:
        if self.armed is None:
            self.do(cut, lambda: self.world.backend().commit(self.running, tries=1))

    @rule(cut=cuts)
    @precondition(lambda self: self.proven == {A, B} and not self.on_trial)
    def roll_back_by_hand(self, cut: float | None) -> None:
        other = self.running.other
        if not self.world.backend().read().entries_of(other):
            return
        if self.do(cut, lambda: self.world.backend().prefer(other, "1")):
            self.power_on()
            assert self.running is other

    @invariant()
    def a_proven_release_boots_or_the_armed_trial(self) -> None:
        assert self.world.boots() in self.proven | {self.armed}

    @invariant()
    def nothing_unproven_boots_twice(self) -> None:
        world = self.world.copy()
        world.power_on()
        assert world.power_on() in self.proven

    @invariant()
    def what_the_back_end_expects_is_what_boots(self) -> None:
        entry = self.world.backend().read().next_entry
        assert entry is not None
        if not self.world.manner & (Manner.LOSES_NEXT | Manner.KEEPS_NEXT | Manner.STARTS_INACTIVE):
            assert entry.slot is self.world.boots()

    @invariant()
    def left_alone_the_machine_ends_on_a_proven_release(self) -> None:
        assert boots_until_settled(self.world) in self.proven


TestRandomLives = Machine.TestCase
TestRandomLives.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
