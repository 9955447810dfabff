"""The last two stages of filling a slot, each in a thread of its own: prove, then write, under a bound."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from updater.fill.landing import Landing, State
from updater.manifest import BLOCK_BYTES
from updater.verity import GROUP_BYTES, Progress

BATCH_GROUPS = 2
"""Groups that are proven and written at a time: writes of up to 1 MiB."""

_BATCHES_AHEAD = 2


class Pipeline:
    """Takes groups in ascending order, proves and writes them in the background, and collects those that do not prove.

    At most six batches of 1 MiB are held: the one that is gathered, one at each stage, those between, and what lies
    on the disk where the last is written.
    """

    memory_bytes = (_BATCHES_AHEAD + 4) * BATCH_GROUPS * GROUP_BYTES

    def __init__(self, landing: Landing, progress: Progress | None = None) -> None:
        """Work on a slot; `progress` counts the image's bytes that are in place."""
        self.landing = landing
        self._progress = progress
        self.wrong: set[int] = set()
        self._proving = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prove")
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self._flight: deque[Future[None]] = deque()
        self._first = 0
        self._batch = bytearray()

    def put(self, group: int, content: bytes | bytearray | memoryview) -> None:
        """Take one group's blocks, which are copied; raise what writing an earlier one raised."""
        following = self._first + len(self._batch) // GROUP_BYTES
        if self._batch and (group != following or len(self._batch) >= BATCH_GROUPS * GROUP_BYTES):
            self._send()
        if not self._batch:
            self._first = group
        self._batch += content

    def settle(self) -> None:
        """Wait until all that was taken is written."""
        self._send()
        while self._flight:
            self._flight.popleft().result()

    def _send(self) -> None:
        if not self._batch:
            return
        assert len(self._batch) % BLOCK_BYTES == 0
        first, content = self._first, bytes(self._batch)
        self._batch.clear()
        while len(self._flight) >= _BATCHES_AHEAD:
            self._flight.popleft().result()
        proven = self._proving.submit(self.landing.prove, first, content)
        self._flight.append(self._writing.submit(self._land, first, content, proven))

    def _land(self, first: int, content: bytes, proven: Future[tuple[bytes, frozenset[int]]]) -> None:
        leaves, wrong = proven.result()
        self.landing.write(first, content, leaves, wrong)
        self.wrong |= wrong
        if self._progress:
            total = self.landing.root.length_bytes
            self._progress(min(total, self.landing.states.count(State.PLACED) * GROUP_BYTES), total)

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
