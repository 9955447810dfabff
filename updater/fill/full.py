"""The full way: independent compressed frames, of which only those that cover something missing are fetched."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from updater.errors import InvalidDocument
from updater.fetch import Fetcher
from updater.fill.landing import Landing
from updater.fill.pipeline import Pipeline
from updater.fill.ways import fetch_index, most_written
from updater.format.frames import Frame, FrameIndex, parse_frames
from updater.format.transport import Framed
from updater.manifest import BLOCK_BYTES
from updater.prefetch import Part, Span, fetch_spans, most_held_bytes, spans
from updater.verity import GROUP_BYTES
from updater.ways import Cost, Way


class FullWay:
    """Frames of the whole image."""

    way = Way.FULL

    def __init__(self, fetcher: Fetcher, framed: Framed, image_bytes: int, what: str) -> None:
        """Take the frames of an image of `image_bytes` bytes; `what` names them in messages."""
        self._fetcher = fetcher
        self._framed = framed
        self._image_bytes = image_bytes
        self._what = what
        self._index: FrameIndex | None = None

    def cost(self, landing: Landing) -> Cost:
        """Return what the frames over the missing groups take."""
        index = self._opened()
        groups = [group for group in landing.missing() if not landing.is_zeros(group)]
        wanted = list(_requests(self._framed, _frames_over(index, landing, groups)))
        return Cost(
            self.way,
            fetch_bytes=self._framed.index.length_bytes + sum(span.length for span in wanted),
            write_bytes=most_written(landing, landing.missing()),
            requests=1 + len(wanted),
            memory_bytes=index.memory_bytes + most_held_bytes(wanted) + Pipeline.memory_bytes,
        )

    def fill(self, landing: Landing, pipeline: Pipeline) -> None:
        """Fetch, unpack and hand over."""
        index = self._opened()
        groups = landing.missing()
        frames = list(_frames_over(index, landing, groups))
        gathering = _Gathering(landing, pipeline, groups)
        arriving = fetch_spans(self._fetcher, _requests(self._framed, frames))
        try:
            for frame, (_, raw) in zip(frames, arriving, strict=True):
                gathering.begin(frame.content_offset)
                for piece in frame.unpack(raw, self._what):
                    gathering.add(piece)
        finally:
            arriving.close()

    def _opened(self) -> FrameIndex:
        if self._index is None:
            index = parse_frames(fetch_index(self._fetcher, self._framed.index), self._framed, self._what)
            if index.content_bytes != self._image_bytes:
                raise InvalidDocument(
                    self._what,
                    "",
                    f"its frames hold {index.content_bytes} bytes, and the image has {self._image_bytes}",
                    "publish the release anew",
                )
            self._index = index
        return self._index


def _frames_over(index: FrameIndex, landing: Landing, groups: Iterable[int]) -> Iterator[Frame]:
    last = -1
    for group in groups:
        for frame in index.covering(group * GROUP_BYTES, landing.blocks_of(group) * BLOCK_BYTES):
            if frame.number > last:
                last = frame.number
                yield frame


def _requests(framed: Framed, frames: Iterable[Frame]) -> Iterator[Span]:
    return spans(Part(framed.file.path, frame.offset, frame.length_bytes, frame.sha256) for frame in frames)


class _Gathering:
    """Cuts a stream of content with holes into whole groups."""

    def __init__(self, landing: Landing, pipeline: Pipeline, groups: list[int]) -> None:
        self._landing = landing
        self._pipeline = pipeline
        self._groups = groups
        self._at = 0
        self._pending = bytearray()

    def begin(self, offset: int) -> None:
        """Go on at a byte of the content: what is pending counts only if it ends there."""
        if self._at + len(self._pending) != offset:
            self._pending.clear()
            self._at = offset

    def add(self, piece: bytes) -> None:
        """Take the bytes that follow, and hand over the groups that are whole."""
        self._pending += piece
        end = self._at + len(self._pending)
        position = bisect_left(self._groups, -(-self._at // GROUP_BYTES))
        view = memoryview(self._pending)
        used = self._at
        try:
            while position < len(self._groups):
                group = self._groups[position]
                low = group * GROUP_BYTES
                high = low + self._landing.blocks_of(group) * BLOCK_BYTES
                if high > end:
                    break
                self._pipeline.put(group, view[low - self._at : high - self._at])
                used = high
                position += 1
        finally:
            view.release()
        # What lies before the next group that is wanted, and before the one that is not whole yet, is done with.
        following = self._groups[position] * GROUP_BYTES if position < len(self._groups) else end
        keep_from = min(end, max(used, following))
        del self._pending[: keep_from - self._at]
        self._at = keep_from
