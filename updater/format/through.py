"""The unpacked form of a file, in which the zstd frames that it holds are replaced by their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from updater.errors import InvalidDocument
from updater.format.columns import malformed
from updater.format.compression import unpacked_stream, zstd
from updater.format.transport import FrameWithin, Packing, Through

WINDOW_LOG = 27
"""The largest window of a frame: the kernel's own, and that of `zstd --ultra`."""

_PIECE_BYTES = 1 << 17
_COPY_BYTES = 1 << 20
_WORKING_BYTES = 8 << 20
# The base-2 logarithms of window, chain table and hash table of libzstd's levels, for content above 256 KiB.
_LEVELS = (
    (19, 13, 14), (20, 15, 16), (21, 16, 17), (21, 18, 18), (21, 18, 19), (21, 18, 19), (21, 19, 20), (21, 19, 20),
    (22, 20, 21), (22, 21, 22), (22, 21, 22), (22, 22, 23), (22, 22, 22), (22, 22, 23), (22, 23, 23), (22, 22, 22),
    (23, 23, 22), (23, 23, 22), (23, 24, 22), (25, 25, 23), (26, 26, 24), (27, 27, 25),
)  # fmt: skip


def library() -> str:
    """Return the name of the library that packs here: only the same version is sure to make the same frames."""
    return f"libzstd {zstd().zstd_version}"


def window_log(level: int) -> int:
    """Return the window of one of libzstd's levels, as a logarithm."""
    return _LEVELS[level - 1][0]


def packing_bytes(packing: Packing) -> int:
    """Return an upper bound of the memory that packing takes."""
    window, chain, table = _LEVELS[packing.level - 1]
    content = packing.content_bytes
    buffers = min(1 << window, content)
    if packing.worker:
        # A job's input is kept while the next one comes in, and its frame until it is taken.
        buffers += 3 * min(content, 1 << (29 if packing.level == 22 else window + 2))
    return (4 << chain) + (4 << table) + buffers + _WORKING_BYTES


def unpacking_bytes(frame: FrameWithin) -> int:
    """Return an upper bound of the memory that unpacking takes: its window and some pieces."""
    return min(1 << WINDOW_LOG, frame.content_bytes) + _WORKING_BYTES


def memory_bytes(through: Through, recipe_bytes: int) -> int:
    """Return what the whole delta needs when its recipe needs `recipe_bytes`: unpacking is over before that begins."""
    packing = max(packing_bytes(item) for item in through.content)
    return max(recipe_bytes + packing, *(unpacking_bytes(frame) for frame in through.source))


def unpacked_length(source: Iterable[FrameWithin], file_bytes: int, what: str) -> int:
    """Return the length of a file's unpacked form; raise InvalidDocument for frames that overlap or leave the file."""
    at = 0
    length = file_bytes
    for frame in source:
        if frame.at_bytes < at or frame.at_bytes + frame.length_bytes > file_bytes:
            raise malformed(what, "its frames overlap, or leave the old file")
        at = frame.at_bytes + frame.length_bytes
        length += frame.content_bytes - frame.length_bytes
    return length


def write_unpacked(file: BinaryIO, file_bytes: int, source: Iterable[FrameWithin], out: BinaryIO, what: str) -> None:
    """Write the unpacked form of a proven file; raise InvalidDocument for a frame that is none."""
    at = 0
    for frame in source:
        _copy(file, out, at, frame.at_bytes)
        at = frame.at_bytes + frame.length_bytes
        chunks = _pieces(file, frame.at_bytes, at)
        for piece in unpacked_stream(chunks, frame.content_bytes, what, window_log=WINDOW_LOG):
            out.write(piece)
    _copy(file, out, at, file_bytes)


def packed(pieces: Iterable[bytes], through: Through, what: str) -> Iterator[bytes]:
    """Yield a file whose unpacked form comes in `pieces`; raise InvalidDocument for packings that overlap or leave it.

    Where the bytes are cut has no part in what comes out.
    """
    _check(through, what)
    feed = _Feed(pieces)
    at = 0
    for packing in through.content:
        yield from feed.take(packing.at_bytes - at)
        yield from pack_frame(feed.take(packing.content_bytes), packing)
        at = packing.at_bytes + packing.content_bytes
    yield from feed.take(through.content_bytes - at)


def pack_frame(pieces: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    """Yield the zstd frame of `packing.content_bytes` bytes that come in pieces of 128 KiB."""
    module = zstd()
    parameter = module.CompressionParameter
    options = {
        parameter.compression_level: packing.level,
        parameter.checksum_flag: int(packing.checksum),
        parameter.content_size_flag: int(packing.sized),
        parameter.nb_workers: int(packing.worker),
    }
    packer: Any = module.ZstdCompressor(options={key: value for key, value in options.items() if value})
    if packing.sized:
        packer.set_pledged_input_size(packing.content_bytes)
    try:
        for piece in pieces:
            yield packer.compress(piece)
        yield packer.flush()
    except module.ZstdError as error:
        raise malformed("a packing", f"it cannot be done: {error}") from error


def even_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of 128 KiB, the last one shorter."""
    return _Feed(pieces).take(1 << 62)


class _Feed:
    """Bytes that come in pieces of any length, taken in pieces of a known one."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = bytearray()

    def take(self, length: int) -> Iterator[bytes]:
        """Yield the next `length` bytes in pieces of 128 KiB, the last one shorter; fewer where they end."""
        left = length
        while left:
            count = min(left, _PIECE_BYTES)
            while len(self._rest) < count:
                piece = next(self._pieces, b"")
                if not piece:
                    break
                self._rest += piece
            piece = bytes(self._rest[:count])
            del self._rest[:count]
            if not piece:
                return
            yield piece
            left -= len(piece)


def _check(through: Through, what: str) -> None:
    at = 0
    for packing in through.content:
        if packing.at_bytes < at or packing.at_bytes + packing.content_bytes > through.content_bytes:
            raise malformed(what, "its packings overlap, or leave the unpacked form")
        at = packing.at_bytes + packing.content_bytes


def _copy(file: BinaryIO, out: BinaryIO, begin: int, end: int) -> None:
    for piece in _pieces(file, begin, end):
        out.write(piece)


def _pieces(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end:
        piece = file.read(min(_COPY_BYTES, end - begin))
        if not piece:
            raise InvalidDocument("the old file", "", f"it ends at byte {begin}, before byte {end}", "fetch it whole")
        yield piece
        begin += len(piece)
