"""The read-back of a slot that is still being filled: runs of it that are whole are flushed, read and proven."""

from __future__ import annotations

import logging
import threading

from updater.blocks import paged
from updater.errors import EnvironmentFailure
from updater.fill.landing import Landing
from updater.manifest import BLOCK_BYTES
from updater.verity import GROUP_BYTES, LEAVES_A_RUN, Hasher, differing

log = logging.getLogger(__name__)

_READ_GROUPS = 2


class ReadBack:
    """Follows a landing in a thread of its own; `proven` are the runs of 64 groups that the last proof may leave out.

    A run counts when all of its groups were placed, then flushed, then read past the page cache and found to hash to
    the leaves that hang from the root hash, and not written since. Where reads cannot bypass the cache nothing counts:
    a page may be half of a run that is flushed and half of one that is not. What does not prove, or cannot be read, is
    read again by the last proof, which says so. A flush that failed is raised by `end`: the kernel tells of lost writes
    once, and the next flush would not.
    """

    memory_bytes = _READ_GROUPS * GROUP_BYTES

    def __init__(self, landing: Landing) -> None:
        """Take the landing; its partitions must stay open inside the block."""
        self.proven: set[int] = set()
        self._landing = landing
        self._over = threading.Event()
        self._lost: EnvironmentFailure | None = None
        self._hasher = Hasher(bytes.fromhex(landing.root.salt))
        self._thread = threading.Thread(target=self._follow, name="read-back", daemon=True)

    def __enter__(self) -> ReadBack:
        if self._landing.data.read_back == "O_DIRECT":
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def end(self) -> frozenset[int]:
        """Stop, and return the runs that are proven; raise EnvironmentFailure when one of its flushes failed."""
        self._stop()
        if self._lost is not None:
            raise self._lost
        if self._landing.data.read_back != "O_DIRECT":
            # The file system took O_DIRECT, and then did not do it.
            return frozenset()
        return frozenset(run for run in self.proven if not self._landing.unread[run])

    def _stop(self) -> None:
        self._over.set()
        with self._landing.placing:
            self._landing.placing.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _follow(self) -> None:
        room = paged(self.memory_bytes)
        try:
            while (runs := self._wait()) and not self._over.is_set():
                self._flush()
                for run in runs:
                    if self._over.is_set():
                        return
                    if self._proves(run, room):
                        with self._landing.placing:
                            self.proven.add(run)
                            self._landing.placing.notify_all()
        except EnvironmentFailure as failure:
            log.warning("the read-back waits for the end: %s", failure)

    def _flush(self) -> None:
        try:
            self._landing.data.flush()
        except EnvironmentFailure as failure:
            self._lost = failure
            raise

    def _wait(self) -> list[int]:
        """Return runs that are whole and were not read since they were written; none when it is over."""
        landing = self._landing
        with landing.placing:
            while not self._over.is_set():
                whole = [run for run, unread in enumerate(landing.unread) if unread and landing.is_whole(run)]
                for run in whole:
                    # Whatever is written from here on sets it again.
                    landing.unread[run] = 0
                    self.proven.discard(run)
                if whole:
                    return whole
                landing.placing.wait()
        return []

    def _proves(self, run: int, room: memoryview) -> bool:
        landing = self._landing
        first, last = run * LEAVES_A_RUN, min(landing.groups, (run + 1) * LEAVES_A_RUN)
        for group in range(first, last, _READ_GROUPS):
            end = min(last, group + _READ_GROUPS)
            length = sum(landing.blocks_of(one) for one in range(group, end)) * BLOCK_BYTES
            landing.data.read_into(group * GROUP_BYTES, room[:length])
            found = landing.leaf_digests_over(room[:length], self._hasher)
            if self._over.is_set() or differing(landing.expected(group, end - group), found):
                return False
        return True
