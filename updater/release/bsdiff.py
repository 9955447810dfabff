"""The search for bsdiff's triples, through the bsdiff4 library."""

from __future__ import annotations

import struct

from updater.format.patch import Triple

_SIGN = 1 << 63


def triples(source: bytes, output: bytes) -> tuple[list[Triple], bytes, bytes]:
    """Return (triples, diff stream, insert stream) that make `output` from `source`; needs 17 bytes a source byte."""
    from bsdiff4 import core

    control, diff, insert = core.diff(source, output)
    rows = struct.iter_unpack("<QQQ", control)
    return [Triple(_number(add), _number(take), _number(seek)) for add, take, seek in rows], diff, insert


def _number(raw: int) -> int:
    # bsdiff's numbers are a sign and a magnitude.
    return -(raw ^ _SIGN) if raw & _SIGN else raw
