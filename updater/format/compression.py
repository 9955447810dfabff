"""zstd under bounds: nothing is unpacked beyond its declared length or with more memory than declared."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from updater.errors import InvalidDocument

if TYPE_CHECKING:
    from types import ModuleType

PIECE_BYTES = 1 << 18
MOST_WINDOW_LOG = 25


def zstd() -> ModuleType:
    """Return Python's zstd module: the standard library's from 3.14 on, its backport below."""
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        from backports import zstd as module
    return module


def unpack(raw: bytes | memoryview, content_bytes: int, what: str, *, prefix: bytes = b"") -> bytes:
    """Return one zstd frame's content; raise InvalidDocument unless it has exactly `content_bytes` bytes."""
    window_log = max(10, (content_bytes + len(prefix)).bit_length())
    return b"".join(unpacked(raw, content_bytes, what, window_log=window_log, prefix=prefix))


def unpacked(
    raw: bytes | memoryview, content_bytes: int, what: str, *, window_log: int = MOST_WINDOW_LOG, prefix: bytes = b""
) -> Iterator[bytes]:
    """Yield one zstd frame's content in pieces of at most 256 KiB; raise InvalidDocument for any other length."""
    return unpacked_stream((raw,), content_bytes, what, window_log=window_log, prefix=prefix)


def unpacked_stream(
    chunks: Iterable[bytes | memoryview],
    content_bytes: int,
    what: str,
    *,
    window_log: int = MOST_WINDOW_LOG,
    prefix: bytes = b"",
) -> Iterator[bytes]:
    """Yield the content of one zstd frame that comes in chunks, in pieces of at most 256 KiB.

    A chunk is asked for when the one before it is used up. Raises InvalidDocument for content of any other length.
    """
    module = zstd()
    options = {module.DecompressionParameter.window_log_max: min(window_log, 31)}
    dictionary = module.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= _SHORTEST_PREFIX else None
    unpacker: Any = module.ZstdDecompressor(dictionary, options)
    left = content_bytes
    for chunk in chunks:
        if unpacker.eof:
            raise _malformed(what, "it goes on behind the end of its frame")
        # A large chunk is not handed over whole: what is not used at once would be copied.
        view = memoryview(chunk)
        for at in range(0, len(view), _FEED_BYTES):
            fed: bytes | memoryview = view[at : at + _FEED_BYTES]
            while not unpacker.eof:
                try:
                    # One byte more than is due shows a frame that goes on.
                    piece = unpacker.decompress(fed, min(PIECE_BYTES, left + 1))
                except module.ZstdError as error:
                    raise _malformed(what, f"it is not the zstd frame that it should be: {error}") from error
                fed = b""
                left -= len(piece)
                if left < 0:
                    raise _malformed(what, f"it unpacks to more than {content_bytes} bytes")
                if piece:
                    yield piece
                if unpacker.needs_input:
                    break
            if unpacker.eof and (unpacker.unused_data or at + _FEED_BYTES < len(view)):
                raise _malformed(what, "it goes on behind the end of its frame")
        # While the next chunk is waited for, nothing of this one stays in memory.
        del chunk, view
    if not unpacker.eof:
        raise _malformed(what, "it ends in the middle of its frame")
    if left:
        raise _malformed(what, f"it does not unpack to {content_bytes} bytes")


def pack(content: bytes | memoryview, level: int, *, window_log: int = 0, prefix: bytes = b"") -> bytes:
    """Return `content` as one zstd frame; with a prefix, matches may reach into it (like `zstd --patch-from`)."""
    module = zstd()
    parameter = module.CompressionParameter
    reach = max(10, (len(content) + len(prefix)).bit_length())
    options = {
        parameter.compression_level: level,
        parameter.window_log: min(reach, window_log or reach, 27),
        parameter.enable_long_distance_matching: 1,
        parameter.content_size_flag: 1,
    }
    dictionary = module.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= _SHORTEST_PREFIX else None
    return bytes(module.compress(content, options=options, zstd_dict=dictionary))


# zstd knows no dictionary below 8 bytes.
_SHORTEST_PREFIX = 8
_FEED_BYTES = 1 << 17


def _malformed(what: str, why: str) -> InvalidDocument:
    return InvalidDocument(what, "", why, "publish the release anew")
