"""The choice of the boot back end that a layout names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from updater.boot.load_option import EspPlace
from updater.boot.protocol import BootBackend
from updater.efivars import EfiVariables
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.gpt import Gpt
from updater.layouts import Layout
from updater.slots import Slot


@dataclass(frozen=True, slots=True)
class TableAccess:
    """The disk's partition table: `read` returns it as it is now, `write` makes a changed one durable, copy by copy."""

    read: Callable[[], Gpt]
    write: Callable[[Gpt], None]


def open_backend(
    layout: Layout,
    *,
    esp: Directory,
    efi: EfiVariables,
    table: TableAccess,
    part_uuid: UUID | None = None,
    boot_id: str = "",
    title: str = "ACL",
    command_line: str = "",
) -> BootBackend:
    """Return the back end of the layout's loader; raise EnvironmentFailure for one that this version does not have.

    `esp` is the FAT partition with the boot files (`Layout.boot_partition`), `part_uuid` its PARTUUID; `boot_id` the
    kernel's id of this boot and `command_line` its parameters, empty for a disk image; `title` is what a menu shows.
    """
    match layout.boot.backend, layout.boot.entries:
        case "systemd-boot", kind:
            from updater.boot.systemd_boot import SystemdBoot

            return SystemdBoot(esp, efi, part_uuid=part_uuid, boot_id=boot_id, title=title, takes_over=kind == "type2")
        case "gpt-priority", _:
            from updater.boot.gpt_priority import GptPriority

            labels = {slot: layout.partition("data", slot).label for slot in Slot}
            return GptPriority(esp, labels, read=table.read, write=table.write)
        case "efi-bootnext", _:
            from updater.boot.efi_bootnext import EfiBootNext

            return EfiBootNext(esp, efi, _esp_place(table, part_uuid), boot_id=boot_id, title=title)
        case "grub-env", _:
            from updater.boot.grub_env import GrubEnv

            return GrubEnv(esp, command_line=command_line)
        case backend, _:
            raise EnvironmentFailure(
                f"this version has no back end for the loader {backend} of the layout {layout.name}",
                mend="install a newer acl-updater, or name another layout in the configuration (`layout:`)",
                reason="no-backend",
            )


def _esp_place(table: TableAccess, part_uuid: UUID | None) -> EspPlace:
    """Return where the ESP lies on its disk, which is how firmware finds it."""
    found = next((partition for partition in table.read().partitions if partition.unique_guid == part_uuid), None)
    if found is None:
        raise EnvironmentFailure(
            f"the partition table has no ESP with the PARTUUID {part_uuid}",
            mend="see `sfdisk --dump` of that disk",
            reason="no-partition",
        )
    return EspPlace(found.number, found.first_lba, found.last_lba - found.first_lba + 1, found.unique_guid)
