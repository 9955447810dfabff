"""Copies a factory disk onto one whose sectors have another size."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from integration.images.new_disk import fill_boot, refuse_sectors
from integration.lab.fat import FatReader
from updater import gpt
from updater.errors import EnvironmentFailure
from updater.layouts import Layout
from updater.new_disk import new_disk_image, new_table

SECTOR_BYTES = 512  # those of every factory disk in stock
_PIECE_BYTES = 1 << 20


def copy_with_sectors(source: Path, target: Path, layout: Layout, sector_bytes: int) -> None:
    """Write `source`, a disk of the layout with sectors of 512 bytes, to `target` with others.

    Partitions lie at the same bytes and hold the same ones, PARTUUIDs and attributes included; only what counts in
    sectors is made anew: the partition table and the FAT file system of the boot partition.
    """
    refuse_sectors(layout, sector_bytes)
    with source.open("rb") as reader:
        old = gpt.parse(lambda offset, length: os.pread(reader.fileno(), length, offset), source.stat().st_size)
        table = new_table(
            layout,
            disk_guid=old.disk_guid,
            partuuids={partition.name: partition.unique_guid for partition in old.partitions},
            sector_bytes=sector_bytes,
            length_bytes=source.stat().st_size,
        )
        boot = table.named(layout.boot_partition.label)
        with target.open("wb") as writer:
            writer.truncate(source.stat().st_size)
            for partition in old.partitions:
                table = table.with_partition(partition.number, attributes=partition.attributes)
                fresh = table.partition(partition.number)
                if (fresh.offset_bytes, fresh.length_bytes) != (partition.offset_bytes, partition.length_bytes):
                    raise EnvironmentFailure(f"{source}: {partition.name} is not where its layout has it")
                if boot and partition.name != boot.name:
                    _copy(reader.fileno(), writer.fileno(), partition.offset_bytes, partition.length_bytes)
            for offset, raw in new_disk_image(table):
                os.pwrite(writer.fileno(), raw, offset)
    assert boot is not None
    files = FatReader(source, boot.offset_bytes)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fill_boot(boot, target, dict(_files(files)), Path(folder))


def _files(files: FatReader, folder: str = "") -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for name in files.names(folder):
        path = f"{folder}/{name}".strip("/")
        content = files.read(path, limit_bytes=1 << 30)
        found += [(path, content)] if content is not None else _files(files, path)
    return found


def _copy(source: int, target: int, offset: int, length: int) -> None:
    for at in range(offset, offset + length, _PIECE_BYTES):
        piece = os.pread(source, min(_PIECE_BYTES, offset + length - at), at)
        if piece.count(0) != len(piece):
            os.pwrite(target, piece, at)
