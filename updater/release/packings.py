"""The zstd frames inside a UKI, with the packings that make them again byte for byte."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from updater import uki
from updater.errors import InvalidDocument
from updater.format.compression import unpacked, zstd
from updater.format.through import WINDOW_LOG, even_pieces, pack_frame, window_log
from updater.format.transport import FrameWithin, Packing
from updater.release.plain_initrd import zstd_frames

log = logging.getLogger(__name__)

_MAGIC = b"\x28\xb5\x2f\xfd"
_LEAST_BYTES = 1 << 16
_MOST_FRAMES = 8
_PIECE_BYTES = 1 << 17
# What kernels, initrd makers and people use. A worker shows its first bytes after 16 MiB only, so that each wrong level
# takes seconds.
_LEVELS = (22, 19, 15, 11, 9, 3)


def frames_within(content: memoryview, source: str) -> list[tuple[str, FrameWithin]]:
    """Return (section, frame) for the zstd frames of a UKI's kernel and initrds, in the file's order.

    What is no UKI has none.
    """
    try:
        # pefile takes no view.
        parsed = uki.parse(bytes(content), source)
    except InvalidDocument as error:
        log.info("%s: not looked into: %s", source, error)
        return []
    found: list[tuple[str, FrameWithin]] = []
    for section in sorted(parsed.sections, key=lambda section: section.offset_bytes):
        begin, raw = section.offset_bytes, content[section.offset_bytes : section.offset_bytes + section.length_bytes]
        for at in _places(section.name, raw, source):
            length, unpacked_bytes = _measured(raw[at:])
            if length >= _LEAST_BYTES:
                found.append((section.name, FrameWithin(begin + at, length, unpacked_bytes)))
    return found[:_MOST_FRAMES]


def packing_of(frame: memoryview, at: FrameWithin) -> Packing | None:
    """Return how a frame's content becomes the very same frame, found by doing it; None where nothing known does."""
    single, checksum = bool(frame[4] & 32), bool(frame[4] & 4)
    sized = single or bool(frame[4] >> 6)
    window = 10 + (frame[5] >> 3)
    for level in _LEVELS:
        if not single and window != window_log(level):
            continue
        for worker in (False, True):
            packing = Packing(at.at_bytes, at.content_bytes, level, worker, checksum, sized)
            if _makes(packing, frame):
                return packing
    return None


def _makes(packing: Packing, frame: memoryview) -> bool:
    at = 0
    content = unpacked(frame, packing.content_bytes, "a frame", window_log=WINDOW_LOG)
    for piece in pack_frame(even_pieces(content), packing):
        if frame[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    return at == len(frame)


def _places(name: str, raw: memoryview, source: str) -> Iterator[int]:
    if name == ".linux":
        yield from _kernel(raw)
    elif name == ".initrd":
        yield from _initrds(raw, source)


def _kernel(raw: memoryview) -> Iterator[int]:
    """Yield where an x86 kernel's frame begins: the kernel's arch/x86/boot.rst, protocol 2.08 and later."""
    if len(raw) < 0x250 or bytes(raw[0x202:0x206]) != b"HdrS":
        return
    at = ((raw[0x1F1] or 4) + 1) * 512 + int.from_bytes(raw[0x248:0x24C], "little")
    end = at + int.from_bytes(raw[0x24C:0x250], "little")
    if end <= len(raw) and bytes(raw[at : at + 4]) == _MAGIC:
        yield at


def _initrds(raw: memoryview, source: str) -> Iterator[int]:
    try:
        yield from zstd_frames(bytes(raw), source)
    except InvalidDocument as error:
        log.info("%s", error)


def _measured(raw: memoryview) -> tuple[int, int]:
    """Return (length, content's length) of the frame that `raw` begins with; (0, 0) where it is none."""
    module = zstd()
    unpacker: Any = module.ZstdDecompressor(None, {module.DecompressionParameter.window_log_max: WINDOW_LOG})
    content = 0
    try:
        for at in range(0, len(raw), _PIECE_BYTES):
            content += len(unpacker.decompress(raw[at : at + _PIECE_BYTES]))
            if unpacker.eof:
                return min(len(raw), at + _PIECE_BYTES) - len(unpacker.unused_data), content
    except module.ZstdError:
        pass
    return 0, 0
