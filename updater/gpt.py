"""GUID partition tables as values: parsed from hostile bytes, changed, and serialised again.

Source: UEFI 2.10, chapter 5.3. Firmware (EDK2) uses the backup copy when the primary is damaged, and restores the
primary from it. Linux does not: without `gpt` on its command line a damaged primary means no partitions at all
(block/partitions/efi.c, find_valid_gpt). A write that is cut in half must therefore leave a valid *primary*. An entry
array and the header with its checksum lie in different sectors, so they cannot change as one; but a header may point
at an array elsewhere. Where there is room before the first usable sector, the changed array goes beside the one in
use, and the one sector of the header then switches to it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from uuid import UUID

from updater.errors import EnvironmentFailure

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE = b"EFI PART"
_REVISION = 0x00010000
_MOST_ENTRIES = 1024
_NIL = UUID(int=0)
_MEND = "restore the table from its other copy or a backup with sgdisk; nothing was changed"

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Partition:
    """One used entry; `number` counts from 1, LBAs are inclusive."""

    number: int
    type_guid: UUID
    unique_guid: UUID
    first_lba: int
    last_lba: int
    name: str
    attributes: int
    sector_bytes: int

    @property
    def offset_bytes(self) -> int:
        """Return where the partition begins on its disk."""
        return self.first_lba * self.sector_bytes

    @property
    def length_bytes(self) -> int:
        """Return the partition's length."""
        return (self.last_lba - self.first_lba + 1) * self.sector_bytes


