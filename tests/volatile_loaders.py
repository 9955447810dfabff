"""The loaders of a volatile machine: each chooses and counts as its model does, with effects of its own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from uuid import UUID

from updater.boot import firmware_model, gptprio_model, grub_model, loader_model
from updater.boot.entries import ENTRIES
from updater.boot.esp import look
from updater.boot.firmware import look as look_at_firmware
from updater.boot.grub_env import BLOCKS, grub_uki_path, start_path
from updater.boot.grub_model import GrubState
from updater.boot.grub_start import start_text
from updater.boot.load_option import EspPlace, order_bytes
from updater.efivars import GLOBAL_GUID, NoEfiVariables
from updater.slots import Slot

if TYPE_CHECKING:
    from tests.volatile_machine import VolatileMachine

LOST = "the loader has nothing to boot: the machine is lost"


def power_on(machine: VolatileMachine) -> tuple[Slot, str]:
    """Return the slot and the entry that start; what the loader writes is written."""
    return LOADERS[machine.layout.boot.backend](machine)


def _systemd_boot(machine: VolatileMachine) -> tuple[Slot, str]:
    state = look(machine.esp, NoEfiVariables()).state
    listed = loader_model.choose(state)
    chosen, _ = loader_model.boot(state)
    assert listed is not None, LOST
    assert chosen is not None
    if chosen.file != listed.file:
        folder = machine.esp_files.find(tuple(ENTRIES.split("/")))
        assert folder is not None
        # Our names are short, so that the firmware's rename is one sector (docs/systemd-boot.md).
        machine.esp_files.rename(folder, listed.file, chosen.file, in_sector=True)
        machine.esp_files.flush(folder, "the firmware flushes the folder")
    assert chosen.slot is not None, f"the loader chose a foreign entry: {chosen.file}"
    return chosen.slot, chosen.file


def _firmware(machine: VolatileMachine) -> tuple[Slot, str]:
    esp = machine.disk.table().partition(1)
    place = EspPlace(1, esp.first_lba, esp.last_lba - esp.first_lba + 1, esp.unique_guid)
    view = look_at_firmware(machine.esp, machine.variables, place, "")
    started, after = firmware_model.boot(view.state)
    assert started is not None, LOST
    if after.order != view.state.order:
        machine.variables.write("BootOrder", order_bytes(after.order), GLOBAL_GUID)
    if after.next_number is None:
        machine.variables.delete("BootNext", GLOBAL_GUID)
    # It lives in memory, and every boot sets it anew.
    machine.variables.values[GLOBAL_GUID, "BootCurrent"] = order_bytes((started,))
    return view.slots[started], f"Boot{started:04X}"


def _gpt_priority(machine: VolatileMachine) -> tuple[Slot, str]:
    data = {slot: machine.layout.partition("data", slot) for slot in Slot}
    before = machine.disk.table()
    chosen, after = gptprio_model.boot(before, UUID(data[Slot.A].type_guid))
    assert chosen is not None, LOST
    if after.entries != before.entries:
        for offset, raw in gptprio_model.loader_writes(after):
            for at in range(0, len(raw), 512):
                # It goes through firmware's block I/O, sector by sector (docs/gpt-priority.md).
                machine.disk.write(offset + at, raw[at : at + 512])
                machine.disk.flush()
    slot = next(slot for slot in Slot if data[slot].label == chosen.name)
    assert machine.esp.size(f"flatcar/vmlinuz-{slot}"), f"the loader finds no kernel of slot {slot}: it stops"
    return slot, chosen.name


def _grub(machine: VolatileMachine) -> tuple[Slot, str]:
    present = machine.esp_files.files
    loadable = frozenset(s for s in Slot if start_path(s) in present and grub_uki_path(s) in present)
    state = GrubState((present.get(BLOCKS[0]), present.get(BLOCKS[1])), loadable)
    slot, told, after = grub_model.boot(state)
    assert slot is not None, LOST
    for path, raw in zip(BLOCKS, after.blocks, strict=True):
        if raw is not None and present.get(path) != raw:
            number = machine.esp_files.find(tuple(path.split("/")))
            assert number is not None
            machine.esp_files.overwrite(number, raw)
            machine.esp_files.flush(number, "GRUB flushes its block")
    wanted = _start_text(slot, present[grub_uki_path(slot)] or b"")
    assert present[start_path(slot)] == wanted, f"GRUB would start slot {slot} by a damaged /{start_path(slot)}"
    machine.command_line = f"acl.slot={slot} acl.tries_left={told}"
    return slot, str(told)


@functools.cache
def _start_text(slot: Slot, uki: bytes) -> bytes:
    return start_text(slot, grub_uki_path(slot), lambda: iter([uki]), [])


LOADERS = {
    "systemd-boot": _systemd_boot,
    "efi-bootnext": _firmware,
    "gpt-priority": _gpt_priority,
    "grub-env": _grub,
}
