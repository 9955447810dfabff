"""A disk that acknowledges what it does not keep, and loses it when the power goes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from integration.lab.disk import Disk, written_pieces

_BLOCK_BYTES = 4096
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LyingDisk:
    """What some ranges of a disk really hold, whatever it has acknowledged since: `kept` has it at the same offsets."""

    path: Path
    kept: Path
    ranges: tuple[tuple[int, int], ...]

    def lose(self) -> int:
        """Put the ranges of the powered-off disk back to what they really hold; return the bytes that were lost."""
        lost = 0
        with self.path.open("r+b") as disk, self.kept.open("rb") as kept:
            for start, length in self.ranges:
                for at in range(start, start + length, _PIECE_BYTES):
                    size = min(_PIECE_BYTES, start + length - at)
                    now, then = (os.pread(file.fileno(), size, at) for file in (disk, kept))
                    if now != then:
                        os.pwrite(disk.fileno(), then, at)
                        lost += _differing(now, then)
        return lost


def begin_to_lie(disk: Disk, labels: Iterable[str], kept: Path) -> LyingDisk:
    """Return a disk that keeps nothing from now on in the partitions with these labels, or anywhere without one."""
    length = disk.path.stat().st_size
    found = [disk.partition(label) for label in labels]
    ranges = tuple((one.offset_bytes, one.length_bytes) for one in found) or ((0, length),)
    with disk.path.open("rb") as source, kept.open("wb") as target:
        target.truncate(length)
        for start, size in ranges:
            for at, piece in written_pieces(source.fileno(), start, size):
                os.pwrite(target.fileno(), piece, start + at)
    return LyingDisk(disk.path, kept, ranges)


def _differing(now: bytes, then: bytes) -> int:
    blocks = range(0, len(now), _BLOCK_BYTES)
    return sum(_BLOCK_BYTES for at in blocks if now[at : at + _BLOCK_BYTES] != then[at : at + _BLOCK_BYTES])
