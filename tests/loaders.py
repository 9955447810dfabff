"""The loaders of a simulated machine: what lies on a factory disk, and what happens when power comes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from tests.releases import Release
from tests.simulated_variables import SimulatedEfiVariables
from updater.boot import entries, firmware_model, gptprio_model, grub_model, loader_model
from updater.boot.efi_bootnext import factory_variables
from updater.boot.entries import ENTRIES
from updater.boot.esp import EspView, look
from updater.boot.firmware import look as look_at_firmware
from updater.boot.gpt_priority import record_text
from updater.boot.gptprio_model import SlotBits
from updater.boot.grub_block import factory_block
from updater.boot.grub_env import BLOCKS, CONFIG, SCRIPT, grub_uki_path, shipped_script, start_path
from updater.boot.grub_model import GrubState
from updater.boot.grub_start import start_text
from updater.boot.load_option import EspPlace, order_bytes
from updater.boot.systemd_boot import SystemdBoot
from updater.efivars import GLOBAL_GUID, NoEfiVariables
from updater.files import Directory
from updater.slots import Slot

if TYPE_CHECKING:
    from tests.machine import SimulatedMachine

OUR_VARIABLES = frozenset({"BootOrder", "BootNext", "BootCurrent"})


class Loader(Protocol):
    """One kind of loader."""

    def factory_files(self, machine: SimulatedMachine, factory: Release) -> Mapping[str, bytes]:
        """Return the boot partition's files of a machine that ships `factory` in slot a; set what lies elsewhere."""

    def power_on(self, machine: SimulatedMachine) -> tuple[Slot, str]:
        """Choose as the loader's model does, and count as it counts; return slot and entry."""


class SystemdBootLoader:
    """systemd-boot, by the files of the ESP."""

    def factory_files(self, machine: SimulatedMachine, factory: Release) -> Mapping[str, bytes]:
        return {
            **entries.factory_files(factory.version),
            **artifact("EFI/acl/a.efi", factory),
        }

    def power_on(self, machine: SimulatedMachine) -> tuple[Slot, str]:
        state = look(machine.esp, NoEfiVariables()).state
        listed = loader_model.choose(state)
        chosen, _ = loader_model.boot(state)
        assert listed is not None, "the loader has nothing to boot: the machine is lost"
        assert chosen is not None
        old, new = f"loader/entries/{listed.file}", f"loader/entries/{chosen.file}"
        # The firmware's rename fails where a twin bears the new name; the loader then starts the entry uncounted.
        if new not in machine.esp.files:
            machine.esp.rename_as_firmware(old, new)
        assert chosen.slot is not None, f"the loader chose a foreign entry: {chosen.file}"
        return chosen.slot, chosen.file


class EspWorld:
    """A `BootWorld` without cuts: systemd-boot's model over the ESP in `esp`."""

    esp: Directory

    def backend(self) -> SystemdBoot:
        """Return the back end of this ESP."""
        return SystemdBoot(self.esp, NoEfiVariables())

    def view(self) -> EspView:
        """Return what the loader sees."""
        return look(self.esp, NoEfiVariables())

    def rename_as_firmware(self, old: str, new: str) -> None:
        """Rename an entry as the loader does when it counts."""
        raise NotImplementedError

    def boots(self) -> Slot | None:
        chosen = loader_model.choose(self.view().state)
        return chosen.slot if chosen else None

    def power_on(self) -> Slot | None:
        state = self.view().state
        chosen = loader_model.choose(state)
        started, _ = loader_model.boot(state)
        if chosen is None or started is None:
            return None
        if started.file != chosen.file:
            self.rename_as_firmware(f"{ENTRIES}/{chosen.file}", f"{ENTRIES}/{started.file}")
        return started.slot


