"""Whole updates on a simulated machine that boots by its firmware alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tests.firmware_world import PLACE
from tests.life import armed, booted
from tests.machine import Booted, SimulatedMachine
from tests.releases import Publisher, Release, make_release
from tests.simulated import Power, PowerCut
from tests.simulated_variables import SimulatedEfiVariables
from updater.boot import firmware_model
from updater.boot.efi_bootnext import EfiBootNext, factory_variables
from updater.boot.firmware import look
from updater.boot.firmware_model import Manner
from updater.boot.load_option import order_bytes
from updater.efivars import GLOBAL_GUID
from updater.errors import EnvironmentFailure, Refused
from updater.explain import Outlook, explain
from updater.health_plugin import Cause, Evidence, Stage
from updater.repository import open_repository
from updater.situation import Situation, decide
from updater.slots import Slot
from updater.steps.cancel import cancel
from updater.steps.finalize import finalize
from updater.steps.recover import recover
from updater.steps.roll_back import revert
from updater.steps.trial import TrialEngine

A, B = Slot.A, Slot.B
LAYOUT = "dps-root-efi"
ONE, TWO, OLDER = (make_release(version, layouts=(LAYOUT,)) for version in ("1.0.0", "2.0.0", "0.9.0"))
BROKEN = Evidence(Stage.HEALTH, Cause.CHECK, "containerd does not answer", ("containerd",))


class FirmwareMachine(SimulatedMachine):
    """A `Node` in memory whose firmware starts the slots' UKIs."""

    def __init__(self, factory: Release, *, mirror: Path, roots: list[Path], manner: Manner = Manner.PLAIN) -> None:
        super().__init__(factory, mirror=mirror, roots=roots, layout=LAYOUT)
        for path in self.esp.files:
            if path.startswith("loader/"):
                self.esp.remove(path)
        self.manner = manner
        self.variables = SimulatedEfiVariables(tell=lambda effect: self.power.spend(effect))
        self.variables.values = {
            (GLOBAL_GUID, name): value for name, value in factory_variables(PLACE, factory.version).items()
        }
        self.reboot_now()

    @property
    def boot(self) -> EfiBootNext:
        return EfiBootNext(self.esp, self.variables, PLACE, boot_id=self.boot_id())

    def reboot_now(self) -> Booted:
        state = look(self.esp, self.variables, PLACE, "").state
        started, after = firmware_model.boot(state, self.manner)
        assert started is not None, "the firmware has nothing to boot: the machine is lost"
        slot = look(self.esp, self.variables, PLACE, "").slots[started]
        values: dict[tuple[UUID, str], bytes] = {**self.variables.values}
        values.pop((GLOBAL_GUID, "BootNext"), None)
        if after.next_number is not None:
            values[GLOBAL_GUID, "BootNext"] = order_bytes((after.next_number,))
        values[GLOBAL_GUID, "BootCurrent"] = order_bytes((started,))
        self.variables.values = values
        self._boots += 1
        version = next(entry.version for entry in self.boot.read().order if entry.slot is slot)
        self.booted = Booted(slot, f"Boot{started:04X}", version, self._proven_root_hash(slot))
        return self.booted

    def kept(self) -> Mapping[tuple[UUID, str], bytes]:
        """Return the variables that outlive a power cut."""
        return self.variables.values


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, TWO, OLDER)
    made.promote("2.0.0")
    return made


@pytest.fixture
def machine(publisher: Publisher) -> FirmwareMachine:
    return new_machine(publisher)


def new_machine(publisher: Publisher, manner: Manner = Manner.PLAIN) -> FirmwareMachine:
    return FirmwareMachine(ONE, mirror=publisher.mirror, roots=list(publisher.roots), manner=manner)


def put_off(machine: FirmwareMachine) -> str:
    """Return the sentence of the one release that is put off, after seeing that it is not tried meanwhile."""
    ledger = machine.session().store.ledger()
    assert ledger is not None
    (later,) = ledger.quarantine
    assert later.until is not None
    with pytest.raises(Refused, match="put off until"):
        armed(machine)
    return later.sentence