@dataclass(frozen=True, slots=True)
class Gpt:
    """A disk's partition table as its readers see it: the primary copy where that is valid, else the backup.

    `primary_ok` and `backup_ok` say which copies were valid when it was parsed; `consistent` that both were, and said
    the same. A changed value is a new one; nothing is written but by `partition.write_table`.
    """

    disk_guid: UUID
    sector_bytes: int
    disk_sectors: int
    first_usable_lba: int
    last_usable_lba: int
    partitions: tuple[Partition, ...]
    primary_ok: bool
    backup_ok: bool
    consistent: bool
    entries: bytes = field(repr=False)
    primary_array_lba: int
    backup_array_lba: int
    backup_lba: int
    spare_array_lba: int | None

    def partition(self, number: int) -> Partition:
        """Return a partition; raise EnvironmentFailure when the table has none of this number."""
        for partition in self.partitions:
            if partition.number == number:
                return partition
        raise EnvironmentFailure(
            f"the partition table has no partition {number}",
            mend="check that the configured layout is this disk's",
            reason="no-partition",
        )

    def named(self, name: str) -> Partition | None:
        """Return the partition of this label, None when there is none; raise EnvironmentFailure for two."""
        found = [partition for partition in self.partitions if partition.name == name]
        if len(found) > 1:
            raise EnvironmentFailure(
                f"partitions {found[0].number} and {found[1].number} are both labelled {name!r}",
                mend="rename one of them with sgdisk -c",
                reason="ambiguous-label",
            )
        return found[0] if found else None

    def identified(self, unique_guid: UUID) -> Partition | None:
        """Return the partition of this PARTUUID, None when there is none."""
        return next((found for found in self.partitions if found.unique_guid == unique_guid), None)

    def with_partition(
        self, number: int, *, unique_guid: UUID | None = None, name: str | None = None, attributes: int | None = None
    ) -> Gpt:
        """Return the table with one entry changed; None leaves a field as it is.

        Raises EnvironmentFailure when there is no such partition, ValueError for a name longer than 36 UTF-16 units
        or a PARTUUID that another partition bears.
        """
        self.partition(number)
        if unique_guid is not None:
            other = self.identified(unique_guid)
            if unique_guid == _NIL or (other is not None and other.number != number):
                raise ValueError(f"PARTUUID {unique_guid} is not free for partition {number}")
        at = (number - 1) * _ENTRY.size
        kind, unique, first, last, flags, label = _ENTRY.unpack_from(self.entries, at)
        if name is not None:
            label = name.encode("utf-16-le")
            if len(label) > 72 or "\0" in name:
                raise ValueError(f"{name!r} does not fit a partition's label")
        changed = _ENTRY.pack(
            kind,
            unique if unique_guid is None else unique_guid.bytes_le,
            first,
            last,
            flags if attributes is None else attributes,
            label,
        )
        entries = self.entries[:at] + changed + self.entries[at + _ENTRY.size :]
        return replace(self, entries=entries, partitions=_partitions(entries, self), consistent=False)

    def with_new_partition(
        self,
        number: int,
        *,
        type_guid: UUID,
        unique_guid: UUID,
        offset_bytes: int,
        length_bytes: int,
        name: str,
        attributes: int = 0,
    ) -> Gpt:
        """Return the table with a partition in the free entry `number`.

        Raises ValueError when offset or length is not in whole sectors, EnvironmentFailure when it cannot lie there.
        """
        if offset_bytes % self.sector_bytes or length_bytes % self.sector_bytes or length_bytes < 1:
            raise ValueError(f"partition {number} does not lie in whole sectors of {self.sector_bytes} bytes")
        first = offset_bytes // self.sector_bytes
        last = first + length_bytes // self.sector_bytes - 1
        label = name.encode("utf-16-le")
        at = (number - 1) * _ENTRY.size
        if any(self.entries[at : at + _ENTRY.size]) or len(label) > 72:
            raise ValueError(f"entry {number} is not free, or {name!r} does not fit a partition's label")
        entry = _ENTRY.pack(type_guid.bytes_le, unique_guid.bytes_le, first, last, attributes, label)
        entries = self.entries[:at] + entry + self.entries[at + _ENTRY.size :]
        return replace(self, entries=entries, partitions=_partitions(entries, self), consistent=False)

    def primary_image(self) -> list[tuple[int, bytes]]:
        """Return (byte offset, bytes) of the primary copy's array and then its header, to be flushed one by one."""
        lba = 2
        if self.primary_ok:
            lba = self.primary_array_lba if self.spare_array_lba is None else self.spare_array_lba
        return [self._array(lba), self._header(1, self.backup_lba, lba)]

    def backup_image(self) -> list[tuple[int, bytes]]:
        """Return (byte offset, bytes) of the backup copy's array and then its header, to be flushed one by one."""
        return [self._array(self.backup_array_lba), self._header(self.backup_lba, 1, self.backup_array_lba)]

    def continues(self, older: Gpt) -> bool:
        """Tell whether this is `older` with nothing changed but names, PARTUUIDs and attributes."""
        return self.disk_guid == older.disk_guid and _shape(self.entries) == _shape(older.entries)

    def with_entries_of(self, changed: Gpt) -> Gpt:
        """Return what the disk says of the copies' places and health, with the entries of `changed`."""
        return replace(self, entries=changed.entries, partitions=changed.partitions, consistent=False)

    def _array(self, lba: int) -> tuple[int, bytes]:
        length = _sectors(len(self.entries), self.sector_bytes) * self.sector_bytes
        return lba * self.sector_bytes, self.entries.ljust(length, b"\0")

    def _header(self, lba: int, other_lba: int, array_lba: int) -> tuple[int, bytes]:
        def packed(checksum: int) -> bytes:
            return _HEADER.pack(
                _SIGNATURE,
                _REVISION,
                _HEADER.size,
                checksum,
                0,
                lba,
                other_lba,
                self.first_usable_lba,
                self.last_usable_lba,
                self.disk_guid.bytes_le,
                array_lba,
                len(self.entries) // _ENTRY.size,
                _ENTRY.size,
                zlib.crc32(self.entries),
            )

        return lba * self.sector_bytes, packed(zlib.crc32(packed(0))).ljust(self.sector_bytes, b"\0")


