"""Random lives of a machine on each loader: updates, verdicts, reboots, and power cuts at any instant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.boot_contract import FILES, TRIES, BootWorld, boots_until_settled, place
from tests.gptprio_world import GptWorld
from tests.grub_world import GrubWorld
from tests.test_boot_contract import SimulatedWorld
from updater.boot import entries
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B
cuts = st.none() | st.floats(0, 0.999)


class Machine(RuleBasedStateMachine):
    """A node whose engine keeps the order of the design, and whose power fails now and then."""

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
        self.do(cut, lambda: self.world.backend().arm(other, str(self.version), tries=TRIES))

    @rule()
    def reboot(self) -> None:
        self.power_on()

    @rule(cut=cuts, tries=st.sampled_from([None, TRIES]))
    @precondition(lambda self: self.on_trial)
    def pass_the_health_check(self, cut: float | None, tries: int | None) -> None:
        self.proven.add(self.running)
        self.armed = None
        self.do(cut, lambda: self.world.backend().commit(self.running, tries=tries))

    @rule(cut=cuts)
    @precondition(lambda self: self.on_trial)
    def fail_the_health_check(self, cut: float | None) -> None:
        if self.do(cut, lambda: self.world.backend().condemn(self.running)):
            self.power_on()
            assert self.running in self.proven

    @rule(cut=cuts)
    @precondition(lambda self: not self.on_trial)
    def boot_healthily(self, cut: float | None) -> None:
        good = [entry for entry in self.world.backend().read().entries_of(self.running.other) if not entry.is_bad]
        if good and self.running.other in self.proven:
            self.do(cut, lambda: self.world.backend().commit(self.running, tries=TRIES))
        elif self.armed is None:
            self.do(cut, lambda: self.world.backend().settle(self.running))

    @rule(cut=cuts)
    @precondition(lambda self: self.proven == {A, B})
    def roll_back_by_hand(self, cut: float | None) -> None:
        other = self.running.other
        if not self.world.backend().read().entries_of(other):
            return
        if self.do(cut, lambda: self.world.backend().prefer(other, "1")):
            self.power_on()
            assert self.running is other

    @rule()
    @precondition(lambda self: not self.on_trial)
    def nothing_live_is_withdrawn_by_mistake(self) -> None:
        if self.world.backend().read().entries_of(self.running.other) == ():
            with pytest.raises(EnvironmentFailure):
                self.world.backend().withdraw(self.running)

    @invariant()
    def a_proven_release_boots_or_the_armed_trial(self) -> None:
        assert self.world.boots() in self.proven | {self.armed}

    @invariant()
    def nothing_unproven_boots_uncounted(self) -> None:
        for entry in self.world.backend().read().order:
            assert entry.slot in self.proven or entry.tries_left is not None

    @invariant()
    def left_alone_the_machine_ends_on_a_proven_release(self) -> None:
        assert boots_until_settled(self.world) in self.proven


class OnSystemdBoot(Machine):
    """A machine on systemd-boot."""

    def make_world(self) -> BootWorld:
        return SimulatedWorld({**entries.factory_files("1"), "EFI/acl/a.efi": b"factory"})


class OnGrub(Machine):
    """A machine without UEFI, on GRUB."""

    def make_world(self) -> BootWorld:
        return GrubWorld()


class OnGptPriority(Machine):
    """A machine whose loader reads GPT priorities."""

    def make_world(self) -> BootWorld:
        return GptWorld.factory()


TestRandomLives = OnSystemdBoot.TestCase
TestRandomLives.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestRandomLivesOnGrub = OnGrub.TestCase
TestRandomLivesOnGrub.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestRandomLivesOnGptPriority = OnGptPriority.TestCase
TestRandomLivesOnGptPriority.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
