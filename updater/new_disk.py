"""The partition table of a new disk, made after its layout."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from uuid import UUID

from updater.gpt import Gpt, empty_table
from updater.layouts import Layout

ALIGN_BYTES = 1 << 20
READ_ONLY = 1 << 60


def disk_bytes(layout: Layout) -> int:
    """Return the length of a disk that holds the layout's partitions: one MiB before them, one behind."""
    return 2 * ALIGN_BYTES + sum(partition.length_bytes for partition in layout.partitions)


def new_table(
    layout: Layout,
    *,
    disk_guid: UUID,
    partuuids: Mapping[str, UUID],
    sector_bytes: int = 512,
    length_bytes: int | None = None,
) -> Gpt:
    """Return a table with the layout's partitions one behind the other, each at a whole MiB.

    `partuuids` names each label's PARTUUID; a fixed one of the layout wins. A disk longer than needed leaves its last
    partition room to grow. Raises ValueError for a disk that is too short.
    """
    length = length_bytes or disk_bytes(layout)
    if length < disk_bytes(layout):
        raise ValueError(f"the layout {layout.name} needs {disk_bytes(layout)} bytes, the disk has {length}")
    table = empty_table(disk_guid, length, sector_bytes)
    offset = ALIGN_BYTES
    for partition in layout.partitions:
        table = table.with_new_partition(
            layout.numbers[partition.label],
            type_guid=UUID(partition.type_guid),
            unique_guid=partition.fixed_partuuid or partuuids[partition.label],
            offset_bytes=offset,
            length_bytes=partition.length_bytes,
            name=partition.label,
            attributes=READ_ONLY if partition.slot is not None else 0,
        )
        offset += partition.length_bytes
    return table


def protective_mbr(table: Gpt) -> bytes:
    """Return the sector before a GPT, which keeps older tools away (UEFI 2.10, 5.2.3)."""
    sectors = min(table.disk_sectors - 1, 0xFFFFFFFF)
    record = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, sectors)
    return (bytes(446) + record + bytes(48) + b"\x55\xaa").ljust(table.sector_bytes, b"\0")


def new_disk_image(table: Gpt) -> list[tuple[int, bytes]]:
    """Return (byte offset, bytes) of all that makes an empty disk bear the table."""
    return [(0, protective_mbr(table)), *table.primary_image(), *table.backup_image()]
