"""Random lives of a machine on each loader: updates, verdicts, reboots, and power cuts at any instant."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.boot_contract import TRIES, BootWorld
from tests.gptprio_world import GptWorld
from tests.grub_world import GrubWorld
from tests.random_lives import Life, cuts
from tests.test_boot_contract import SimulatedWorld
from updater.boot import entries
from updater.errors import EnvironmentFailure


class Machine(Life):
    """A machine whose loader counts tries, and goes on counting after a commit."""

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

    @rule()
    @precondition(lambda self: not self.on_trial)
    def nothing_live_is_withdrawn_by_mistake(self) -> None:
        if self.world.backend().read().entries_of(self.running.other) == ():
            with pytest.raises(EnvironmentFailure):
                self.world.backend().withdraw(self.running)

    @invariant()
    def nothing_unproven_boots_uncounted(self) -> None:
        for entry in self.world.backend().read().order:
            assert entry.slot in self.proven or entry.tries_left is not None


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
