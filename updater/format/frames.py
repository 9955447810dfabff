"""Frames: a byte string cut into pieces that are compressed, hashed and fetched each by itself."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from updater.format.columns import Reader, encoded, opened, require_digest
from updater.format.compression import MOST_WINDOW_LOG, unpacked
from updater.format.transport import Framed

MAGIC = b"ACLFRM\x00\x01"
MOST_FRAME_BYTES = 64 << 20
_MOST_CONTENT_BYTES = 1 << 46
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: where it lies in its file, and which bytes of the content it holds."""

    number: int
    offset: int
    length_bytes: int
    sha256: bytes
    content_offset: int
    content_bytes: int
    window_log: int

    def unpack(self, raw: bytes | memoryview, what: str) -> Iterator[bytes]:
        """Check `raw` against the index, then yield the content in pieces of at most 1 MiB.

        Raises Untrusted (`wrong-bytes`) before anything is unpacked; InvalidDocument for a frame of another length.
        Memory: `raw`, a window of 2 to the power of `window_log` bytes, and a piece.
        """
        name = f"{what}, frame {self.number}"
        require_digest(raw, self.length_bytes, self.sha256, name)
        return unpacked(raw, self.content_bytes, name, window_log=self.window_log)


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where each frame lies; frame n holds `frame_bytes` of the content from n * `frame_bytes` on."""

    content_bytes: int
    frame_bytes: int
    window_log: int
    offsets: array[int]
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
        """Return what unpacking the largest frame needs: its bytes, its window and a piece."""
        largest = max(self.offsets[n + 1] - self.offsets[n] for n in range(self.count))
        return largest + (1 << self.window_log) + (2 << 20)

    def frame(self, number: int) -> Frame:
        """Return one frame."""
        at = number * self.frame_bytes
        return Frame(
            number,
            self.offsets[number],
            self.offsets[number + 1] - self.offsets[number],
            self.digests[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES],
            at,
            min(self.frame_bytes, self.content_bytes - at),
            self.window_log,
        )

    def covering(self, offset: int, length: int) -> Iterator[Frame]:
        """Yield the frames that hold a range of the content."""
        if length:
            for number in range(offset // self.frame_bytes, (offset + length - 1) // self.frame_bytes + 1):
                yield self.frame(number)


def parse_frames(raw: bytes, framed: Framed, what: str) -> FrameIndex:
    """Return the index of a framed file as fetched; raise Untrusted (`wrong-bytes`) or InvalidDocument."""
    table = Reader(opened(raw, framed.index, what), what, MAGIC)
    content = table.number(1, _MOST_CONTENT_BYTES, "the content's length")
    frame = table.number(4096, MOST_FRAME_BYTES, "the frames' length")
    window_log = table.number(10, MOST_WINDOW_LOG, "the window")
    count = -(-content // frame)
    lengths = table.column(count)
    digests = table.octets(count * _DIGEST_BYTES)
    table.end()
    # zstd never needs more than this for what it cannot compress.
    if not all(0 < length <= frame + frame // 128 + 1024 for length in lengths):
        raise table.malformed("a frame is empty, or longer than its content")
    offsets = array("Q", accumulate(lengths, initial=0))
    if offsets[-1] != framed.file.length_bytes:
        raise table.malformed(f"its frames have {offsets[-1]} bytes, and their file {framed.file.length_bytes}")
    return FrameIndex(content, frame, window_log, offsets, digests)


def encode_frames(content_bytes: int, frame_bytes: int, window_log: int, frames: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the index over frames given as (length, SHA-256)."""
    made = list(frames)
    return encoded(
        MAGIC,
        (content_bytes, frame_bytes, window_log),
        ([length for length, _ in made], b"".join(digest for _, digest in made)),
    )
