"""Work that goes on in a thread of its own beside the steps of a command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from typing import Generic, TypeVar

from updater.verity import Progress

T = TypeVar("T")

_LOOK_UP_S = 0.2
_MOST_WAIT_S = 2.0


class _GivenUp(Exception):
    """Nobody waits for the work any more."""


class Beside(Generic[T]):
    """One piece of work, begun at once; leaving the block gives it up.

    The thread dies with the process: whoever leaves by an error or Ctrl-C does not wait for a disk or a mirror that
    says nothing. So the work must leave nothing half done that anybody relies on.
    """

    def __init__(self, work: Callable[[Progress], T], name: str) -> None:
        """Begin; `work` is given what to tell its progress, in bytes."""
        self._work = work
        self._over = threading.Event()
        self._told = (0, 0)
        self._future: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self, progress: Progress | None = None) -> T:
        """Wait for the work; return what it returned, or raise what it raised."""
        while True:
            try:
                return self._future.result(_LOOK_UP_S)
            except StillRunning:
                if self._future.done():
                    raise
                if progress and self._told[1]:
                    progress(*self._told)

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(_MOST_WAIT_S)

    def _run(self) -> None:
        try:
            self._future.set_result(self._work(self._tell))
        except BaseException as error:
            self._future.set_exception(error)

    def _tell(self, done_bytes: int, total_bytes: int) -> None:
        if self._over.is_set():
            raise _GivenUp
        self._told = (done_bytes, total_bytes)
