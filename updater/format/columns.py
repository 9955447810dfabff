"""Tables in columns of little-endian numbers: how each index of the release format lies in its file."""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Iterable

from updater.errors import InvalidDocument, Untrusted
from updater.format.transport import Blob, Index

MAGIC_BYTES = 8


class Reader:
    """Takes a table apart from its first byte to its last; raises InvalidDocument naming the file for any misfit."""

    def __init__(self, raw: bytes, what: str, magic: bytes) -> None:
        """Read `raw`, called `what` in messages, which must begin with `magic`."""
        self._view = memoryview(raw)
        self._at = 0
        self.what = what
        if bytes(self._take(MAGIC_BYTES)) != magic:
            raise self.malformed("it does not begin as this kind of table, or has a newer format")

    def number(self, least: int, most: int, name: str) -> int:
        """Return a 64-bit number; refuse one outside `least` to `most`."""
        (value,) = struct.unpack("<Q", self._take(8))
        if not least <= value <= most:
            raise self.malformed(f"{name} is {value}, not from {least} to {most}")
        return int(value)

    def column(self, count: int) -> array[int]:
        """Return a column of `count` 32-bit numbers."""
        found = array("I")
        found.frombytes(self._take(count * 4))
        if sys.byteorder == "big":
            found.byteswap()
        return found

    def octets(self, count: int) -> bytes:
        """Return `count` bytes."""
        return bytes(self._take(count))

    def end(self) -> None:
        """Refuse bytes after the last column."""
        if self._at != len(self._view):
            raise self.malformed(f"{len(self._view) - self._at} bytes follow its end")

    def malformed(self, why: str) -> InvalidDocument:
        """Return the error for a table that makes no sense."""
        return malformed(self.what, why)

    def _take(self, count: int) -> memoryview:
        if count > len(self._view) - self._at:
            raise self.malformed("it ends before its last column")
        self._at += count
        return self._view[self._at - count : self._at]


def encoded(magic: bytes, numbers: Iterable[int], columns: Iterable[Iterable[int] | bytes]) -> bytes:
    """Return a table: its magic, 64-bit numbers, then columns of 32-bit numbers or of bytes."""
    assert len(magic) == MAGIC_BYTES
    found = [magic, *(struct.pack("<Q", number) for number in numbers)]
    for column in columns:
        if isinstance(column, bytes):
            found.append(column)
            continue
        values = array("I", column)
        if sys.byteorder == "big":
            values.byteswap()
        found.append(values.tobytes())
    return b"".join(found)


def opened(raw: bytes, index: Index, what: str) -> bytes:
    """Return an index's content: hashed first, then unpacked; raise Untrusted (`wrong-bytes`) or InvalidDocument."""
    require_digest(raw, index.length_bytes, bytes.fromhex(index.sha256), what)
    if index.length_bytes == index.content_bytes:
        return raw
    from updater.format.compression import unpack

    return unpack(raw, index.content_bytes, what)


def require_digest(raw: bytes | memoryview, length_bytes: int, sha256: bytes, what: str) -> None:
    """Refuse bytes that are not those which the signed manifest pins; raise Untrusted (`wrong-bytes`)."""
    if len(raw) != length_bytes or hashlib.sha256(raw).digest() != sha256:
        raise Untrusted(
            f"{what}: what was served is not what the signed manifest pins",
            mend="use another mirror, or publish the release there again; nothing of it was used",
            reason="wrong-bytes",
        )


def malformed(what: str, why: str) -> InvalidDocument:
    """Return the error for a file that its publisher signed, and that makes no sense nevertheless."""
    return InvalidDocument(what, "", why, "publish the release anew")


def pinned(raw: bytes) -> Blob:
    """Return the pin of a file."""
    return Blob(len(raw), hashlib.sha256(raw).hexdigest())
