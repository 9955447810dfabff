"""The search for what an operation's output has in common with its source, through the HDiffPatch library."""

from __future__ import annotations

from typing import NamedTuple

from updater.errors import EnvironmentFailure
from updater.format.patch import Triple

_MAGIC = b"HDIFF13&\0"
_HEADER_NUMBERS = 11


class Cover(NamedTuple):
    """`length` bytes from `new` of the output resemble those from `old` of the source."""

    old: int
    new: int
    length: int


def triples(source: bytes, output: bytes) -> tuple[list[Triple], bytes, bytes]:
    """Return (triples, diff stream, insert stream) that make `output` from `source`; needs some 9 bytes a source byte.

    Covers that resemble each other byte by byte become bsdiff's scheme: what differs is added, what lies between two
    covers is inserted.
    """
    import numpy as np

    old, new = np.frombuffer(source, np.uint8), np.frombuffer(output, np.uint8)
    rows: list[Triple] = []
    diff: list[bytes] = []
    insert: list[bytes] = []
    last = Cover(0, 0, 0)
    for cover in [*covers(source, output), Cover(-1, len(output), 0)]:
        end = last.new + last.length
        seek = cover.old - last.old - last.length if cover.old >= 0 else 0
        if last.length or cover.new > end or seek:
            rows.append(Triple(last.length, cover.new - end, seek))
        diff.append((new[last.new : end] - old[last.old : last.old + last.length]).tobytes())
        insert.append(output[end : cover.new])
        last = cover
    return rows, b"".join(diff), b"".join(insert)


def covers(source: bytes, output: bytes) -> list[Cover]:
    """Return what HDiffPatch finds, in the output's order, read from its uncompressed format HDIFF13."""
    import hdiffpatch

    raw = hdiffpatch.diff(source, output, None, validate=False, big_cache_match=True)
    if not raw.startswith(_MAGIC):
        raise EnvironmentFailure(
            "the installed hdiffpatch writes a format that is not known here",
            mend="install the version that constraints.txt names",
            reason="tool-unknown",
        )
    reader = _Numbers(raw, len(_MAGIC))
    count = [reader.number() for _ in range(_HEADER_NUMBERS)][2]
    found: list[Cover] = []
    last = Cover(0, 0, 0)
    for _ in range(count):
        old = last.old + last.length + reader.signed()
        new = last.new + last.length + reader.number()
        last = Cover(old, new, reader.number())
        found.append(last)
    return found


class _Numbers:
    """HDiffPatch's numbers: seven bits a byte, the highest first; a sign takes one bit of the first byte."""

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self._at = at

    def number(self) -> int:
        return self._rest(self._next(), 0x80)

    def signed(self) -> int:
        first = self._next()
        magnitude = self._rest(first & 0x7F, 0x40)
        return -magnitude if first & 0x80 else magnitude

    def _rest(self, byte: int, more: int) -> int:
        value = byte & (more - 1)
        while byte & more:
            byte, more = self._next(), 0x80
            value = value << 7 | byte & 0x7F
        return value

    def _next(self) -> int:
        byte = self._raw[self._at]
        self._at += 1
        return byte
