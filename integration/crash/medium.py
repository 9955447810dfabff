"""A disk in pieces, one file for each region, that can take writes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

from integration.crash.epochs import Kept
from integration.crash.writelog import Record

_BLOCK_BYTES = 4096
_ZERO = bytes(_BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the disk: its name and the bytes that it covers."""

    name: str
    offset: int
    length_bytes: int

    @property
    def end(self) -> int:
        """Return the first byte after it."""
        return self.offset + self.length_bytes


Undo = list[tuple[int, bytes]]


class Medium:
    """The regions of a disk, each in its own file, and a fingerprint of what each holds; a context manager.

    Two media of the same base have the same fingerprint of a region exactly when they hold the same there (but for a
    collision of 64-bit hashes).
    """

    def __init__(self, folder: Path, regions: Sequence[Region]) -> None:
        """Open the files in `folder`, one for each region, which cover the disk without a gap."""
        self.folder = folder
        self.regions = tuple(regions)
        self.prints = dict.fromkeys((region.name for region in regions), 0)
        self._changed: dict[str, dict[int, int]] = {region.name: {} for region in regions}
        self._files = {region.name: os.open(self.path(region.name), os.O_RDWR | os.O_CLOEXEC) for region in regions}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            os.close(file)

    def path(self, name: str) -> Path:
        """Return the file of a region."""
        return self.folder / f"{name}.img"

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk."""
        return b"".join(
            os.pread(self._files[region.name], size, at - region.offset)
            for region, at, size in self._parts(offset, length)
        )

    def reader(self, name: str) -> Callable[[int, int], bytes]:
        """Return what reads a region: bytes from an offset in it, of a length."""
        file = self._files[name]
        return lambda offset, length: os.pread(file, length, offset)

    def print_of(self, name: str, extents: Iterable[tuple[int, int]]) -> int:
        """Return a fingerprint of the blocks of a region that these byte ranges touch; 0 when none ever changed."""
        changed = self._changed[name]
        found = 0
        for offset, length in extents:
            low, high = offset // _BLOCK_BYTES, -(-(offset + length) // _BLOCK_BYTES)
            blocks = range(low, high)
            for block in blocks if len(blocks) < len(changed) else [one for one in changed if low <= one < high]:
                found ^= changed.get(block, 0)
        return found

    def put(self, offset: int, data: bytes) -> Undo:
        """Write bytes; return what puts the old ones back."""
        undo: Undo = []
        self._put(offset, memoryview(data), undo)
        return undo

    def keep(self, kept: Iterable[Kept], content: Callable[[Record], bytes]) -> Undo:
        """Write what was kept, in order; return what puts it back."""
        undo: Undo = []
        for item in kept:
            data = memoryview(content(item.write))
            for start, length in item.ranges:
                self._put(item.write.offset + start, data[start : start + length], undo)
        return undo

    def take_back(self, undo: Undo) -> None:
        """Write the old bytes back, last first."""
        for offset, old in reversed(undo):
            self._put(offset, memoryview(old), None)

    def freeze(self, folder: Path, disk_bytes: int, store_bytes: int) -> tuple[Path, Path]:
        """Write the disk and the variable store behind it into two files in `folder`; return both."""
        folder.mkdir(parents=True, exist_ok=True)
        disk, store = folder / "cut.raw", folder / "cut.fd"
        self._assemble(disk, disk_bytes)
        store.write_bytes(self.read(disk_bytes, store_bytes))
        return disk, store

    def _assemble(self, target: Path, length_bytes: int) -> None:
        with target.open("wb") as out:
            out.truncate(length_bytes)
            for region in self.regions:
                if region.offset < length_bytes:
                    _copy_into(self.path(region.name), out.fileno(), region.offset)

    def _parts(self, offset: int, length: int) -> Iterable[tuple[Region, int, int]]:
        end = offset + length
        for region in self.regions:
            low, high = max(offset, region.offset), min(end, region.end)
            if low < high:
                yield region, low, high - low

    def _put(self, offset: int, data: memoryview, undo: Undo | None) -> None:
        for region, at, size in self._parts(offset, len(data)):
            file, inside = self._files[region.name], at - region.offset
            # Fingerprints are of whole blocks.
            low = inside // _BLOCK_BYTES * _BLOCK_BYTES
            high = min(-(-(inside + size) // _BLOCK_BYTES) * _BLOCK_BYTES, region.length_bytes)
            before = os.pread(file, high - low, low)
            new = data[at - offset : at - offset + size]
            old = before[inside - low : inside - low + size]
            if old == new:
                continue
            if undo is not None:
                undo.append((at, old))
            os.pwrite(file, new, inside)
            after = before[: inside - low] + bytes(new) + before[inside - low + size :]
            self.prints[region.name] ^= self._reprint(region.name, low, before, after)

    def _reprint(self, name: str, low: int, before: bytes, after: bytes) -> int:
        """Note what each block's change is, against the base; return the change of the region's fingerprint."""
        changed = self._changed[name]
        total = 0
        for at in range(0, len(before), _BLOCK_BYTES):
            old, new = before[at : at + _BLOCK_BYTES], after[at : at + _BLOCK_BYTES]
            if old == new:
                continue
            block = (low + at) // _BLOCK_BYTES
            difference = _print(old, low + at) ^ _print(new, low + at)
            total ^= difference
            left = changed.get(block, 0) ^ difference
            if left:
                changed[block] = left
            else:
                changed.pop(block, None)
        return total


def split_disk(source: Path, folder: Path, regions: Sequence[Region]) -> None:
    """Cut a disk image into one sparse file for each region."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for region in regions:
            with (folder / f"{region.name}.img").open("wb") as out:
                out.truncate(region.length_bytes)
                for at, data in _data_in(file, region.offset, region.end):
                    os.pwrite(out.fileno(), data, at - region.offset)
    finally:
        os.close(file)


def _copy_into(source: Path, target: int, offset: int) -> None:
    with source.open("rb") as file:
        for at, data in _data_in(file.fileno(), 0, source.stat().st_size):
            os.pwrite(target, data, offset + at)


def _data_in(file: int, start: int, end: int) -> Iterable[tuple[int, bytes]]:
    """Yield the pieces of a sparse file between two offsets that hold anything."""
    at = start
    while at < end:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return
        hole = os.lseek(file, at, os.SEEK_HOLE)
        while at < min(hole, end):
            data = os.pread(file, min(1 << 20, hole - at, end - at), at)
            if data.count(0) != len(data):
                yield at, data
            at += len(data)


def _print(block: bytes, offset: int) -> int:
    if block == _ZERO:
        return 0
    place = offset.to_bytes(16, "little")
    return int.from_bytes(blake2b(block, digest_size=8, salt=place).digest(), "little")
