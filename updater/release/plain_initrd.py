"""Initrds compressed otherwise, or not at all, so that the next release's UKI differs little."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from updater.errors import InvalidDocument
from updater.format.compression import zstd
from updater.format.through import even_pieces, pack_frame
from updater.format.transport import Packing

_HEADER_BYTES = 110
_PLAIN = (b"070701", b"070702")
_ZSTD = b"\x28\xb5\x2f\xfd"
_TRAILER = b"TRAILER!!!\0"
# The kernel takes the next archive at multiples of four bytes only; cpio itself pads to 512.
_ALIGNMENT = 512
MOST_PLAIN_BYTES = 512 << 20

REPACKING = Packing(0, 1, 11, worker=False, checksum=True, sized=False)
"""Level 11 takes 28 MiB beside the operations of a delta, and keeps most of what higher levels gain."""


def plain_initrd(raw: bytes, source: str) -> bytes:
    """Return an initrd's archives, each unpacked, in their order; raise InvalidDocument naming `source`.

    An initrd is any number of cpio archives end to end, plain or compressed (the kernel's
    driver-api/early-userspace/buffer-format.rst): microcode comes before the compressed one.
    """
    found = bytearray()
    at = 0
    while at < len(raw):
        if raw[at] == 0:
            at += 1
            continue
        if raw.startswith(_PLAIN, at):
            end = _archive_end(raw, at, source)
            found += raw[at:end]
            at = end
        else:
            content, at = _unpacked(raw, at, source)
            # What was compressed may be several archives as well.
            found += plain_initrd(content, source)
        found += bytes(-len(found) % _ALIGNMENT)
        if len(found) > MOST_PLAIN_BYTES:
            raise _malformed(source, f"it unpacks to more than {MOST_PLAIN_BYTES} bytes")
    return bytes(found)


def zstd_frames(raw: bytes, source: str) -> Iterator[int]:
    """Yield where an initrd's zstd archives begin; raise InvalidDocument naming `source`."""
    at = 0
    while at < len(raw):
        if raw[at] == 0:
            at += 1
        elif raw.startswith(_PLAIN, at):
            at = _archive_end(raw, at, source)
        else:
            if raw.startswith(_ZSTD, at):
                yield at
            _, at = _unpacked(raw, at, source)


def repacked_initrd(raw: bytes, source: str) -> bytes:
    """Return an initrd whose zstd archives are packed as any node can pack them again; all else stays as it is.

    Raises InvalidDocument naming `source`.
    """
    found = bytearray()
    at = 0
    while at < len(raw):
        begin = at
        if raw[at] == 0:
            at += 1
        elif raw.startswith(_PLAIN, at):
            at = _archive_end(raw, at, source)
        else:
            content, at = _unpacked(raw, at, source)
            if raw.startswith(_ZSTD, begin):
                packing = msgspec.structs.replace(REPACKING, content_bytes=len(content))
                found += b"".join(pack_frame(even_pieces([content]), packing))
                continue
        if raw[begin]:
            # The kernel takes a plain archive at multiples of four bytes only, and skips zeros.
            found += bytes(-len(found) % 4)
        found += raw[begin:at]
    return bytes(found)


def write_plain_initrd(initrd: Path, target: Path) -> None:
    """Write an initrd's archives without their compression."""
    target.write_bytes(plain_initrd(initrd.read_bytes(), str(initrd)))


def write_repacked_initrd(initrd: Path, target: Path) -> None:
    """Write an initrd whose zstd archives any node can pack again."""
    target.write_bytes(repacked_initrd(initrd.read_bytes(), str(initrd)))


def _archive_end(raw: bytes, at: int, source: str) -> int:
    """Return where the archive that begins at `at` ends: behind its trailer's record."""
    while raw.startswith(_PLAIN, at):
        header = raw[at : at + _HEADER_BYTES]
        try:
            content, name = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError as error:
            raise _malformed(source, f"the cpio record at byte {at} has no lengths") from error
        begin = at + _HEADER_BYTES
        at = begin + name + -(begin + name) % 4
        if raw[begin : begin + name] == _TRAILER:
            return min(at, len(raw))
        at += content + -(at + content) % 4
    raise _malformed(source, f"a cpio archive breaks off before byte {min(at, len(raw))}")


def _unpacked(raw: bytes, at: int, source: str) -> tuple[bytes, int]:
    """Return (content, where it ends) of the compressed archive at `at`."""
    unpacker = _unpacker(raw[at : at + 6], source, at)
    try:
        content = bytes(unpacker.decompress(raw[at:], MOST_PLAIN_BYTES))
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zstd().ZstdError) as error:
        raise _malformed(source, f"the archive at byte {at} cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise _malformed(source, f"the archive at byte {at} breaks off, or is too large")
    return content, len(raw) - len(unpacker.unused_data)


def _unpacker(magic: bytes, source: str, at: int) -> Any:
    if magic.startswith(_ZSTD):
        return zstd().ZstdDecompressor()
    if magic.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31)
    if magic.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        return lzma.LZMADecompressor()
    if magic.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    raise _malformed(source, f"the archive at byte {at} is neither cpio, zstd, gzip, xz, lzma nor bzip2")


def _malformed(source: str, why: str) -> InvalidDocument:
    return InvalidDocument(source, "", why, "build without --plain-initrd, or make the initrd anew")
