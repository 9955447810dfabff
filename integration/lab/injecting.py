"""What each kind of step that breaks something does."""

from __future__ import annotations

import re
from dataclasses import replace

from integration.lab import attacks, firmware_store, publisher
from integration.lab.actions import perform, trigger_of
from integration.lab.disk import copy_disk
from integration.lab.firmware_proofs import StoreFault, hand_over
from integration.lab.hardware_proofs import SlowDiskProof, clock_proof, twin_proof
from integration.lab.injections import (
    Cut,
    Fault,
    Fill,
    Firmware,
    LyingDiskStep,
    MachineChange,
    Processor,
    Repository,
    Serve,
    Tamper,
    Unplug,
)
from integration.lab.lying_disk import begin_to_lie
from integration.lab.machine import LabTimeout
from integration.lab.run import KEPT, Run
from integration.lab.server import ServerFault
from integration.lab.storage import SectorError, below_disk
from integration.lab.strikes import Defect, Moment, ProcessorStrike
from integration.lab.unplug import Unplug as UnplugStrike
from updater.errors import EnvironmentFailure

__all__ = ["perform"]

_FILLER = "/var/acl-lab-filler.bin"
_BLOCK_BYTES = 4096


@perform.register
def _(action: Fault, run: Run) -> None:
    run.faults.append(action)
    run.asked.append(action)


@perform.register
def _(action: Cut, run: Run) -> None:
    run.server.mark()
    run.machine.cut_when(trigger_of(run, action.when))
    if action.boot:
        run.give()
        run.machine.power_on()
    if action.updater is not None:
        run.machine.guest_begin("acl-updater", "--json", *action.updater.split(), budget_s=action.timeout_s)
    try:
        run.machine.wait(
            lambda: not run.machine.is_on and run.machine.cut_because,
            f"the power cut when {action.when}",
            budget_s=action.timeout_s,
        )
    except LabTimeout as error:
        run.machine.forget_triggers()
        raise EnvironmentFailure(
            f"the power was never cut: {error.message}", mend=error.mend, reason="fault-not-injected"
        ) from error
    run.power_went()


@perform.register
def _(action: Tamper, run: Run) -> None:
    disk = run.disk
    if action.partition is not None:
        disk.zero(action.partition, action.at_byte or 0, action.zero_bytes or 0)
    elif action.slot is not None and action.copy_of is not None:
        disk.copy_slot(action.copy_of, action.slot)
    elif action.slot is not None and action.block is not None:
        disk.flip_block(action.slot, action.block, "hash" if action.tree else "data")
    elif action.file is not None:
        _tamper_file(action, action.file, run)


def _tamper_file(action: Tamper, path: str, run: Run) -> None:
    disk = run.disk
    if action.truncate_bytes is not None:
        disk.truncate_file(path, action.truncate_bytes)
    elif action.at_byte is not None:
        disk.flip_file(path, action.at_byte)
    elif action.rename is not None:
        disk.rename_file(path, action.rename)
    elif action.append_bytes is not None:
        disk.rewrite_file(path, lambda content: content + bytes(action.append_bytes or 0))
    elif action.zero:
        disk.rewrite_file(path, lambda content: bytes(len(content)))
    elif action.content is not None:
        text = action.content
        disk.rewrite_file(path, lambda _: text.encode())
    elif action.remove:
        disk.remove_file(path)
    elif action.lose_clusters:
        disk.lose_clusters(path)
    else:
        disk.protect_file(path)


@perform.register
def _(action: Fill, run: Run) -> None:
    if action.what == "esp":
        if action.free:
            run.disk.free_esp()
        elif not run.disk.fill_esp(action.leave_bytes):
            raise EnvironmentFailure("the ESP was full already", mend="leave fewer bytes", reason="fault-not-injected")
        return
    script = f"rm -f {_FILLER}"
    if not action.free:
        script = f"free=$(($(stat -f -c '%a * %S' /var) - {action.leave_bytes})); fallocate -l $free {_FILLER}; sync"
        script += f"; head -c 64M /dev/zero >> {_FILLER}; sync; df -B1 --output=avail /var"
    ran = run.machine.guest("sh", "-c", script, budget_s=120)
    run.observer.note("lab", f"the state partition is {'freed' if action.free else 'full'}: {ran.stdout.strip()}")