def empty_table(disk_guid: UUID, disk_bytes: int, sector_bytes: int = 512) -> Gpt:
    """Return the table of a new disk: 128 entries, the first MiB kept free of partitions."""
    sectors = disk_bytes // sector_bytes
    array = _sectors(128 * _ENTRY.size, sector_bytes)
    return Gpt(
        disk_guid=disk_guid,
        sector_bytes=sector_bytes,
        disk_sectors=sectors,
        first_usable_lba=(1 << 20) // sector_bytes,
        last_usable_lba=sectors - 2 - array,
        partitions=(),
        primary_ok=False,
        backup_ok=False,
        consistent=False,
        entries=bytes(128 * _ENTRY.size),
        primary_array_lba=2,
        backup_array_lba=sectors - 1 - array,
        backup_lba=sectors - 1,
        spare_array_lba=None,
    )


def parse(read: Read, disk_bytes: int, sector_bytes: int | None = None) -> Gpt:
    """Parse both copies of a disk's table as hostile input, through `read(offset, length)` of whole sectors.

    `sector_bytes` is 512 or 4096; None tries both, as an image file does not tell. Raises EnvironmentFailure (reason
    `gpt-invalid`) when neither copy is valid, or when the valid one describes partitions that cannot be.
    """
    complaints: list[str] = []
    for size in (512, 4096) if sector_bytes is None else (sector_bytes,):
        sectors = disk_bytes // size
        if sectors < 6:
            continue
        primary = _copy(read, size, sectors, 1)
        backup_lba = sectors - 1
        if isinstance(primary, _Copy) and primary.last_usable_lba < primary.other_lba < sectors:
            backup_lba = primary.other_lba
        backup = _copy(read, size, sectors, backup_lba)
        if isinstance(primary, _Copy):
            return _gpt(read, size, sectors, backup_lba, primary, backup if isinstance(backup, _Copy) else None)
        if isinstance(backup, _Copy):
            return _gpt(read, size, sectors, backup_lba, None, backup)
        complaints.append(f"with sectors of {size} bytes the primary {primary}, the backup {backup}")
    raise _invalid(f"this disk has no valid GUID partition table: {'; '.join(complaints) or 'it is too small'}")


@dataclass(frozen=True, slots=True)
class _Copy:
    other_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: UUID
    array_lba: int
    entries: bytes

    def says_the_same_as(self, other: _Copy) -> bool:
        mine = (self.first_usable_lba, self.last_usable_lba, self.disk_guid, self.entries)
        return mine == (other.first_usable_lba, other.last_usable_lba, other.disk_guid, other.entries)


def _copy(read: Read, size: int, sectors: int, lba: int) -> _Copy | str:
    """Return the copy whose header lies at `lba`, or why it is none."""
    raw = read(lba * size, size)
    header = _HEADER.unpack_from(raw)
    signature, revision, header_bytes, checksum, _, own_lba, other_lba, first, last, disk, array_lba = header[:11]
    count, entry_bytes, array_checksum = header[11:]
    if signature != _SIGNATURE:
        return "has no signature"
    if revision != _REVISION or not _HEADER.size <= header_bytes <= size:
        return "has an unknown format"
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:header_bytes]) != checksum:
        return "has a header whose checksum is wrong"
    if own_lba != lba:
        return f"says that it lies at sector {own_lba}, not {lba}"
    # Linux takes no other entry size.
    if entry_bytes != _ENTRY.size or not 0 < count <= _MOST_ENTRIES:
        return f"has {count} entries of {entry_bytes} bytes"
    if not 2 <= first <= last < sectors:
        return f"lets partitions lie from sector {first} to {last} of {sectors}"
    length = _sectors(count * entry_bytes, size)
    low, high = (2, first) if lba == 1 else (last + 1, lba)
    if not low <= array_lba <= high - length:
        return f"has its entries at sector {array_lba}, outside sectors {low} to {high - 1}"
    entries = read(array_lba * size, length * size)[: count * entry_bytes]
    if zlib.crc32(entries) != array_checksum:
        return "has entries whose checksum is wrong"
    return _Copy(other_lba, first, last, UUID(bytes_le=disk), array_lba, entries)


