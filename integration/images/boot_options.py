"""The variable store of a new machine that boots by its firmware alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from updater.boot.choose import TableAccess, open_backend
from updater.efi_store import FileEfiVariables
from updater.fatimage import FatImage
from updater.gpt import Gpt, parse
from updater.layouts import Layout
from updater.slots import Slot

# What other loaders need, and firmware would take for a boot option of its own.
_LOADERS = ("EFI/BOOT", "EFI/systemd", "loader")


def make_boot_options(disk: Path, layout: Layout, empty_store: Path, store: Path) -> None:
    """Write to `store` the boot options of a factory disk, which is left without any other loader."""
    table = _table(disk)
    esp = table.named(layout.boot_partition.label)
    if esp is None:
        raise LookupError(f"{disk} has no partition {layout.boot_partition.label}")
    files = FatImage(disk, offset_bytes=esp.offset_bytes, length_bytes=esp.length_bytes)
    for folder in _LOADERS:
        files.remove(folder)
    shutil.copyfile(empty_store, store)
    access = TableAccess(lambda: table, lambda _: None)
    efi = FileEfiVariables(store)
    open_backend(layout, esp=files, efi=efi, table=access, part_uuid=esp.unique_guid).settle(Slot.A)


def _table(disk: Path) -> Gpt:
    with disk.open("rb") as file:
        return parse(lambda at, length: os.pread(file.fileno(), length, at), disk.stat().st_size)
