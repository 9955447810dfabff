"""What a power cut at a bad moment once left behind, each by itself; tests/test_power_cuts.py looks for more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.life import booted, committed, staged
from tests.machine import SimulatedMachine
from tests.releases import Publisher, Release, make_release
from tests.simulated import Power, PowerCut
from updater.errors import SlotDamaged
from updater.layouts import layout_folders
from updater.situation import Situation, decide
from updater.slots import Slot
from updater.steps.cancel import cancel
from updater.steps.finalize import finalize
from updater.steps.recover import recover
from updater.steps.trial import TrialEngine

LAYOUTS = sorted(path.stem for path in layout_folders()[-1].glob("*.yaml"))


def make_machine(folder: Path, layout: str) -> tuple[SimulatedMachine, tuple[Release, ...]]:
    releases = tuple(make_release(f"{number}.0.0", blocks=8, layouts=(layout,)) for number in (1, 2, 3))
    publisher = Publisher(folder)
    publisher.publish(*releases)
    publisher.promote("2.0.0")
    return SimulatedMachine(releases[0], mirror=publisher.mirror, roots=publisher.roots, layout=layout), releases


@pytest.fixture
def machine(quick_path: Path) -> SimulatedMachine:
    return make_machine(quick_path, "dps-root")[0]


def armed(machine: SimulatedMachine) -> None:
    finalize(machine.session(), repository=None, health=None)


def cut(machine: SimulatedMachine, before: str, act: Callable[[], object]) -> None:
    machine.restored(Power(before=before))
    with pytest.raises(PowerCut):
        act()
    machine.restored(Power())


def test_a_cancel_that_is_cut_among_the_boot_files_does_not_leave_a_staged_release(machine: SimulatedMachine) -> None:
    staged(machine, "2.0.0")
    cut(machine, "create EFI/acl/ledger-1.json", lambda: cancel(machine.session()))
    assert "EFI/acl/b.efi" not in machine.esp.files
    assert booted(machine) is Situation.STAGING
    committed(machine, "2.0.0")


def test_a_cancel_of_an_armed_release_that_is_cut_after_its_entry_is_no_failed_trial(machine: SimulatedMachine) -> None:
    staged(machine, "2.0.0")
    armed(machine)
    cut(machine, "remove EFI/acl/b.efi", lambda: cancel(machine.session()))
    assert booted(machine) is Situation.STAGED
    ledger = machine.session().store.ledger()
    assert ledger is not None
    assert ledger.quarantine == []
    armed(machine)
    assert booted(machine) is Situation.TRIAL


def test_a_staged_release_that_is_damaged_is_staged_again(machine: SimulatedMachine) -> None:
    staged(machine, "2.0.0")
    machine.esp.remove("EFI/acl/b.efi")
    with pytest.raises(SlotDamaged, match="stage the release again"):
        armed(machine)
    assert decide(machine.session().facts()) is Situation.STAGING
    committed(machine, "2.0.0")


def test_a_stage_that_is_cut_at_its_beginning_leaves_the_old_release_on_record(machine: SimulatedMachine) -> None:
    committed(machine, "2.0.0")
    cut(machine, "create loader/entries/b.conf", lambda: staged(machine, "3.0.0"))
    for _ in range(3):
        assert machine.reboot_now().slot is Slot.B
    # Nobody tended it, and its tries are used up.
    assert booted(machine) is Situation.IDLE
    assert machine.booted.version == "1.0.0"
    committed(machine, "3.0.0")


def test_a_slot_that_runs_is_not_the_one_that_is_being_staged(machine: SimulatedMachine) -> None:
    committed(machine, "2.0.0")
    cut(machine, "overwrite loader/entries/a.conf, sector 0", lambda: staged(machine, "3.0.0"))
    # Somebody picks the old release in the loader's menu before its entry is gone.
    machine.esp.write_as_firmware("loader/loader.conf", b"default a.conf\n")
    assert booted(machine) is Situation.UNPROVEN
    machine.esp.write_as_firmware("loader/loader.conf", b"timeout 0\n")
    TrialEngine(machine.session()).healthy_boot()
    assert decide(machine.session().facts()) is Situation.IDLE
    committed(machine, "3.0.0")
    assert machine.booted.slot is Slot.B


def test_what_rotted_loses_its_entry_though_power_failed_after_its_quarantine(machine: SimulatedMachine) -> None:
    committed(machine, "2.0.0")
    for _ in range(4):
        machine.reboot_now()
    assert machine.booted.slot is Slot.A
    cut(machine, "overwrite loader/entries/b+0-3.conf, sector 0", lambda: recover(machine.session(), None))
    assert booted(machine) is Situation.IDLE
    assert [entry.name for entry in machine.boot.read().order] == ["a.conf"]
    assert "EFI/acl/b.efi" not in machine.esp.files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_release_that_is_adopted_goes_on_updating(quick_path: Path, layout: str) -> None:
    machine, _ = make_machine(quick_path, layout)
    machine.state._files.clear()
    for name in ("EFI/acl/ledger-0.json", "EFI/acl/ledger-1.json"):
        machine.esp.remove(name)
    assert booted(machine) is Situation.UNPROVEN
    TrialEngine(machine.session()).healthy_boot()
    assert booted(machine) is Situation.IDLE
    committed(machine, "2.0.0")
