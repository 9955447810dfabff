"""Sectors in memory that a power cut keeps or loses one by one until they are flushed: partitions and whole disks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from updater.gpt import Gpt, parse
from updater.manifest import BLOCK_BYTES

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Sectors:
    """What lies on a medium for certain, and what was written to each sector since, in order."""

    base: bytes
    pending: Mapping[int, tuple[bytes, ...]]

    def after_cut(self, chosen: Mapping[int, int]) -> bytes:
        """Return what a cut leaves; `chosen` counts for each sector how many of its writes arrived."""
        if not any(chosen.values()):
            return self.base
        left = bytearray(self.base)
        for number, count in chosen.items():
            if count:
                left[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES] = self.pending[number][count - 1]
        return bytes(left)


class _Medium:
    """Bytes of which those that were not flushed may be lost; every change and every flush is told."""

    def __init__(self, name: str, content: bytes, tell: Callable[[str], None], lies: frozenset[str]) -> None:
        self.name = name
        self._now = bytearray(content)
        self._base = bytes(content)
        self._pending: dict[int, tuple[bytes, ...]] = {}
        self._tell = tell
        self._lies = lies
        self.flushed: set[str] = set()

    @property
    def length_bytes(self) -> int:
        return len(self._now)

    def sectors(self) -> Sectors:
        return Sectors(self._base, dict(self._pending))

    def get(self, offset: int, length: int) -> bytes:
        return bytes(self._now[offset : offset + length])

    def put(self, offset: int, data: bytes | memoryview) -> None:
        raw = bytes(data)
        changed = False
        for at in range(0, len(raw), SECTOR_BYTES):
            piece = raw[at : at + SECTOR_BYTES]
            low = offset + at
            # The same bytes again make no new state.
            if self._now[low : low + SECTOR_BYTES] == piece:
                continue
            number = low // SECTOR_BYTES
            self._now[low : low + SECTOR_BYTES] = piece
            self._pending[number] = (*self._pending.get(number, ()), piece)
            changed = True
        if changed:
            self._tell(f"{self.name}: write {len(raw)} bytes at {offset}")

    def flush(self, label: str) -> None:
        label = f"{self.name}: {label}"
        self.flushed.add(label)
        if label in self._lies or not self._pending:
            return
        self._base = bytes(self._now)
        self._pending = {}
        self._tell(f"flush {label}")


class VolatileBlocks:
    """A `Blocks` in memory; `guard` is asked before each write."""

    read_back = "memory"

    def __init__(
        self,
        name: str,
        content: bytes,
        *,
        tell: Callable[[str], None] = lambda effect: None,
        guard: Callable[[], None] = lambda: None,
        lies: frozenset[str] = frozenset(),
    ) -> None:
        """Hold `content`, durable."""
        self._medium = _Medium(name, content, tell, lies)
        self._guard = guard

    @property
    def name(self) -> str:
        """Return what to call it in messages."""
        return self._medium.name

    @property
    def length_bytes(self) -> int:
        """Return the partition's length."""
        return self._medium.length_bytes

    @property
    def flushed(self) -> set[str]:
        """Return the labels of all flushes so far."""
        return self._medium.flushed

    def sectors(self) -> Sectors:
        """Return what is durable and what is not."""
        return self._medium.sectors()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.length_bytes or offset % BLOCK_BYTES or length % BLOCK_BYTES:
            raise ValueError(f"bytes {offset} to {offset + length} of {self.name}")

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`."""
        self._check(offset, length)
        return self._medium.get(offset, length)

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` with the bytes at `offset`."""
        room[:] = self.read(offset, len(room))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`."""
        self._check(offset, len(data))
        self._guard()
        self._medium.put(offset, data)

    def flush(self) -> None:
        """Make all writes durable."""
        caller = sys._getframe(1).f_code
        self._medium.flush(f"{caller.co_name} flushes the partition")

    def close(self) -> None:
        """Stay usable: the partition outlives its users."""


def _nobody(effect: str) -> None:
    """Hear of an effect."""


class VolatileDisk:
    """A whole disk in memory with its partition table; the sectors between the table's copies are not kept."""

    def __init__(
        self,
        length_bytes: int,
        ends: Mapping[int, bytes],
        *,
        tell: Callable[[str], None] = _nobody,
        lies: frozenset[str] = frozenset(),
    ) -> None:
        """Hold the bytes of `ends` by offset: the disk's beginning, and its end."""
        self.name = "the disk"
        self.length_bytes = length_bytes
        self.places = sorted(ends)
        self._parts = [_Medium(f"table at {at}", ends[at], tell, frozenset()) for at in self.places]
        self._lies = lies
        self.flushed: set[str] = set()
        self._table: Gpt | None = _parsed(length_bytes, tuple(ends.items())) if tell is not _nobody else None

    def sectors(self) -> tuple[Sectors, ...]:
        """Return what is durable and what is not, of the beginning and of the end."""
        return tuple(part.sectors() for part in self._parts)

    def _part(self, offset: int, length: int) -> tuple[_Medium, int]:
        for at, part in zip(self.places, self._parts, strict=True):
            if at <= offset and offset + length <= at + part.length_bytes:
                return part, offset - at
        raise AssertionError(f"bytes {offset} to {offset + length} are not where a partition table is")

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`."""
        part, at = self._part(offset, length)
        return part.get(at, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`, in whole sectors."""
        part, at = self._part(offset, len(data))
        self._table = None
        part.put(at, data.ljust(-(-len(data) // SECTOR_BYTES) * SECTOR_BYTES, b"\0"))

    def flush(self) -> None:
        """Make all writes durable."""
        caller = sys._getframe(1).f_code.co_name.strip("_")
        waiting = [*self._waiting()]
        label = f"{caller} flushes {' and '.join(waiting)}"
        if not waiting:
            return
        self.flushed.add(label)
        if label not in self._lies:
            for part in self._parts:
                part.flush(label)

    def _waiting(self) -> Iterator[str]:
        """Yield what of the table is not durable."""
        for copy, part in zip(("primary", "backup"), self._parts, strict=True):
            header = 1 if copy == "primary" else part.length_bytes // SECTOR_BYTES - 1
            waiting = part.sectors().pending.keys()
            if waiting - {header}:
                yield f"the {copy} entries"
            if header in waiting:
                yield f"the {copy} header"

    def table(self) -> Gpt:
        """Return the partition table as it is now."""
        if self._table is None:
            self._table = parse(self.read, self.length_bytes, SECTOR_BYTES)
        return self._table


@functools.lru_cache(maxsize=256)
def _parsed(length_bytes: int, ends: tuple[tuple[int, bytes], ...]) -> Gpt:
    """Parse a table; the same bytes are looked at again and again."""
    disk = VolatileDisk(length_bytes, dict(ends))
    return parse(disk.read, length_bytes, SECTOR_BYTES)
