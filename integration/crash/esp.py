"""What an ESP holds, read at once, so that thousands of states of it can be told apart in little time.

Independent of the code under test, and of any mount. Source: Microsoft's FAT specification, version 1.03.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

_LONG_NAME, _VOLUME, _FOLDER, _ATTRIBUTES = 0x0F, 0x08, 0x10, 0x3F
_MOST_DEPTH = 8

Read = Callable[[int, int], bytes]


class Damaged(ValueError):
    """No firmware could read this ESP, or this file of it."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the ESP as its folder tells of it."""

    path: str
    cluster: int
    length_bytes: int
    read_only: bool


class Esp:
    """The folders and files of one FAT file system, as they were when it was made."""

    def __init__(self, read: Read) -> None:
        """Read the tables and all folders; raise Damaged where that cannot be."""
        self._bytes = read
        sector = read(0, 512)
        if sector[510:512] != b"\x55\xaa":
            raise Damaged("it has no boot sector")
        unit, per_cluster, reserved, tables, roots, small = struct.unpack_from("<HBHBHH", sector, 11)
        table_sectors = struct.unpack_from("<H", sector, 22)[0] or struct.unpack_from("<I", sector, 36)[0]
        total = small or struct.unpack_from("<I", sector, 32)[0]
        if unit not in (512, 1024, 2048, 4096) or not per_cluster or not table_sectors:
            raise Damaged("its boot sector makes no sense")
        root_start = (reserved + tables * table_sectors) * unit
        root_bytes = -(-roots * 32 // unit) * unit
        self.cluster_bytes: int = per_cluster * unit
        self._data_start: int = root_start + root_bytes
        self._is_fat32 = (total - self._data_start // unit) // per_cluster >= 65525
        head = read(0, root_start)
        self._table: array[int] = array("I" if self._is_fat32 else "H")
        self._table.frombytes(head[reserved * unit : (reserved + table_sectors) * unit])
        if sys.byteorder == "big":
            self._table.byteswap()
        digest = blake2b(head, digest_size=16)
        self.files: Mapping[str, File] = {}
        root = self._all(struct.unpack_from("<I", sector, 44)[0]) if self._is_fat32 else read(root_start, root_bytes)
        self.files = {file.path.lower(): file for file in self._walk(root, "", 0, digest)}
        self.structure: bytes = digest.digest()

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's files, in its order."""
        low = f"{folder}/".lower() if folder else ""
        paths = (file.path for key, file in self.files.items() if key.startswith(low))
        return [path[len(low) :] for path in paths if "/" not in path[len(low) :]]

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None when it is absent; raise Damaged when its chain is cut."""
        file = self.files.get(path.lower())
        if file is None:
            return None
        return b"".join(self._bytes(offset, length) for offset, length in self.extents(file))

    def extents(self, file: File) -> list[tuple[int, int]]:
        """Return where a file's bytes lie: offsets in the ESP and lengths; raise Damaged when its chain is cut."""
        left, found = file.length_bytes, []
        for start, count in self._runs(file.cluster) if left else ():
            length = min(left, count * self.cluster_bytes)
            found.append((self._data_start + (start - 2) * self.cluster_bytes, length))
            left -= length
            if not left:
                break
        if left:
            raise Damaged(f"the clusters of {file.path} end {left} bytes too early")
        return found

    def is_owner(self, file: File) -> bool:
        """Tell whether the table says that the file's clusters are in use, to the last one."""
        at, left = file.cluster, -(-file.length_bytes // self.cluster_bytes)
        mask, last = (0x0FFFFFFF, 0x0FFFFFF8) if self._is_fat32 else (0xFFFF, 0xFFF8)
        while left > 0 and 2 <= at < len(self._table):
            at, left = self._table[at] & mask, left - 1
        return not file.length_bytes or (not left and at >= last)

    def _walk(self, raw: bytes, folder: str, depth: int, digest: Any) -> Iterator[File]:
        digest.update(raw)
        for name, attributes, cluster, length in _entries(raw):
            path = f"{folder}{name}"
            if not attributes & _FOLDER:
                yield File(path, cluster, length, bool(attributes & 1))
            elif name not in (".", "..") and depth < _MOST_DEPTH:
                yield from self._walk(self._all(cluster), f"{path}/", depth + 1, digest)

    def _all(self, cluster: int) -> bytes:
        start = self._data_start
        return b"".join(
            self._bytes(start + (first - 2) * self.cluster_bytes, count * self.cluster_bytes)
            for first, count in self._runs(cluster)
        )

    def _runs(self, cluster: int) -> Iterator[tuple[int, int]]:
        """Yield a chain as runs of clusters that follow each other."""
        mask, last = (0x0FFFFFFF, 0x0FFFFFF8) if self._is_fat32 else (0xFFFF, 0xFFF8)
        first = at = cluster
        for _ in range(len(self._table)):
            if not 2 <= at < len(self._table):
                raise Damaged(f"a chain of clusters leads to {at}")
            following = self._table[at] & mask
            if following == at + 1:
                at = following
                continue
            yield first, at - first + 1
            # A chain that runs into a free cluster ends there for every reader that has its bytes by then.
            if following >= last or following < 2:
                return
            first = at = following
        raise Damaged("a chain of clusters does not end")


def _entries(raw: bytes) -> Iterator[tuple[str, int, int, int]]:
    long_name, checksum = "", None
    for at in range(0, len(raw) - 31, 32):
        first, attributes = raw[at], raw[at + 11]
        if first == 0:
            return
        if first == 0xE5:
            long_name = ""
        elif attributes & _ATTRIBUTES == _LONG_NAME:
            letters = raw[at + 1 : at + 11] + raw[at + 14 : at + 26] + raw[at + 28 : at + 32]
            piece = letters.decode("utf-16-le", "replace").partition("\0")[0].rstrip("\uffff")
            long_name, checksum = (piece if first & 0x40 else piece + long_name), raw[at + 13]
        else:
            if not attributes & _VOLUME:
                high, low, length = struct.unpack_from("<H4xHI", raw, at + 20)
                # A long name that a cut left before another file's short one is nobody's.
                own = long_name and checksum == _checksum(raw[at : at + 11])
                name = long_name if own else _short_name(raw[at : at + 32])
                yield name, attributes, high << 16 | low, length
            long_name = ""


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total >> 1) + ((total & 1) << 7) + byte) & 0xFF
    return total


def _short_name(entry: bytes) -> str:
    stem, suffix = entry[:8].rstrip(b" "), entry[8:11].rstrip(b" ")
    # Bits 3 and 4 of byte 12: the stem, or the suffix, was written in lower case.
    stem = stem.lower() if entry[12] & 0x08 else stem
    suffix = suffix.lower() if entry[12] & 0x10 else suffix
    return (stem + (b"." + suffix if suffix else b"")).decode("ascii", "replace")
