"""The whole life of an update on every layout that ships, asked of its loader's model and cut at every effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.life import armed, booted, committed
from tests.machine import SimulatedMachine
from tests.releases import Publisher, Release, make_release
from tests.simulated import Power, PowerCut
from updater.errors import EnvironmentFailure, Refused
from updater.health_plugin import Cause, Evidence, Stage
from updater.layouts import layout_folders, load_layout
from updater.records import Policy
from updater.repository import open_repository
from updater.situation import Situation, decide
from updater.slots import Slot
from updater.steps.finalize import finalize
from updater.steps.recover import recover
from updater.steps.roll_back import revert
from updater.steps.trial import TrialEngine

BROKEN = Evidence(Stage.HEALTH, Cause.CHECK, "containerd does not answer", ("containerd",))
LAYOUTS = sorted(path.stem for path in layout_folders()[-1].glob("*.yaml"))


@dataclass(frozen=True)
class Site:
    """A repository for one layout, with releases 1.0.0 and 2.0.0; the channel offers the newer."""

    layout: str
    publisher: Publisher
    one: Release
    two: Release

    def machine(self, factory: Release | None = None) -> SimulatedMachine:
        """Return a new machine that ships `factory`, or release 1.0.0."""
        return SimulatedMachine(
            factory or self.one, mirror=self.publisher.mirror, roots=self.publisher.roots, layout=self.layout
        )

    @property
    def tries(self) -> int:
        """Return the tries of a trial."""
        return load_layout(self.layout).boot.tries


@pytest.fixture(scope="module", params=LAYOUTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    layout: str = request.param
    one, two = (make_release(version, blocks=20, layouts=(layout,)) for version in ("1.0.0", "2.0.0"))
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(one, two)
    made.promote("2.0.0")
    return Site(layout, made, one, two)


@pytest.fixture
def machine(site: Site) -> SimulatedMachine:
    return site.machine()


def version(machine: SimulatedMachine) -> str:
    return machine.session().facts().running.version


def test_a_good_release_is_tried_committed_and_stays(site: Site, machine: SimulatedMachine) -> None:
    armed(machine)
    assert machine.holds(Slot.A, site.one)
    assert machine.holds(Slot.B, site.two)
    assert booted(machine) is Situation.TRIAL
    assert machine.booted.slot is Slot.B
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    for _ in range(site.tries + 2):
        assert booted(machine) is Situation.IDLE
        assert (machine.booted.slot, version(machine)) == (Slot.B, "2.0.0")
        TrialEngine(machine.session()).healthy_boot()


def test_only_the_addons_of_its_own_slot_reach_a_slot(site: Site, machine: SimulatedMachine) -> None:
    committed(machine)
    placed = [path for path in machine.esp.files if path.endswith(".addon.efi")]
    assert {path.rpartition("/")[2] for path in placed} == set(site.two.addons)
    for path in placed:
        folder, _, name = path.rpartition("/")
        slot = name.removeprefix("slot-")[0]
        assert folder.endswith((f"/{slot}.efi.extra.d", f"-{slot}.extra.d")), path


def test_a_trial_that_nobody_commits_ends_on_the_old_release(site: Site, machine: SimulatedMachine) -> None:
    armed(machine)
    assert [machine.reboot_now().slot for _ in range(site.tries + 1)] == [Slot.B] * site.tries + [Slot.A]
    assert recover(machine.session(), None) is Situation.IDLE
    for _ in range(3):
        assert booted(machine) is Situation.IDLE
        assert machine.booted.slot is Slot.A


def test_a_verdict_ends_on_the_old_release_which_goes_on_updating(site: Site, machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A
    with pytest.raises(Refused, match="quarantined"):
        armed(machine)


def test_a_pinned_older_release_is_tried_committed_and_stays(site: Site) -> None:
    machine = site.machine(site.two)
    machine.session().store.write_policy(Policy(pin="1.0.0"))
    committed(machine)
    for _ in range(3):
        assert booted(machine) is Situation.IDLE
        assert version(machine) == "1.0.0"
        TrialEngine(machine.session()).healthy_boot()


def test_an_operator_goes_back_and_stays(machine: SimulatedMachine) -> None:
    committed(machine)
    booted(machine)
    revert(machine.session(), why="latency doubled")
    for _ in range(2):
        assert booted(machine) is Situation.IDLE
        assert (machine.booted.slot, version(machine)) == (Slot.A, "1.0.0")


def test_a_boot_partition_without_room_is_refused_with_the_sums_before_anything_is_touched(
    machine: SimulatedMachine,
) -> None:
    machine.esp.capacity_bytes = 6000
    files, table = machine.esp.files, machine.table
    with pytest.raises(EnvironmentFailure, match=r"does not fit: the (ESP|boot partition) needs .* bytes\)") as caught:
        armed(machine)
    assert caught.value.reason == "no-room"
    assert (machine.esp.files, machine.table) == (files, table)
    assert machine.partitions[Slot.B, "data"].writes == []


def effects(machine: SimulatedMachine, run: Callable[[SimulatedMachine], object]) -> int:
    """Return how many durable effects `run` has."""
    before = len(machine.power.effects)
    run(machine)
    return len(machine.power.effects) - before


def cut(machine: SimulatedMachine, run: Callable[[SimulatedMachine], object], after: int) -> None:
    """Let power fail after some effects of `run`, and come back."""
    machine.restored(Power(after))
    with pytest.raises(PowerCut):
        run(machine)
    machine.restored(Power())


def test_a_cut_at_any_effect_up_to_arming_leaves_a_machine_that_boots_and_updates(site: Site) -> None:
    total = effects(site.machine(), armed)
    assert total > 20
    for after in range(total):
        machine = site.machine()
        cut(machine, armed, after)
        assert machine.holds(Slot.A, site.one), f"cut {after} harmed the running slot"
        situation = booted(machine)
        if machine.booted.slot is Slot.B:
            assert machine.holds(Slot.B, site.two), f"cut {after} armed something unproven"
        elif situation is Situation.STAGED:
            with open_repository(machine, built=None) as repository:
                finalize(machine.session(), repository=repository, health=None)
            assert booted(machine) is Situation.TRIAL, f"cut {after}"
        else:
            if situation is not Situation.ARMED:
                armed(machine, "2.0.0")
            assert booted(machine) is Situation.TRIAL, f"cut {after}"
        TrialEngine(machine.session()).commit("healthy", "all checks hold")
        assert version(machine) == "2.0.0"


def test_a_cut_at_any_effect_of_a_commit_ends_committed_or_fallen_back(site: Site) -> None:
    def commit(machine: SimulatedMachine) -> None:
        TrialEngine(machine.session()).commit("healthy", "all checks hold")

    probe = site.machine()
    armed(probe)
    booted(probe)
    for after in range(effects(probe, commit)):
        machine = site.machine()
        armed(machine)
        booted(machine)
        cut(machine, commit, after)
        situation = booted(machine)
        if situation is Situation.TRIAL:
            commit(machine)
        assert decide(machine.session().facts()) is Situation.IDLE, f"cut {after}"
        # With one try, a cut before the commit is durable ends the trial: its release is put off, not blamed.
        expected = Slot.B if site.tries > 1 or machine.booted.slot is Slot.B else Slot.A
        assert machine.booted.slot is expected
        for _ in range(site.tries + 1):
            TrialEngine(machine.session()).healthy_boot()
            assert booted(machine) is Situation.IDLE
            assert machine.booted.slot is expected


def test_a_cut_at_any_effect_of_a_roll_back_ends_on_the_old_release(site: Site) -> None:
    def fail(machine: SimulatedMachine) -> None:
        TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
        machine.reboot_now()
        recover(machine.session(), None)

    probe = site.machine()
    armed(probe)
    booted(probe)
    for after in range(effects(probe, fail)):
        machine = site.machine()
        armed(machine)
        booted(machine)
        cut(machine, fail, after)
        for _ in range(site.tries + 1):
            if booted(machine) is not Situation.TRIAL:
                break
            TrialEngine(machine.session()).trial()
            if machine.session().store.journal().phase != "rolling-back":
                TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
        assert machine.booted.slot is Slot.A, f"cut {after}"
        assert decide(machine.session().facts()) is Situation.IDLE, f"cut {after}"
        assert machine.holds(Slot.A, site.one)
