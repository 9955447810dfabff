"""Whole updates on a machine whose image shipped its UKI in /EFI/Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.life import armed, booted
from tests.loaders import SystemdBootLoader
from tests.machine import SimulatedMachine
from tests.releases import Publisher, make_release
from tests.simulated import Power, PowerCut
from updater.boot import loader_model
from updater.boot.esp import look, shipped_ukis
from updater.efivars import NoEfiVariables
from updater.health_plugin import Cause, Evidence, Stage
from updater.layouts import layout_folders
from updater.situation import Situation
from updater.slots import Slot
from updater.steps.recover import recover
from updater.steps.roll_back import revert
from updater.steps.trial import TrialEngine

SHIPPED = "EFI/Linux/vmlinuz-1-azla1.efi"
ONE, TWO, OLDER = make_release("1.0.0"), make_release("2.0.0"), make_release("0.9.0")
BROKEN = Evidence(Stage.HEALTH, Cause.CHECK, "containerd does not answer", ("containerd",))


class ShippedLoader(SystemdBootLoader):
    """systemd-boot, whose entries also are the UKIs in /EFI/Linux."""

    def power_on(self, machine: SimulatedMachine) -> tuple[Slot, str]:
        state = look(machine.esp, NoEfiVariables(), shipped_ukis(machine.esp)).state
        listed = loader_model.choose(state)
        chosen, _ = loader_model.boot(state)
        assert listed is not None, "the loader has nothing to boot: the machine is lost"
        assert chosen is not None
        if listed.file != chosen.file:
            machine.esp.rename_as_firmware(f"loader/entries/{listed.file}", f"loader/entries/{chosen.file}")
        assert chosen.slot is not None, f"the loader chose a foreign entry: {chosen.file}"
        return chosen.slot, chosen.file


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, TWO, OLDER)
    made.promote("2.0.0")
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    text = (layout_folders()[-1] / "dps-root.yaml").read_text()
    assert "backend: systemd-boot\n" in text
    path = tmp_path / "dps-root.yaml"
    path.write_text(text.replace("backend: systemd-boot\n", "backend: systemd-boot\n  entries: type2\n"))
    return path


def new_machine(publisher: Publisher, layout: Path) -> SimulatedMachine:
    made = SimulatedMachine(ONE, mirror=publisher.mirror, roots=publisher.roots, layout=str(layout))
    made.esp.remove("loader/entries/a.conf")
    made.esp.remove("EFI/acl/a.efi")
    made.esp.write_new(SHIPPED, [ONE.uki])
    made.kind = ShippedLoader()
    return made


@pytest.fixture
def machine(publisher: Publisher, layout: Path) -> SimulatedMachine:
    return new_machine(publisher, layout)


@pytest.mark.parametrize("version", ["2.0.0", "0.9.0"])
def test_newer_and_older_releases_are_tried_committed_and_taken_back(machine: SimulatedMachine, version: str) -> None:
    assert booted(machine) is Situation.IDLE
    assert machine.booted.entry == "vmlinuz-1-azla1.efi"
    armed(machine, version)
    assert machine.esp.files[SHIPPED] == ONE.uki
    assert booted(machine) is Situation.TRIAL
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    for _ in range(4):
        assert booted(machine) is Situation.IDLE
        assert machine.booted.version == version
        TrialEngine(machine.session()).healthy_boot()
    revert(machine.session(), why="asked for")
    assert booted(machine) is Situation.IDLE
    assert (machine.booted.slot, machine.booted.version) == (Slot.A, "1.0.0")
    assert machine.esp.files[SHIPPED] == ONE.uki


def test_the_shipped_uki_goes_when_its_slot_is_replaced(machine: SimulatedMachine) -> None:
    armed(machine, "2.0.0")
    booted(machine)
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    armed(machine, "0.9.0")
    assert SHIPPED not in machine.esp.files
    assert booted(machine) is Situation.TRIAL
    assert machine.booted.slot is Slot.A
    TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
    assert booted(machine) is Situation.IDLE
    assert machine.booted.version == "2.0.0"


def test_a_trial_that_nobody_judges_ends_in_the_shipped_uki(machine: SimulatedMachine) -> None:
    armed(machine, "2.0.0")
    assert [machine.reboot_now().slot for _ in range(4)] == [Slot.B] * 3 + [Slot.A]
    assert recover(machine.session(), None) is Situation.IDLE
    assert machine.esp.files[SHIPPED] == ONE.uki


def test_power_cuts_at_any_change_of_the_esp_never_lose_the_machine(publisher: Publisher, layout: Path) -> None:
    machine = new_machine(publisher, layout)
    start = len(machine.power.effects)
    armed(machine, "2.0.0")
    effects = machine.power.effects[start:]
    ours = [at for at, effect in enumerate(effects) if "loader/" in effect or "EFI/" in effect]
    assert len(ours) > 5
    for at in ours[::2]:
        machine = new_machine(publisher, layout)
        machine.restored(Power(at))
        with pytest.raises(PowerCut):
            armed(machine, "2.0.0")
        machine.restored(Power())
        situation = booted(machine)
        assert machine.booted.slot is Slot.A or situation is Situation.TRIAL, effects[at]
        assert machine.esp.files[SHIPPED] == ONE.uki
