"""How a running step tells how far it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Shows steps and their progress to whoever watches."""

    def begin(self, name: str, sentence: str) -> None:
        """Say that a step begins."""

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Say how many bytes of the step are done; `total_bytes` is 0 when it is not known."""

    def end(self, name: str, result: str) -> None:
        """Say that the step ended, with one phrase on its result."""


class LogReporter:
    """Writes one log line when a step begins and one when it ends."""

    def begin(self, name: str, sentence: str) -> None:
        log.info("step %s: %s", name, sentence)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        log.debug("%d of %d bytes", done_bytes, total_bytes)

    def end(self, name: str, result: str) -> None:
        log.info("step %s ended: %s", name, result)


@contextmanager
def step(reporter: Reporter, name: str, sentence: str) -> Iterator[list[str]]:
    """Report the block as one step; append to the yielded list what to say at its end."""
    reporter.begin(name, sentence)
    result: list[str] = []
    yield result
    reporter.end(name, "; ".join(result) or "done")
