"""The log in which QEMU's block layer keeps every write, flush and discard of a guest, in the order they completed.

Source: the kernel's Documentation/admin-guide/device-mapper/log-writes.rst, whose format QEMU's `blklogwrites` uses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from updater.errors import EnvironmentFailure

MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_KNOWN = _FLUSH | _FUA | _DISCARD | _MARK


@dataclass(frozen=True, slots=True)
class Record:
    """One request: bytes at `offset` of the disk, whose content lies at `content_at` of the log.

    A flush has no bytes; a discard (and a write of zeros) has a length but no content: `content_at` is None.
    """

    number: int
    offset: int
    length_bytes: int
    content_at: int | None
    flushes: bool
    forced: bool


class WriteLog:
    """A log of writes, open for reading; a context manager."""

    def __init__(self, path: Path) -> None:
        """Read the log's head; raise EnvironmentFailure when it is none."""
        self.path = path
        self._file = path.open("rb")
        magic, version, self.count, self.sector_bytes = _SUPER.unpack(self._file.read(_SUPER.size))
        if magic != MAGIC or version != 1 or self.sector_bytes < 512:
            self._file.close()
            raise EnvironmentFailure(f"{path} is no log of writes", mend="record it anew", reason="lab-log")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def records(self) -> Iterator[Record]:
        """Yield every request that the log's head counts; raise EnvironmentFailure for an entry that cannot be."""
        at, end = self.sector_bytes, self.path.stat().st_size
        for number in range(self.count):
            raw = os.pread(self._file.fileno(), _ENTRY.size, at)
            if len(raw) != _ENTRY.size:
                raise self._broken(number)
            sector, sectors, flags, content_bytes = _ENTRY.unpack(raw)
            at += self.sector_bytes
            length = sectors * self.sector_bytes
            if flags & ~_KNOWN or at + content_bytes > end:
                raise self._broken(number)
            if flags & _MARK:
                at += _rounded(content_bytes, self.sector_bytes)
                continue
            # The kernel's log says how long the content is, QEMU's leaves that at 0. A discard brings none.
            content = 0 if flags & _DISCARD else length
            if content_bytes not in (0, content) or at + content > end:
                raise self._broken(number)
            yield Record(
                number,
                sector * self.sector_bytes,
                length,
                at if content else None,
                bool(flags & _FLUSH),
                bool(flags & _FUA),
            )
            at += content

    def content(self, record: Record) -> bytes:
        """Return a write's bytes; zeros for a discard, which a disk may answer so."""
        if record.content_at is None:
            return bytes(record.length_bytes)
        return os.pread(self._file.fileno(), record.length_bytes, record.content_at)

    def _broken(self, number: int) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"entry {number} of {self.path} cannot be: the log was cut off", mend="record it anew", reason="lab-log"
        )


def _rounded(length: int, unit: int) -> int:
    return -(-length // unit) * unit
