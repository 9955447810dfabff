"""The last two stages of filling a slot, each in a thread of its own: prove, then write, under a bound."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType

from updater.blocks import paged
from updater.errors import EnvironmentFailure
from updater.fill.landing import Landing
from updater.manifest import BLOCK_BYTES
from updater.verity import GROUP_BYTES, Progress

BATCH_GROUPS = 1
"""Groups that are proven and written at a time: writes of up to 512 KiB."""

_BATCH_BYTES = BATCH_GROUPS * GROUP_BYTES
_BATCHES = 3


class Pipeline:
    """Takes groups in ascending order, proves and writes them in the background, and collects those that do not prove.

    Its memory is three batches of 512 KiB that begin on a page and are used again and again, one that is gathered and
    one at each stage, and what is compared with what lies on the disk where the last is written.
    """

    memory_bytes = (_BATCHES + 3) * _BATCH_BYTES

    def __init__(self, landing: Landing, progress: Progress | None = None) -> None:
        """Work on a slot; `progress` counts the image's bytes that are in place."""
        self.landing = landing
        self._progress = progress
        self.wrong: set[int] = set()
        self._proving = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prove")
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self._flight: deque[Future[None]] = deque()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(_BATCHES):
            self._free.put(paged(_BATCH_BYTES))
        self._batch: memoryview | None = None
        self._first = 0
        self._length = 0

    def room(self, group: int) -> memoryview:
        """Lend the room for one group's blocks, to be filled before `filled` is called; raise what writing raised."""
        following = self._first + self._length // GROUP_BYTES
        if self._batch is not None and group != following:
            self._send()
        if self._batch is None:
            self._raise_failures()
            self._batch = self._free.get()
            self._first, self._length = group, 0
        return self._batch[self._length : self._length + self.landing.blocks_of(group) * BLOCK_BYTES]

    def filled(self, group: int) -> None:
        """Take the group whose room was lent last."""
        self._length += self.landing.blocks_of(group) * BLOCK_BYTES
        if self._length >= _BATCH_BYTES:
            self._send()

    def put(self, group: int, content: bytes | bytearray | memoryview) -> None:
        """Take one group's blocks, which are copied; raise what writing an earlier one raised."""
        self.room(group)[:] = content
        self.filled(group)

    def settle(self) -> None:
        """Wait until all that was taken is written."""
        self._send()
        while self._flight:
            self._flight.popleft().result()
        self.landing.settle()

    def _send(self) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if not self._length:
            self._free.put(batch)
            return
        content = batch[: self._length]
        proven = self._proving.submit(self.landing.prove, self._first, content)
        self._flight.append(self._writing.submit(self._land, self._first, content, proven, batch))

    def _raise_failures(self) -> None:
        while self._flight and self._flight[0].done():
            self._flight.popleft().result()

    def _land(
        self, first: int, content: memoryview, proven: Future[tuple[bytes, frozenset[int]]], batch: memoryview
    ) -> None:
        try:
            leaves, wrong = proven.result()
            self.landing.write(first, content, leaves, wrong)
        finally:
            self._free.put(batch)
        self.wrong |= wrong
        if self._progress:
            total = self.landing.root.length_bytes
            self._progress(min(total, self.landing.placed * GROUP_BYTES), total)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.settle()
            elif issubclass(kind, Exception):
                # What was gathered before the failure is whole groups, proven like any other: it need not come again.
                self._send()
        finally:
            self._proving.shutdown()
            self._writing.shutdown()
        if kind is not None and issubclass(kind, Exception):
            with suppress(EnvironmentFailure):
                self.landing.settle()
