"""The operations that power cuts hit: every verb of an update, from the state in which it is used."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

from tests.power_cuts import Operation, armed, committed, other_slot, renewed, staged
from tests.volatile_cuts import Disk
from tests.volatile_machine import VolatileMachine, World
from updater.boot.protocol import Entry
from updater.cli import deciding
from updater.health_plugin import Cause, Evidence, Stage
from updater.records import Quarantined
from updater.situation import Situation, running_is_proven
from updater.steps.cancel import cancel
from updater.steps.roll_back import revert
from updater.steps.trial import TrialEngine

ONE, TWO, THREE = "1.0.0", "2.0.0", "3.0.0"
BROKEN = Evidence(Stage.HEALTH, Cause.CHECK, "containerd does not answer", ("containerd",))

Act = Callable[[VolatileMachine], object]


def switched_on(machine: VolatileMachine) -> None:
    """Boot, and do what the service does then."""
    machine.power_on()
    machine.recover()


def rolled_back(machine: VolatileMachine) -> None:
    """Judge the trial that runs: it failed."""
    TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)


def healthy(machine: VolatileMachine) -> None:
    """Tell the engine of a boot without complaint."""
    TrialEngine(machine.session()).healthy_boot()


def tried_in_vain(machine: VolatileMachine) -> None:
    """Boot as often as there are tries, and let nobody look."""
    for _ in range(machine.layout.boot.tries):
        machine.power_on()


def to(version: str) -> Act:
    """Return the stage of a release."""
    return lambda machine: staged(machine, version)


def reverted(machine: VolatileMachine) -> None:
    """Go back to the other slot."""
    revert(machine.session(), why="latency doubled")


def cancelled(machine: VolatileMachine) -> None:
    """Cancel what is under way."""
    cancel(machine.session())


def cleared(machine: VolatileMachine) -> None:
    """Clear the quarantine of release 2."""
    deciding.quarantine(Namespace(verb="clear", release=TWO), machine.session())


def pinned(machine: VolatileMachine) -> None:
    """Pin to release 1."""
    deciding.pin(Namespace(release=ONE), machine.session())


READY: tuple[Act, ...] = (switched_on, renewed, renewed)
TO_ARMED: tuple[Act, ...] = (*READY, to(TWO), armed)
TO_TRIAL: tuple[Act, ...] = (*TO_ARMED, switched_on)
TO_COMMITTED: tuple[Act, ...] = (*TO_TRIAL, committed)
TO_FAILED: tuple[Act, ...] = (*TO_TRIAL, rolled_back)


def after(*acts: Act, forgets: bool = False) -> Callable[[World], VolatileMachine]:
    """Return how to make a machine on which these acts were done; `forgets` loses the ledger first."""

    def begin(world: World) -> VolatileMachine:
        disk = world.factory()
        if forgets:
            kept = {path: raw for path, raw in disk.esp.items() if "ledger" not in path}
            disk = Disk(kept, {}, disk.slots, disk.table, disk.efi)
        machine = VolatileMachine(world, disk)
        for act in acts:
            act(machine)
        # Off and on again between them, or still running: either way nothing waits to be flushed.
        fresh = VolatileMachine(world, machine.off(), boots=machine.boots)
        fresh.booted, fresh.command_line = machine.booted, machine.command_line
        fresh.variables.values = dict(machine.variables.values)
        return fresh

    return begin


def _runs(machine: VolatileMachine, version: str) -> bool:
    return machine.booted is not None and machine.booted.version == version


def _idle(version: str) -> Callable[[VolatileMachine, Situation], bool]:
    return lambda machine, situation: _runs(machine, version) and situation is Situation.IDLE


def _verdict_on(machine: VolatileMachine, version: str) -> Quarantined | None:
    ledger = machine.session().store.ledger()
    found = [item for item in ledger.quarantine if item.version == version] if ledger else []
    return found[0] if found else None


def _blamed(machine: VolatileMachine, situation: Situation) -> bool:
    found = _verdict_on(machine, TWO)
    return _idle(ONE)(machine, situation) and found is not None and found.until is None and not _other_boots(machine)


def _put_off(machine: VolatileMachine, situation: Situation) -> bool:
    found = _verdict_on(machine, TWO)
    return _idle(ONE)(machine, situation) and found is not None and found.until is not None


def _other_boots(machine: VolatileMachine) -> tuple[Entry, ...]:
    entries = machine.boot.read().entries_of(other_slot(machine))
    return tuple(entry for entry in entries if not entry.is_bad)


def _nothing_is_armed(version: str) -> Callable[[VolatileMachine, Situation], bool]:
    return lambda machine, situation: _idle(version)(machine, situation) and not _other_boots(machine)


def _is_staged(version: str, situation_then: Situation) -> Callable[[VolatileMachine, Situation], bool]:
    def told(machine: VolatileMachine, situation: Situation) -> bool:
        update = machine.session().store.journal().update
        return situation is situation_then and update is not None and update.release.version == version

    return told


def _remembers_what_it_trusts(machine: VolatileMachine, situation: Situation) -> bool:
    remembered = {"trust/floors.json", "trust/accepted.json", "trust/root.json"}
    return situation is Situation.IDLE and remembered <= machine.state_files.files.keys()


OLD = frozenset({ONE})
BOTH = frozenset({ONE, TWO})
TRIED = frozenset({TWO})

OPERATIONS: tuple[Operation, ...] = (
    Operation("renew the metadata", "check", after(switched_on), renewed, _remembers_what_it_trusts, OLD),
    Operation("stage", "stage", after(*READY), to(TWO), _is_staged(TWO, Situation.STAGED), OLD),
    Operation(
        "stage over the old release",
        "stage",
        after(*TO_COMMITTED),
        to(THREE),
        _is_staged(THREE, Situation.STAGED),
        BOTH,
    ),
    Operation(
        "stage another release",
        "stage",
        after(*READY, to(TWO)),
        to(THREE),
        _is_staged(THREE, Situation.STAGED),
        OLD,
    ),
    Operation(
        "finalize",
        "finalize",
        after(*READY, to(TWO)),
        armed,
        lambda machine, situation: situation is Situation.TRIAL and _runs(machine, TWO),
        OLD,
        TRIED,
        lasting=False,
    ),
    Operation(
        "first boot of a trial", "reboot", after(*TO_ARMED), switched_on, lambda machine, situation: True, OLD, TRIED
    ),
    Operation("commit", "commit", after(*TO_TRIAL), committed, _idle(TWO), BOTH, TRIED),
    Operation("roll back", "roll back", after(*TO_TRIAL), rolled_back, _blamed, OLD, TRIED),
    Operation("quarantine with a verdict", "recover", after(*TO_FAILED), switched_on, _blamed, OLD, TRIED),
    Operation(
        "quarantine without a verdict",
        "tries used up",
        after(*TO_ARMED, tried_in_vain),
        switched_on,
        _put_off,
        OLD,
        TRIED,
    ),
    Operation(
        "quarantine, and the state partition is lost",
        "recover",
        after(*TO_FAILED),
        switched_on,
        _blamed,
        OLD,
        TRIED,
        spoiled=lambda disk: replace(disk, state={}),
    ),
    Operation(
        "revert",
        "rollback",
        after(*TO_COMMITTED),
        reverted,
        lambda machine, situation: _idle(ONE)(machine, situation) and _verdict_on(machine, TWO) is not None,
        BOTH,
    ),
    Operation("first boot after a revert", "reboot", after(*TO_COMMITTED, reverted), switched_on, _idle(ONE), BOTH),
    Operation("cancel what is staged", "cancel", after(*READY, to(TWO)), cancelled, _nothing_is_armed(ONE), OLD),
    Operation("cancel what is armed", "cancel", after(*TO_ARMED), cancelled, _nothing_is_armed(ONE), OLD, TRIED),
    Operation("cancel a revert", "cancel", after(*TO_COMMITTED, reverted), cancelled, _idle(TWO), BOTH),
    Operation("healthy boot", "healthy boot", after(*TO_COMMITTED, switched_on), healthy, _idle(TWO), BOTH),
    Operation(
        "quarantine what rotted",
        "tries used up",
        after(*TO_COMMITTED, tried_in_vain),
        switched_on,
        lambda machine, situation: _idle(ONE)(machine, situation) and _verdict_on(machine, TWO) is not None,
        BOTH,
    ),
    Operation(
        "adopt",
        "adopt",
        after(switched_on, forgets=True),
        healthy,
        lambda machine, situation: situation is Situation.IDLE and running_is_proven(machine.session().facts()),
        OLD,
    ),
    Operation(
        "clear the quarantine",
        "quarantine clear",
        after(*TO_FAILED, switched_on),
        cleared,
        lambda machine, situation: _idle(ONE)(machine, situation) and _verdict_on(machine, TWO) is None,
        OLD,
    ),
    Operation(
        "pin",
        "pin",
        after(switched_on),
        pinned,
        lambda machine, situation: machine.session().store.policy().pin == ONE,
        OLD,
    ),
)
ROTS = "quarantine what rotted"


def operations(world: World) -> tuple[Operation, ...]:
    """Return the operations of a world: where nothing is counted after a commit, nothing rots away."""
    counts_on = world.layout.boot.backend != "efi-bootnext"
    return tuple(operation for operation in OPERATIONS if counts_on or operation.name != ROTS)
