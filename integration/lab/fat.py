"""A FAT file system read straight from a disk image, fast enough to watch it while a guest writes to it.

Independent of the code under test, and of any mount. Source: Microsoft's FAT specification, version 1.03.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure

_LONG_NAME = 0x0F
_VOLUME = 0x08
_FOLDER = 0x10
_MOST_CLUSTERS = 1 << 20


class Torn(ValueError):
    """What was read makes no sense: it is not FAT, or it is being rewritten."""


@dataclass(frozen=True, slots=True)
class FatName:
    """One directory entry."""

    name: str
    is_folder: bool
    cluster: int
    length_bytes: int


class FatReader:
    """Reads folders and files of the FAT file system at an offset of an image; names compare without case."""

    def __init__(self, image: Path, offset_bytes: int) -> None:
        """Read the boot sector; raise Torn when it is not one."""
        self._image = image
        self._offset = offset_bytes
        sector = self._read(0, 512)
        if sector[510:512] != b"\x55\xaa":
            raise Torn(f"{image}: no FAT boot sector at byte {offset_bytes}")
        self._sector: int
        self._per_cluster: int
        self._sector, self._per_cluster, reserved, fats, roots, small = struct.unpack_from("<HBHBHH", sector, 11)
        fat_sectors = struct.unpack_from("<H", sector, 22)[0] or struct.unpack_from("<I", sector, 36)[0]
        total = small or struct.unpack_from("<I", sector, 32)[0]
        if self._sector not in (512, 1024, 2048, 4096) or not self._per_cluster or not fat_sectors:
            raise Torn(f"{image}: the FAT boot sector at byte {offset_bytes} is damaged")
        root_sectors = -(-roots * 32 // self._sector)
        self._root_start: int = (reserved + fats * fat_sectors) * self._sector
        self._root_bytes = root_sectors * self._sector
        self._data_start: int = self._root_start + self._root_bytes
        clusters = (total - self._data_start // self._sector) // self._per_cluster
        self._is_fat32 = clusters >= 65525
        if clusters < 4085:
            raise Torn(f"{image}: FAT12 is not for an ESP of this size")
        self._root_cluster = struct.unpack_from("<I", sector, 44)[0] if self._is_fat32 else 0
        self._fat_start = reserved * self._sector
        self._fat_bytes = fat_sectors * self._sector

    def names(self, path: str = "") -> list[str]:
        """Return the names in a folder; an absent folder has none."""
        return [entry.name for entry in self._folder(path) or []]

    def read(self, path: str, *, limit_bytes: int = 1 << 28) -> bytes | None:
        """Return a file's bytes, or None when it is absent."""
        found = self._found(path)
        if found is None or found.is_folder:
            return None
        return self._chain(found.cluster, min(found.length_bytes, limit_bytes))[: found.length_bytes]

    def length_bytes(self, path: str) -> int | None:
        """Return a file's length, or None when it is absent."""
        found = self._found(path)
        return found.length_bytes if found is not None and not found.is_folder else None

    def offset_of(self, path: str, at_byte: int) -> int | None:
        """Return where in the image a byte of a file lies, or None when the file is absent or shorter."""
        cluster = self._cluster_of(path, at_byte)
        return None if cluster is None else self._offset + self._at(cluster) + at_byte % self._cluster_bytes

    def link_sector_of(self, path: str, at_byte: int) -> tuple[int, int] | None:
        """Return where in the image the sector of the first table lies that leads on from a byte of a file.

        It is an offset with a length, or None when the file is absent or shorter.
        """
        cluster = self._cluster_of(path, at_byte)
        if cluster is None:
            return None
        at = self._fat_start + cluster * (4 if self._is_fat32 else 2)
        return self._offset + at - at % self._sector, self._sector

    @property
    def _cluster_bytes(self) -> int:
        return self._sector * self._per_cluster

    def _found(self, path: str) -> FatName | None:
        folder, _, name = path.rpartition("/")
        return next((e for e in self._folder(folder) or [] if e.name.lower() == name.lower()), None)

    def _cluster_of(self, path: str, at_byte: int) -> int | None:
        found = self._found(path)
        if found is None or at_byte >= found.length_bytes:
            return None
        cluster: int | None = found.cluster
        for _ in range(at_byte // self._cluster_bytes):
            cluster = self._next(cluster) if cluster is not None else None
        if cluster is None:
            raise Torn(f"{self._image}: {path} is shorter than its folder says")
        return cluster

    def _folder(self, path: str) -> list[FatName] | None:
        raw = (
            self._chain(self._root_cluster, None) if self._is_fat32 else self._read(self._root_start, self._root_bytes)
        )
        for part in [part for part in path.split("/") if part]:
            found = next((e for e in _entries(raw) if e.is_folder and e.name.lower() == part.lower()), None)
            if found is None:
                return None
            raw = self._chain(found.cluster, None)
        return [entry for entry in _entries(raw) if entry.name not in (".", "..")]

    def _root(self) -> bytes:
        if self._is_fat32:
            return self._chain(self._root_cluster, None)
        return self._read(self._root_start, self._root_bytes)

    def _chain(self, cluster: int, limit: int | None) -> bytes:
        length = self._cluster_bytes
        pieces: list[bytes] = []
        following: int | None = cluster
        while following is not None and following >= 2 and (limit is None or len(pieces) * length < limit):
            if len(pieces) > _MOST_CLUSTERS:
                raise Torn(f"{self._image}: a cluster chain on the ESP does not end")
            pieces.append(self._read(self._at(following), length))
            following = self._next(following)
        return b"".join(pieces)

    def _at(self, cluster: int) -> int:
        return self._data_start + (cluster - 2) * self._cluster_bytes

    def _next(self, cluster: int) -> int | None:
        width, last = (4, 0x0FFFFFF8) if self._is_fat32 else (2, 0xFFF8)
        if (cluster + 1) * width > self._fat_bytes:
            raise Torn(f"{self._image}: a cluster on the ESP lies outside its table")
        # A few bytes of the table at a time: folders are short, and they are looked at while a guest runs.
        raw = self._read(self._fat_start + cluster * width, width)
        value: int = struct.unpack("<I" if self._is_fat32 else "<H", raw)[0] & 0x0FFFFFFF
        return None if value >= last or value < 2 else value

    def _read(self, at: int, length: int) -> bytes:
        file = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(file, length, self._offset + at)
        finally:
            os.close(file)
        if len(data) != length:
            raise Torn(f"{self._image}: the ESP goes on beyond the end of its disk")
        return data


def _entries(raw: bytes) -> list[FatName]:
    found: list[FatName] = []
    long_name = ""
    for at in range(0, len(raw) - 31, 32):
        entry = raw[at : at + 32]
        attributes = entry[11]
        if entry[0] == 0:
            break
        if entry[0] == 0xE5:
            long_name = ""
        elif attributes & 0x3F == _LONG_NAME:
            piece = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", "replace").partition("\0")[0]
            long_name = piece.rstrip("\uffff") + long_name
        else:
            if not attributes & _VOLUME:
                high, low, length = struct.unpack("<H4xHI", entry[20:32])
                name = long_name or _short_name(entry)
                found.append(FatName(name, bool(attributes & _FOLDER), (high << 16) | low, length))
            long_name = ""
    return found


def _short_name(entry: bytes) -> str:
    stem, suffix = entry[:8].rstrip(b" "), entry[8:11].rstrip(b" ")
    # Bits 3 and 4 of byte 12: the stem, or the suffix, was written in lower case.
    stem = stem.lower() if entry[12] & 0x08 else stem
    suffix = suffix.lower() if entry[12] & 0x10 else suffix
    return (stem + (b"." + suffix if suffix else b"")).decode("ascii", "replace")


class WatchedEsp:
    """A `Directory` for looking only, over a FAT file system that a guest may be writing to."""

    def __init__(self, fat: FatReader) -> None:
        """Look through `fat`; what makes no sense raises Torn."""
        self._fat = fat

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        return self._fat.read(path, limit_bytes=limit_bytes)

    def chunks(self, path: str) -> Iterator[bytes]:
        yield self._fat.read(path) or b""

    def names(self, path: str = "") -> list[str]:
        return sorted(self._fat.names(path))

    def size(self, path: str) -> int | None:
        return self._fat.length_bytes(path)

    def free_bytes(self) -> int:
        return 0

    def is_read_only(self, path: str) -> bool:
        return False

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        raise _unwritten(path)

    def replace(self, path: str, content: bytes) -> None:
        raise _unwritten(path)

    def overwrite(self, path: str, content: bytes) -> None:
        raise _unwritten(path)

    def remove(self, path: str) -> None:
        raise _unwritten(path)


def _unwritten(path: str) -> EnvironmentFailure:
    return EnvironmentFailure(f"the lab only looks at {path}", mend="report this", reason="lab-disk")
