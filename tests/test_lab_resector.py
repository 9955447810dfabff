"""A disk copied onto larger sectors holds the same, read by other code than made it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from integration.images.new_disk import fill_boot, write_new_table
from integration.lab.disk import Disk
from integration.lab.emulator import Emulator, Given, Hardware, Wires, command
from integration.lab.resector import copy_with_sectors
from updater.fatimage import FatImage
from updater.layouts import load_layout
from updater.run import search_path

FILES = {"EFI/acl/a.efi": b"kernel" * 5000, "loader/entries/a.conf": b"title x\n", "EFI/acl/empty": b""}


@pytest.mark.skipif(shutil.which("mkfs.vfat", path=search_path()) is None, reason="mkfs.vfat is not installed")
def test_partitions_keep_their_bytes_and_the_boot_files_are_laid_anew(tmp_path: Path) -> None:
    layout = load_layout("flatcar")
    source, target = tmp_path / "512.raw", tmp_path / "4096.raw"
    table = write_new_table(layout, source, root_hash="ab" * 32, seed="x")
    (tmp_path / "scratch").mkdir()
    fill_boot(table.named("EFI-SYSTEM"), source, FILES, tmp_path / "scratch")
    places = {name: partition.offset_bytes for name in ("USR-B", "ROOT") if (partition := table.named(name))}
    with source.open("r+b") as file:
        for name, offset in places.items():
            file.seek(offset + (5 << 20) + 7)
            file.write(name.encode())
    copy_with_sectors(source, target, layout, 4096)
    old, new = Disk(source, layout).table(), Disk(target, layout).table()
    assert (old.sector_bytes, new.sector_bytes, new.consistent) == (512, 4096, True)
    for before, after in zip(old.partitions, new.partitions, strict=True):
        told = [
            (p.number, p.name, p.type_guid, p.unique_guid, p.attributes, p.offset_bytes, p.length_bytes)
            for p in (before, after)
        ]
        assert told[0] == told[1]
    with target.open("rb") as file:
        for name, offset in places.items():
            file.seek(offset + (5 << 20) + 7)
            assert file.read(len(name)) == name.encode()
    esp = new.partition(1)
    fat = FatImage(target, offset_bytes=esp.offset_bytes, length_bytes=esp.length_bytes)
    assert {path: b"".join(fat.chunks(path)) for path in FILES} == FILES


def test_the_machines_disk_has_the_scenarios_sectors(tmp_path: Path) -> None:
    emulator = Emulator(("qemu",), tmp_path / "code", tmp_path / "vars")
    hardware = Hardware()
    plain, large = (
        command(emulator, given, Given(), Wires(7, 8), disk=tmp_path / "disk", variables=tmp_path / "vars")
        for given in (hardware, dataclasses.replace(hardware, sector_bytes=4096))
    )
    (changed,) = set(large) - set(plain)
    assert changed.endswith(",logical_block_size=4096,physical_block_size=4096")
