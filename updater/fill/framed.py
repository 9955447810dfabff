"""Frames on their way: fetched in large requests, proven chunk by chunk, and never held whole."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from updater.fetch import Fetcher
from updater.format.frames import Frame
from updater.prefetch import Part, Span, fetch_spans, spans

FRAME_SPAN_BYTES = 1 << 20
"""Neighbouring chunks share a request up to this length."""

FRAME_BYTES_AHEAD = 3 << 20
"""Compressed bytes that are under way or wait for their turn: three requests, which fill a fast line at 20 ms."""

Located = tuple[str, Frame]
"""The path of a framed file, and one of its frames."""


def frame_spans(frames: Iterable[Located]) -> Iterator[Span]:
    """Return the requests for frames."""
    return spans(
        (
            Part(path, *chunk, unit_bytes=frame.length_bytes, ends_unit=chunk is frame.chunks[-1])
            for path, frame in frames
            for chunk in frame.chunks
        ),
        FRAME_SPAN_BYTES,
    )


def fetch_frames(
    fetcher: Fetcher, frames: Sequence[Located]
) -> Generator[tuple[Frame, Iterator[memoryview]], None, None]:
    """Yield each frame with its proven chunks, which must be used up before the next frame is asked for."""
    with closing(fetch_spans(fetcher, frame_spans(frames), bytes_ahead=FRAME_BYTES_AHEAD)) as arriving:
        for _, frame in frames:
            yield frame, (next(arriving)[1] for _ in frame.chunks)