class FirmwareLoader:
    """Firmware alone, by its variables."""

    def factory_files(self, machine: SimulatedMachine, factory: Release) -> Mapping[str, bytes]:
        variables = SimulatedEfiVariables(volatile=True, tell=lambda effect: machine.power.spend(effect))
        given = factory_variables(self.place(machine), factory.version)
        variables.values = {(GLOBAL_GUID, name): value for name, value in given.items()}
        first = given["BootOrder"][:2]
        variables.values[GLOBAL_GUID, "BootCurrent"] = first
        machine.efi = self.variables = variables
        return artifact("EFI/acl/a.efi", factory)

    def place(self, machine: SimulatedMachine) -> EspPlace:
        esp = machine.table.partition(1)
        return EspPlace(1, esp.first_lba, esp.last_lba - esp.first_lba + 1, esp.unique_guid)

    def power_on(self, machine: SimulatedMachine) -> tuple[Slot, str]:
        view = look_at_firmware(machine.esp, self.variables, self.place(machine), "")
        started, after = firmware_model.boot(view.state)
        assert started is not None, "the firmware has nothing to boot: the machine is lost"
        values = {
            key: value
            for key, value in self.variables.values.items()
            if key[0] != GLOBAL_GUID or key[1] not in OUR_VARIABLES
        }
        values[GLOBAL_GUID, "BootOrder"] = order_bytes(after.order)
        values[GLOBAL_GUID, "BootCurrent"] = order_bytes((started,))
        if after.next_number is not None:
            values[GLOBAL_GUID, "BootNext"] = order_bytes((after.next_number,))
        self.variables.values = values
        return view.slots[started], f"Boot{started:04X}"


class GptLoader:
    """A loader that reads the bits of the partition table."""

    def factory_files(self, machine: SimulatedMachine, factory: Release) -> Mapping[str, bytes]:
        label = machine.layout.partition("data", Slot.A).label
        number = machine.layout.numbers[label]
        attributes = SlotBits(1, 0, True).into(machine.table.partition(number).attributes)
        changed = machine.table.with_partition(number, attributes=attributes)
        machine.table = dataclasses.replace(changed, consistent=True)
        return {**artifact("flatcar/vmlinuz-a", factory), "flatcar/release-a": record_text(factory.version)}

    def power_on(self, machine: SimulatedMachine) -> tuple[Slot, str]:
        data = {slot: machine.layout.partition("data", slot) for slot in Slot}
        before = machine.table
        chosen, after = gptprio_model.boot(before, UUID(data[Slot.A].type_guid))
        assert chosen is not None, "the loader has nothing to boot: the machine is lost"
        if after.entries != before.entries:
            machine.table = dataclasses.replace(after, consistent=True)
        slot = next(slot for slot in Slot if data[slot].label == chosen.name)
        assert machine.esp.size(f"flatcar/vmlinuz-{slot}"), f"the loader finds no kernel of slot {slot}: it stops"
        return slot, chosen.name


class GrubLoader:
    """GRUB with the script that ships, by its environment blocks."""

    def factory_files(self, machine: SimulatedMachine, factory: Release) -> Mapping[str, bytes]:
        path = grub_uki_path(Slot.A)
        return {
            SCRIPT: shipped_script(),
            CONFIG: b"source $prefix/acl.cfg\n",
            **dict.fromkeys(BLOCKS, factory_block(factory.version)),
            **artifact(path, factory),
            start_path(Slot.A): start_text(Slot.A, path, lambda: iter([factory.uki]), []),
        }

    def power_on(self, machine: SimulatedMachine) -> tuple[Slot, str]:
        present = machine.esp.files
        loadable = frozenset(s for s in Slot if start_path(s) in present and grub_uki_path(s) in present)
        state = GrubState((present.get(BLOCKS[0]), present.get(BLOCKS[1])), loadable)
        slot, told, after = grub_model.boot(state)
        assert slot is not None, "GRUB has nothing to boot: the machine is lost"
        for path, raw in zip(BLOCKS, after.blocks, strict=True):
            if raw is not None and present.get(path) != raw:
                machine.esp.write_as_firmware(path, raw)
        machine.command_line = f"acl.slot={slot} acl.tries_left={told}"
        return slot, str(told)


LOADERS: dict[str, type[Loader]] = {
    "systemd-boot": SystemdBootLoader,
    "efi-bootnext": FirmwareLoader,
    "gpt-priority": GptLoader,
    "grub-env": GrubLoader,
}


def artifact(path: str, factory: Release) -> dict[str, bytes]:
    """Return the boot files of a factory release in slot a, its UKI at `path`."""
    addons = {f"{path}.extra.d/{name}": content for name, content in factory.addons_of(Slot.A).items()}
    return {path: factory.uki, **addons}
