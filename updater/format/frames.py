"""Frames: a byte string cut into pieces that are compressed and fetched each by itself, and hashed in chunks."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from updater.format.columns import Reader, encoded, opened, require_digest
from updater.format.compression import MOST_WINDOW_LOG, PIECE_BYTES, unpacked_stream
from updater.format.transport import Framed

MAGIC = b"ACLFRM\x00\x01"
MOST_FRAME_BYTES = 1 << 28
LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 1 << 10, 16 << 20
_MOST_CONTENT_BYTES = 1 << 46
_DIGEST_BYTES = 32


class Chunk(NamedTuple):
    """A part of a frame as it lies in the file, proven by itself: a frame need never be held whole."""

    offset: int
    length_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: where it lies in its file, and which bytes of the content it holds."""

    number: int
    offset: int
    length_bytes: int
    content_offset: int
    content_bytes: int
    window_log: int
    chunks: tuple[Chunk, ...]

    def unpack(self, proven: Iterable[bytes | memoryview], what: str) -> Iterator[bytes]:
        """Yield the content in pieces of at most 256 KiB, of chunks that have been proven, the first one first.

        Raises InvalidDocument for a frame of another length. Memory: a chunk, the window and a piece.
        """
        name = f"{what}, frame {self.number}"
        return unpacked_stream(proven, self.content_bytes, name, window_log=self.window_log)

    def prove(self, raw: bytes | memoryview, what: str) -> Iterator[memoryview]:
        """Yield the chunks of a whole frame, each checked before; raise Untrusted (`wrong-bytes`)."""
        view = memoryview(raw)
        name = f"{what}, frame {self.number}"
        for chunk in self.chunks:
            piece = view[chunk.offset - self.offset :][: chunk.length_bytes]
            require_digest(piece, chunk.length_bytes, chunk.sha256, name)
            yield piece


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where each frame lies; frame n holds `frame_bytes` of the content from n * `frame_bytes` on.

    `firsts` are the numbers of the frames' first chunks: those of frame n end where those of frame n + 1 begin.
    """

    content_bytes: int
    frame_bytes: int
    window_log: int
    chunk_bytes: int
    offsets: array[int]
    firsts: array[int]
    digests: bytes

    @property
    def count(self) -> int:
        """Return the number of frames."""
        return len(self.offsets) - 1

    @property
    def file_bytes(self) -> int:
        """Return the length of the file with all frames."""
        return self.offsets[-1]

    @property
    def memory_bytes(self) -> int:
        """Return what unpacking needs beside the chunks that are under way: the window, and a piece in the making."""
        return min(1 << self.window_log, self.frame_bytes) + 2 * PIECE_BYTES

    def frame(self, number: int) -> Frame:
        """Return one frame."""
        at = number * self.frame_bytes
        return Frame(
            number,
            self.offsets[number],
            self.offsets[number + 1] - self.offsets[number],
            at,
            min(self.frame_bytes, self.content_bytes - at),
            self.window_log,
            tuple(self._chunks(number)),
        )

    def covering(self, offset: int, length: int) -> Iterator[Frame]:
        """Yield the frames that hold a range of the content."""
        if length:
            for number in range(offset // self.frame_bytes, (offset + length - 1) // self.frame_bytes + 1):
                yield self.frame(number)

    def _chunks(self, number: int) -> Iterator[Chunk]:
        end = self.offsets[number + 1]
        starts = range(self.offsets[number], end, self.chunk_bytes)
        for index, start in enumerate(starts, self.firsts[number]):
            digest = self.digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES]
            yield Chunk(start, min(self.chunk_bytes, end - start), digest)


def parse_frames(raw: bytes, framed: Framed, what: str) -> FrameIndex:
    """Return the index of a framed file as fetched; raise Untrusted (`wrong-bytes`) or InvalidDocument."""
    table = Reader(opened(raw, framed.index, what), what, MAGIC)
    content = table.number(1, _MOST_CONTENT_BYTES, "the content's length")
    frame = table.number(4096, MOST_FRAME_BYTES, "the frames' length")
    window_log = table.number(10, MOST_WINDOW_LOG, "the window")
    chunk = table.number(LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES, "the chunks' length")
    count = -(-content // frame)
    lengths = table.column(count)
    # zstd never needs more than this for what it cannot compress.
    if not all(0 < length <= frame + frame // 128 + 1024 for length in lengths):
        raise table.malformed("a frame is empty, or longer than its content")
    firsts = array("Q", accumulate((-(-length // chunk) for length in lengths), initial=0))
    digests = table.octets(firsts[-1] * _DIGEST_BYTES)
    table.end()
    offsets = array("Q", accumulate(lengths, initial=0))
    if offsets[-1] != framed.file.length_bytes:
        raise table.malformed(f"its frames have {offsets[-1]} bytes, and their file {framed.file.length_bytes}")
    return FrameIndex(content, frame, window_log, chunk, offsets, firsts, digests)


def encode_frames(
    content_bytes: int,
    frame_bytes: int,
    window_log: int,
    chunk_bytes: int,
    frames: Iterable[tuple[int, Sequence[bytes]]],
) -> bytes:
    """Return the index over frames given as (length, its chunks' SHA-256)."""
    made = list(frames)
    return encoded(
        MAGIC,
        (content_bytes, frame_bytes, window_log, chunk_bytes),
        ([length for length, _ in made], b"".join(digest for _, digests in made for digest in digests)),
    )
