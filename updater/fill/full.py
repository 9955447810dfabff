"""The full way: independent compressed frames, of which only those that cover something missing are fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

from updater.errors import InvalidDocument
from updater.fetch import Fetcher
from updater.fill.framed import FRAME_BYTES_AHEAD, Located, fetch_frames, frame_spans
from updater.fill.landing import Landing
from updater.fill.pipeline import Pipeline
from updater.fill.ways import fetch_index, most_written
from updater.format.frames import FrameIndex, parse_frames
from updater.format.transport import Framed
from updater.manifest import BLOCK_BYTES
from updater.prefetch import most_held_bytes
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
        wanted = list(frame_spans(self._located(index, landing, groups)))
        return Cost(
            self.way,
            fetch_bytes=self._framed.index.length_bytes + sum(span.length for span in wanted),
            write_bytes=most_written(landing, landing.missing()),
            requests=1 + len(wanted),
            memory_bytes=index.memory_bytes + most_held_bytes(wanted, FRAME_BYTES_AHEAD) + Pipeline.memory_bytes,
        )

    def fill(self, landing: Landing, pipeline: Pipeline) -> None:
        """Fetch, unpack and hand over: a frame is unpacked while its chunks arrive, each proven before."""
        index = self._opened()
        groups = landing.missing()
        frames = list(self._located(index, landing, groups))
        gathering = _Gathering(landing, pipeline, groups)
        with closing(fetch_frames(self._fetcher, frames)) as arriving:
            for frame, chunks in arriving:
                at = frame.content_offset
                for piece in frame.unpack(chunks, self._what):
                    gathering.add(at, piece)
                    at += len(piece)

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

    def _located(self, index: FrameIndex, landing: Landing, groups: Iterable[int]) -> Iterator[Located]:
        """Yield the frames over groups."""
        last = -1
        for group in groups:
            for frame in index.covering(group * GROUP_BYTES, landing.blocks_of(group) * BLOCK_BYTES):
                if frame.number > last:
                    last = frame.number
                    yield self._framed.file.path, frame


class _Gathering:
    """Cuts a stream of content with holes into whole groups."""

    def __init__(self, landing: Landing, pipeline: Pipeline, groups: list[int]) -> None:
        self._landing = landing
        self._pipeline = pipeline
        self._wanted = bytearray(landing.groups)
        for group in groups:
            self._wanted[group] = 1
        self._group = -1
        self._room: memoryview | None = None
        self._filled = 0

    def add(self, offset: int, piece: bytes) -> None:
        """Take the content from byte `offset` on; a group counts when all of its bytes have come in order."""
        view = memoryview(piece)
        while len(view):
            group, low = divmod(offset, GROUP_BYTES)
            length = self._landing.blocks_of(group) * BLOCK_BYTES
            part = view[: length - low]
            if self._wanted[group]:
                if not low:
                    self._group, self._room, self._filled = group, self._pipeline.room(group), 0
                if self._room is not None and (group, low) == (self._group, self._filled):
                    self._room[low : low + len(part)] = part
                    self._filled += len(part)
                    if self._filled == length:
                        self._room = None
                        self._pipeline.filled(group)
            offset += len(part)
            view = view[len(part) :]