@pytest.mark.parametrize("version", ["2.0.0", "0.9.0"])
def test_a_release_is_tried_once_committed_and_stays(machine: FirmwareMachine, version: str) -> None:
    armed(machine, version)
    assert booted(machine) is Situation.TRIAL
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    for _ in range(3):
        assert booted(machine) is Situation.IDLE
        TrialEngine(machine.session()).healthy_boot()
        assert machine.booted.version == version
    revert(machine.session(), why="asked for")
    assert booted(machine) is Situation.IDLE
    assert machine.booted.version == "1.0.0"


def test_a_verdict_rolls_back_and_the_image_is_quarantined(machine: FirmwareMachine) -> None:
    armed(machine)
    booted(machine)
    TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is A
    with pytest.raises(Refused, match=r"quarantined on this node since .*containerd does not answer"):
        armed(machine)


def test_a_trial_that_dies_without_a_trace_is_put_off_and_tried_again(machine: FirmwareMachine) -> None:
    armed(machine)
    assert [machine.reboot_now().slot for _ in range(2)] == [B, A]
    assert recover(machine.session(), None) is Situation.IDLE
    assert "perhaps the firmware did not take BootNext" in put_off(machine)
    machine.clock += timedelta(hours=1, seconds=1)
    armed(machine)
    assert booted(machine) is Situation.TRIAL


def test_a_trial_that_was_seen_to_boot_leaves_no_doubt_about_the_firmware(machine: FirmwareMachine) -> None:
    armed(machine)
    assert booted(machine) is Situation.TRIAL
    assert booted(machine) is Situation.IDLE
    assert "BootNext" not in put_off(machine)


def test_a_firmware_that_does_not_take_bootnext_is_named_and_tried_less_and_less_often(publisher: Publisher) -> None:
    machine = new_machine(publisher, Manner.KEEPS_NEXT)
    waits = []
    for _ in range(3):
        armed(machine, "2.0.0")
        assert booted(machine) is Situation.IDLE
        assert machine.booted.slot is A
        assert "the firmware did not take BootNext" in put_off(machine)
        ledger = machine.session().store.ledger()
        assert ledger is not None
        waits.append(ledger.quarantine[0].until)
    session = machine.session()
    told = explain(session.facts(), Outlook("2.0.0", None, None, "", None))
    assert any("the firmware did not take BootNext" in line for line in told.details)
    assert waits == sorted(set(waits), key=str)


def test_a_power_cut_before_the_reboot_is_a_reboot(machine: FirmwareMachine) -> None:
    armed(machine)
    assert decide(machine.session().facts()) is Situation.ARMED
    assert booted(machine) is Situation.TRIAL


def test_cancelling_takes_bootnext_back(machine: FirmwareMachine) -> None:
    session = armed(machine)
    cancel(session)
    assert machine.variables.read("BootNext", GLOBAL_GUID) is None
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is A


def test_a_store_without_room_refuses_the_trial_and_explain_says_so(machine: FirmwareMachine) -> None:
    machine.variables.room_bytes = 2000
    with pytest.raises(EnvironmentFailure, match="a trial needs"):
        armed(machine)
    session = machine.session()
    assert decide(session.facts()) is Situation.STAGED
    assert any(
        "a trial needs" in line for line in explain(session.facts(), Outlook(None, None, None, "", None)).details
    )
    machine.variables.room_bytes = None
    with open_repository(machine, built=None) as repository:
        finalize(session, repository=repository, health=None)
    assert booted(machine) is Situation.TRIAL


def test_power_cuts_at_any_change_of_an_update_never_lose_the_machine(publisher: Publisher) -> None:
    machine = new_machine(publisher)
    start = len(machine.power.effects)
    armed(machine)
    effects = machine.power.effects[start:]
    ours = [at for at, effect in enumerate(effects) if "Boot" in effect]
    assert len(ours) >= 2
    for at in ours:
        machine = new_machine(publisher)
        cut = Power(at)
        machine.restored(cut)
        with pytest.raises(PowerCut):
            armed(machine)
        machine.restored(Power())
        situation = booted(machine)
        assert situation in (Situation.STAGING, Situation.STAGED, Situation.TRIAL, Situation.IDLE)
        assert machine.booted.slot is A or situation is Situation.TRIAL, effects[at]
        if situation is Situation.TRIAL:
            continue
        armed(machine, "2.0.0") if situation is not Situation.STAGED else finish(machine)
        assert booted(machine) is Situation.TRIAL, effects[at]


def finish(machine: FirmwareMachine) -> None:
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        finalize(machine.session(), repository=repository, health=None)