def _gpt(read: Read, size: int, sectors: int, backup_lba: int, primary: _Copy | None, backup: _Copy | None) -> Gpt:
    used = primary or backup
    assert used is not None
    length = _sectors(len(used.entries), size)
    if backup_lba - length <= used.last_usable_lba or 2 + length > used.first_usable_lba:
        raise _invalid("the partition table leaves no room for its own copies")
    table = Gpt(
        disk_guid=used.disk_guid,
        sector_bytes=size,
        disk_sectors=sectors,
        first_usable_lba=used.first_usable_lba,
        last_usable_lba=used.last_usable_lba,
        partitions=(),
        primary_ok=primary is not None,
        backup_ok=backup is not None,
        consistent=primary is not None and backup is not None and primary.says_the_same_as(backup),
        entries=used.entries,
        primary_array_lba=primary.array_lba if primary else 2,
        # A backup of another shape is not where ours will go.
        backup_array_lba=backup.array_lba
        if backup and len(backup.entries) == len(used.entries) and backup.array_lba > used.last_usable_lba
        else backup_lba - length,
        backup_lba=backup_lba,
        spare_array_lba=None,
    )
    return replace(
        table, partitions=_partitions(used.entries, table), spare_array_lba=_spare_array_lba(read, table, length)
    )


def _spare_array_lba(read: Read, table: Gpt, length: int) -> int | None:
    """Return where a second entry array may lie before the first usable sector, None when there is no room."""
    if table.primary_array_lba >= 2 + length:
        return 2
    lba = table.primary_array_lba + length
    if lba + length > table.first_usable_lba:
        return None
    # Some boards keep firmware in this gap: it is ours when it is empty, or holds an array that we left.
    raw = read(lba * table.sector_bytes, length * table.sector_bytes)[: len(table.entries)]
    return lba if not any(raw) or _shape(raw) == _shape(table.entries) else None


def _partitions(entries: bytes, table: Gpt) -> tuple[Partition, ...]:
    """Return the used entries; raise EnvironmentFailure for overlaps, impossible places and doubled PARTUUIDs."""
    found: list[Partition] = []
    for index, (kind, unique, first, last, flags, label) in enumerate(_ENTRY.iter_unpack(entries)):
        if not any(kind):
            continue
        number = index + 1
        if not table.first_usable_lba <= first <= last <= table.last_usable_lba:
            raise _invalid(f"partition {number} lies at sectors {first} to {last}, outside the usable ones")
        text = label.decode("utf-16-le", "replace").split("\0", 1)[0]
        guids = (UUID(bytes_le=kind), UUID(bytes_le=unique))
        found.append(Partition(number, *guids, first, last, text, flags, table.sector_bytes))
    ordered = sorted(found, key=lambda partition: partition.first_lba)
    for lower, higher in pairwise(ordered):
        if higher.first_lba <= lower.last_lba:
            raise _invalid(f"partitions {lower.number} and {higher.number} overlap")
    seen: dict[UUID, int] = {}
    for partition in found:
        if partition.unique_guid in seen:
            raise _invalid(
                f"partitions {seen[partition.unique_guid]} and {partition.number} both have the PARTUUID "
                f"{partition.unique_guid}"
            )
        seen[partition.unique_guid] = partition.number
    return tuple(found)


def _shape(entries: bytes) -> list[tuple[bytes, int, int]]:
    """Return what of an entry array never changes here: types and places."""
    return [(kind, first, last) for kind, _, first, last, _, _ in _ENTRY.iter_unpack(entries)]


def _sectors(length_bytes: int, size: int) -> int:
    return -(-length_bytes // size)


def _invalid(why: str) -> EnvironmentFailure:
    return EnvironmentFailure(why, mend=_MEND, reason="gpt-invalid")
