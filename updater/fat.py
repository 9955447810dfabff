"""FAT file systems, read from bytes: names, sizes, attributes and content of what lies on an ESP.

Source: Microsoft's FAT specification 1.03. Damaged or hostile structures end in EnvironmentFailure, never in a loop.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from updater.errors import EnvironmentFailure

READ_ONLY = 0x01
_VOLUME_LABEL = 0x08
_DIRECTORY = 0x10
_LONG_NAME = 0x0F
_ENTRY = struct.Struct("<11sBB7xHHHHI")
_MOST_DIRECTORY_BYTES = 2 << 20
_PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class FatEntry:
    """A file or folder; `alias` is its 8.3 name, which loaders that know no long names see."""

    name: str
    alias: str
    attributes: int
    first_cluster: int
    length_bytes: int

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a folder."""
        return bool(self.attributes & _DIRECTORY)


class FatReader:
    """One FAT12, FAT16 or FAT32 file system, seen through `read(offset, length)`; nothing is cached for long."""

    def __init__(self, read: Read, name: str) -> None:
        """Read the boot sector; raise EnvironmentFailure when it is not FAT's. `name` is for messages."""
        self._read = read
        self._name = name
        boot = read(0, 512)
        sector, per_cluster, reserved, fats, root_entries, small_total = struct.unpack_from("<HBHBHH", boot, 11)
        fat_sectors = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
        total = small_total or struct.unpack_from("<I", boot, 32)[0]
        sound = (
            sector in (512, 1024, 2048, 4096)
            and per_cluster in (1, 2, 4, 8, 16, 32, 64, 128)
            and reserved
            and 1 <= fats <= 2
            and fat_sectors
            and boot[510:512] == b"\x55\xaa"
        )
        root_sectors = -(-root_entries * 32 // sector) if sound else 0
        data_start = reserved + fats * fat_sectors + root_sectors
        if not sound or data_start >= total:
            raise EnvironmentFailure(
                f"{name} holds no FAT file system",
                mend="make one with mkfs.vfat, or name the right image",
                reason="no-fat",
            )
        self._cluster_bytes = sector * per_cluster
        self._fat_offset = reserved * sector
        self._root = ((reserved + fats * fat_sectors) * sector, root_entries * 32)
        self._data_offset = data_start * sector
        clusters = (total - data_start) // per_cluster
        self._bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
        self._clusters = min(clusters, fat_sectors * sector * 8 // self._bits - 2)
        self._root_cluster = struct.unpack_from("<I", boot, 44)[0] if self._bits == 32 else 0
        self._pages: dict[int, bytes] = {}

    def entries(self, path: str = "") -> list[FatEntry] | None:
        """Return what a folder holds, None when there is no such folder."""
        found = self.find(path) if path else None
        if path and (found is None or not found.is_directory):
            return None
        return list(self._listed(found.first_cluster if found else 0))

    def find(self, path: str) -> FatEntry | None:
        """Return a file or folder, None when it is absent; case does not matter, as on FAT."""
        cluster = 0
        found: FatEntry | None = None
        for part in path.split("/"):
            if found is not None and not found.is_directory:
                return None
            wanted = part.casefold()
            found = next(
                (one for one in self._listed(cluster) if wanted in (one.name.casefold(), one.alias.casefold())), None
            )
            if found is None:
                return None
            cluster = found.first_cluster
        return found

    def chunks(self, entry: FatEntry) -> Iterator[bytes]:
        """Yield a file's bytes in large chunks."""
        left = entry.length_bytes
        for offset, length in self._runs(entry.first_cluster) if left else ():
            for at in range(0, length, _CHUNK_BYTES):
                count = min(_CHUNK_BYTES, length - at, left)
                yield self._read(offset + at, count)
                left -= count
                if not left:
                    return
        if left:
            raise self._damaged(f"{entry.name} ends {left} bytes too early")

    def places(self, entry: FatEntry) -> Iterator[tuple[int, int]]:
        """Yield (byte offset in the file system, length) of each stretch of a file's bytes, in order."""
        left = entry.length_bytes
        for offset, length in self._runs(entry.first_cluster) if left else ():
            yield offset, min(length, left)
            left -= min(length, left)
            if not left:
                return
        if left:
            raise self._damaged(f"{entry.name} ends {left} bytes too early")

    def free_bytes(self) -> int:
        """Return the bytes in clusters that no file owns."""
        length = -(-(self._clusters + 2) * self._bits // 8)
        table = self._read(self._fat_offset, -(-length // 512) * 512)
        if self._bits == 12:
            free = sum(not self._following(cluster) for cluster in range(2, self._clusters + 2))
        else:
            values = memoryview(table[: (self._clusters + 2) * self._bits // 8]).cast("H" if self._bits == 16 else "I")
            mask = 0xFFFF if self._bits == 16 else 0x0FFFFFFF
            free = sum(not value & mask for value in values.tolist()[2:])
        return int(free * self._cluster_bytes)

    def _listed(self, cluster: int) -> Iterator[FatEntry]:
        raw = self._directory(cluster)
        long_name: list[bytes] = []
        checksum = -1
        for at in range(0, len(raw) - 31, 32):
            first = raw[at]
            if not first:
                return
            attributes = raw[at + 11]
            if first == 0xE5:
                long_name = []
            elif attributes & 0x3F == _LONG_NAME:
                if first & 0x40:
                    long_name, checksum = [], raw[at + 13]
                if raw[at + 13] == checksum:
                    long_name.insert(0, raw[at + 1 : at + 11] + raw[at + 14 : at + 26] + raw[at + 28 : at + 32])
            else:
                short, _, case, high, _, _, low, length = _ENTRY.unpack_from(raw, at)
                if not attributes & _VOLUME_LABEL and first != ord("."):
                    alias = _alias(short, case)
                    name = alias
                    if long_name and checksum == _checksum(short):
                        name = b"".join(long_name).decode("utf-16-le", "replace").split("\0", 1)[0]
                    yield FatEntry(name, alias, attributes, (high << 16 if self._bits == 32 else 0) | low, length)
                long_name = []

    def _directory(self, cluster: int) -> bytes:
        if not cluster and self._bits != 32:
            return self._read(*self._root)
        pieces = []
        total = 0
        for offset, length in self._runs(cluster or self._root_cluster):
            total += length
            if total > _MOST_DIRECTORY_BYTES:
                raise self._damaged("a folder is larger than FAT allows")
            pieces.append(self._read(offset, length))
        return b"".join(pieces)

    def _runs(self, cluster: int) -> Iterator[tuple[int, int]]:
        """Yield (byte offset, length) of runs of neighbouring clusters in a chain."""
        start, count, steps = cluster, 0, 0
        while 2 <= cluster < self._clusters + 2:
            count += 1
            steps += 1
            if steps > self._clusters:
                raise self._damaged("a chain of clusters runs in a circle")
            following = self._following(cluster)
            if following != cluster + 1:
                yield self._data_offset + (start - 2) * self._cluster_bytes, count * self._cluster_bytes
                start, count = following, 0
            cluster = following
        if cluster < {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[self._bits]:
            raise self._damaged(f"a chain of clusters leads to cluster {cluster}, which does not exist")

    def _following(self, cluster: int) -> int:
        if self._bits == 12:
            at = cluster * 3 // 2
            value = self._table(at, 1)[0] | self._table(at + 1, 1)[0] << 8
            return value >> 4 if cluster & 1 else value & 0xFFF
        width = self._bits // 8
        return int.from_bytes(self._table(cluster * width, width), "little") & 0x0FFFFFFF

    def _table(self, at: int, length: int) -> bytes:
        page, within = divmod(at, _PAGE_BYTES)
        if page not in self._pages:
            self._pages[page] = self._read(self._fat_offset + page * _PAGE_BYTES, _PAGE_BYTES)
        return self._pages[page][within : within + length]

    def _damaged(self, why: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self._name}: {why}", mend="mend it with fsck.vfat -r", reason="fat-damaged")


def _alias(short: bytes, case: int) -> str:
    if short[0] == 0x05:
        short = b"\xe5" + short[1:]
    base, suffix = (part.decode("cp437").rstrip(" ") for part in (short[:8], short[8:]))
    base = base.lower() if case & 0x08 else base
    suffix = suffix.lower() if case & 0x10 else suffix
    return f"{base}.{suffix}" if suffix else base


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total