@perform.register
def _(action: Firmware, run: Run) -> None:
    _needs_off(run)
    run.prove_store()
    store, empty = run.machine.variables, run.stock.emulator.firmware_variables
    if action.read_only is not None:
        run.machine.hardware = replace(run.machine.hardware, variables_read_only=action.read_only)
        fault = StoreFault.READ_ONLY if action.read_only else None
    elif action.wipe:
        fault = StoreFault.WIPED
        firmware_store.wipe(store, empty)
    elif action.forget_boot_order:
        fault = StoreFault.NO_BOOT_ORDER
        firmware_store.forget_boot_order(store)
    else:
        fault = StoreFault.FULL
        free = firmware_store.fill(store)
        run.observer.note("lab", f"the variable store has {free} bytes left")
    if fault is not None:
        run.store = hand_over(fault, store, len(run.machine.boots))


@perform.register
def _(action: MachineChange, run: Run) -> None:
    _needs_off(run)
    machine = run.machine
    if action.restore:
        if machine.hardware.variables_read_only:
            run.prove_store()
        # The stub breaks nothing by itself, and a strike that is still to come needs it.
        machine.hardware = replace(run.hardware, debugger=machine.hardware.debugger)
        return
    changes: dict[str, object] = {}
    if action.clock is not None:
        changes["clock"] = action.clock
        machine.strikes.append(clock_proof(action.clock))
    if action.slow_disk is not None:
        changes["slow_disk"] = action.slow_disk
        machine.strikes.append(SlowDiskProof(action.slow_disk))
    if action.network is not None:
        changes["network"] = False
    if action.watchdog is not None:
        changes["watchdog"] = action.watchdog
    if action.twin_disk:
        twin = run.folder / "twin.raw"
        copy_disk(run.disk.path, twin)
        changes["twin"] = twin
        machine.strikes.append(twin_proof())
    if action.bad_sectors is not None:
        run.disk_broken = True
        changes["bad_sectors"] = tuple(
            SectorError((run.disk.partition(bad.partition).offset_bytes + bad.block * _BLOCK_BYTES) // 512, bad.access)
            for bad in action.bad_sectors
        )
    machine.hardware = replace(machine.hardware, **changes)  # type: ignore[arg-type]


@perform.register
def _(action: Processor, run: Run) -> None:
    _needs_off(run)
    run.machine.hardware = replace(run.machine.hardware, debugger=True)
    moment = Moment(run.version(action.release), re.compile(action.at))
    run.machine.strikes.append(ProcessorStrike(moment, Defect(action.does)))


@perform.register
def _(action: Unplug, run: Run) -> None:
    _needs_off(run)
    moment = Moment(run.version(action.release), re.compile(action.at))
    hardware = run.machine.hardware
    below = below_disk(slow=hardware.slow_disk, bad_sectors=hardware.bad_sectors)
    run.machine.strikes.append(UnplugStrike(moment, run.disk.path.stat().st_size, below))


@perform.register
def _(action: LyingDiskStep, run: Run) -> None:
    _needs_off(run)
    run.lying = begin_to_lie(run.disk, action.partitions, run.folder / KEPT)


@perform.register
def _(action: Serve, run: Run) -> None:
    broken = ServerFault(action.kind, action.paths, action.after_bytes, action.status, action.rate)
    run.server_broken |= action.kind != "works"
    run.server.break_with(None if action.kind == "works" else broken)


@perform.register
def _(action: Repository, run: Run) -> None:
    repository, keys = run.repository, run.stock.keys
    if action.tamper is not None:
        publisher.tamper(repository, action.tamper)
    elif action.lose is not None:
        publisher.lose(repository, action.lose)
    elif action.restore:
        publisher.restore(repository, run.stock.repository)
    elif action.expire:
        publisher.expire(repository, keys)
    elif action.renew:
        publisher.renew(repository, keys)
    elif action.promote is not None:
        publisher.promote(repository, keys, run.version(action.promote))
    elif action.withdraw is not None:
        publisher.withdraw(repository, keys, run.version(action.withdraw))
    elif action.unsign is not None:
        publisher.unsign(repository, keys, run.version(action.unsign))
    elif action.attack is not None:
        attacks.forge(action.attack, repository, keys)


def _needs_off(run: Run) -> None:
    if run.machine.is_on:
        raise EnvironmentFailure("the machine is on", mend="add a step `power: down` before", reason="lab-scenario")
