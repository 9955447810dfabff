"""What each layout's loader needs on a new disk besides the release in slot a."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from integration.images import grub
from integration.images.tooltree import ToolTree
from updater.boot.entries import factory_files, uki_path
from updater.boot.gpt_priority import kernel_path, record_path, record_text
from updater.boot.gptprio_model import SlotBits
from updater.gpt import Gpt
from updater.layouts import Layout
from updater.slots import Slot


def artifact_path(layout: Layout) -> str:
    """Return where the loader looks for slot a's UKI."""
    return kernel_path(Slot.A) if layout.boot.backend == "gpt-priority" else uki_path(Slot.A)


def loader_files(
    layout: Layout, uki: Path, addons: Mapping[str, Path], version: str, loader: Path
) -> dict[str, bytes | Path]:
    """Return what lies on the layout's boot partition, by path; `version`, `uki` and `addons` are slot a's.

    `loader` is systemd-boot, signed where the firmware wants that.
    """
    if layout.boot.backend == "grub-env":
        return {**grub.loader_files(uki, addons, version)}
    if layout.boot.backend == "gpt-priority":
        # Its loader is the vendor's: Debian has none that knows these bits.
        return {record_path(Slot.A): record_text(version)}
    return {
        "EFI/BOOT/BOOTX64.EFI": loader,
        "EFI/systemd/systemd-bootx64.efi": loader,
        **factory_files(version),
    }


def with_first_slot(layout: Layout, table: Gpt) -> Gpt:
    """Return a new disk's table in which slot a is the good one, where the table is what says so."""
    if layout.boot.backend != "gpt-priority":
        return table
    number = layout.numbers[layout.partition("data", Slot.A).label]
    attributes = SlotBits(1, 0, True).into(table.partition(number).attributes)
    return table.with_partition(number, attributes=attributes)


def install_loader(layout: Layout, disk: Path, offsets: Mapping[str, int], tools: ToolTree) -> None:
    """Write what of the loader lies outside all file systems."""
    if layout.boot.backend != "grub-env":
        return
    core = layout.partition("bios-boot")
    grub.install(
        disk,
        tools,
        core_lba=offsets[core.label] // grub.SECTOR,
        core_sectors=core.length_bytes // grub.SECTOR,
        boot_number=layout.numbers[layout.boot_partition.label],
    )
