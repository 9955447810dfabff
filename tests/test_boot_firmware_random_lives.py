"""Random lives of a machine that boots by its firmware alone: updates, verdicts, reboots, power cuts, odd firmware."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.boot_contract import BootWorld
from tests.firmware_world import FirmwareWorld
from tests.random_lives import Life, cuts
from updater.boot.firmware_model import Manner

manners = st.sampled_from([
    Manner.PLAIN,
    Manner.STARTS_INACTIVE,
    Manner.DROPS_ORPHANS,
    Manner.DROPS_ORPHANS | Manner.DROPS_MISSING,
    Manner.LOSES_NEXT,
    Manner.KEEPS_NEXT,
])  # fmt: skip


class Machine(Life):
    """A machine whose firmware takes a trial once, and whose commit is final."""

    tries = 1

    def make_world(self) -> BootWorld:
        return FirmwareWorld.factory(live=True)

    @initialize(manner=manners)
    def ship(self, manner: Manner) -> None:
        self.manner = manner
        self.world = FirmwareWorld.factory(manner=manner, live=True)

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

    @invariant()
    def nothing_unproven_boots_twice(self) -> None:
        world = self.world.copy()
        world.power_on()
        assert world.power_on() in self.proven

    @invariant()
    def what_the_back_end_expects_is_what_boots(self) -> None:
        entry = self.world.backend().read().next_entry
        assert entry is not None
        if not self.manner & (Manner.LOSES_NEXT | Manner.KEEPS_NEXT | Manner.STARTS_INACTIVE):
            assert entry.slot is self.world.boots()


TestRandomLives = Machine.TestCase
TestRandomLives.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
