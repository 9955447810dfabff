"""Framed files: content compressed in independent frames, several at a time."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from updater.format.compression import pack
from updater.format.frames import encode_frames
from updater.format.transport import Framed
from updater.release.blobs import BlobFolder

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[str, int, int], None]
"""Called with (what is being made, bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How content is framed; window and chunk bound what a node needs to unpack it, whatever a frame's length."""

    frame_bytes: int
    window_log: int
    level: int
    chunk_bytes: int = 1 << 20


IMAGE = Framing(32 << 20, 22, 19)
PACK = Framing(1 << 20, 20, 19)


def make_framed(
    pieces: Iterable[bytes | memoryview],
    content_bytes: int,
    framing: Framing,
    blobs: BlobFolder,
    what: str,
    progress: Progress,
) -> Framed:
    """Compress `pieces`, each one frame's content, in order; return the pins of file and index."""
    frames: list[tuple[int, list[bytes]]] = []

    def compressed(piece: bytes | memoryview) -> tuple[int, bytes]:
        # zstd releases the interpreter's lock.
        return len(piece), pack(piece, framing.level, window_log=framing.window_log)

    def chunks() -> Iterator[bytes]:
        done = 0
        for length, raw in in_order(compressed, pieces):
            frames.append((len(raw), _digests(raw, framing.chunk_bytes)))
            done += length
            progress(what, done, content_bytes)
            yield raw

    file = blobs.put(chunks())
    index = encode_frames(content_bytes, framing.frame_bytes, framing.window_log, framing.chunk_bytes, frames)
    return Framed(blobs.put_index(index, packed=False), file)


def cut(content: memoryview, frame_bytes: int) -> Iterator[memoryview]:
    """Yield the content of each frame, uncopied."""
    for at in range(0, len(content), frame_bytes):
        yield content[at : at + frame_bytes]


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield `work(item)` for each item, in order, with one under way for each processor."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="make") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _digests(raw: bytes, chunk_bytes: int) -> list[bytes]:
    view = memoryview(raw)
    return [hashlib.sha256(view[at : at + chunk_bytes]).digest() for at in range(0, len(raw), chunk_bytes)]
