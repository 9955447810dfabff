"""A life of updates, verdicts, reboots and power cuts at any instant, whatever the loader: the rules in common."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.boot_contract import FILES, TRIES, BootWorld, boots_until_settled, place
from updater.slots import Slot

A, B = Slot.A, Slot.B
cuts = st.none() | st.floats(0, 0.999)


class Life(RuleBasedStateMachine):
    """A node whose engine keeps the order of the design, and whose power fails now and then.

    Subclasses give the world, and the rules in which loaders differ: what ends a trial well, and a healthy boot.
    """

    tries = TRIES

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make_world()
        self.proven = {A}
        self.running = A
        self.version = 1
        self.armed: Slot | None = None

    def make_world(self) -> BootWorld:
        raise NotImplementedError

    def do(self, cut: float | None, act: Callable[[], object]) -> bool:
        """Do one call; cut power at a share of its instants, and boot after that."""
        list(self.world.instants())
        act()
        instants = list(self.world.instants())
        if cut is None or not instants:
            return True
        self.world = instants[int(cut * len(instants))][1]
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
        # Until its last entry is gone the other slot still is what it was.
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
        self.do(cut, lambda: self.world.backend().arm(other, str(self.version), tries=self.tries))

    @rule()
    def reboot(self) -> None:
        self.power_on()

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
    def left_alone_the_machine_ends_on_a_proven_release(self) -> None:
        assert boots_until_settled(self.world) in self.proven
