"""Several ranges of a repository's files on their way at once, proven and handed over in the order of asking."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass

from updater.errors import NetworkFailure, Untrusted
from updater.fetch import Fetcher

log = logging.getLogger(__name__)

REQUESTS_AHEAD = 4
"""Requests under way at once: four hide a round trip of 100 ms at 100 Mbit/s, and spare a small server."""

BYTES_AHEAD = 12 << 20
"""Bytes that are under way or wait for their turn; a single larger span goes alone."""

SPAN_BYTES = 4 << 20
"""Neighbouring parts share a request up to this length."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a file and the SHA-256 (raw) that its bytes must have."""

    path: str
    offset: int
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """Parts of one file that follow each other without a gap and are asked for in one request."""

    parts: tuple[Part, ...]

    @property
    def path(self) -> str:
        """Return the file."""
        return self.parts[0].path

    @property
    def offset(self) -> int:
        """Return where it begins."""
        return self.parts[0].offset

    @property
    def length(self) -> int:
        """Return how long it is."""
        return self.parts[-1].offset + self.parts[-1].length - self.parts[0].offset


def spans(parts: Iterable[Part], most_bytes: int = SPAN_BYTES) -> Iterator[Span]:
    """Join neighbouring parts, in the order given, into requests of up to `most_bytes`."""
    run: list[Part] = []
    for part in parts:
        if run:
            end = run[-1].offset + run[-1].length
            fits = part.offset + part.length - run[0].offset <= most_bytes
            if part.path != run[0].path or part.offset != end or not fits:
                yield Span(tuple(run))
                run = []
        run.append(part)
    if run:
        yield Span(tuple(run))


def most_held_bytes(wanted: Iterable[Span], bytes_ahead: int = BYTES_AHEAD) -> int:
    """Return how many bytes `fetch_spans` holds at most: those ahead, and the span that is being used."""
    lengths = [span.length for span in wanted]
    return min(sum(lengths), max(bytes_ahead, max(lengths, default=0)) + max(lengths, default=0))


def fetch_spans(
    fetcher: Fetcher,
    wanted: Iterable[Span],
    *,
    requests_ahead: int = REQUESTS_AHEAD,
    bytes_ahead: int = BYTES_AHEAD,
) -> Generator[tuple[Part, memoryview], None, None]:
    """Yield each part with its proven bytes, in order, while the next spans are on their way.

    A mirror that serves wrong bytes is asked last from then on, and the span is fetched from another one. Raises
    Untrusted (`part-mismatch`) when every mirror serves wrong bytes, NetworkFailure when none serves them now. The
    memory is bounded: see `most_held_bytes`.
    """
    left = iter(wanted)
    over = threading.Event()
    flight: deque[tuple[Span, Future[bytearray]]] = deque()
    following = next(left, None)
    with ThreadPoolExecutor(max_workers=requests_ahead, thread_name_prefix="fetch") as pool:

        def refill() -> None:
            nonlocal following
            while (
                following is not None
                and len(flight) < requests_ahead
                and (not flight or sum(span.length for span, _ in flight) + following.length <= bytes_ahead)
            ):
                flight.append((following, pool.submit(_fetched, fetcher, following, over)))
                following = next(left, None)

        try:
            refill()
            while flight:
                span, future = flight.popleft()
                content = memoryview(future.result())
                del future
                refill()
                for part in span.parts:
                    at = part.offset - span.offset
                    yield part, content[at : at + part.length]
                # Gone before the next one is waited for: one span is used, the others are ahead.
                content.release()
        finally:
            over.set()
            for _, future in flight:
                future.cancel()
            wait([future for _, future in flight])


def _fetched(fetcher: Fetcher, span: Span, over: threading.Event) -> bytearray:
    """Return a span's bytes from the first mirror whose bytes are the right ones."""
    failures: list[Untrusted | NetworkFailure] = []
    for alone in fetcher.per_mirror():
        mirror = alone.mirrors[0]
        try:
            return _attempted(alone, mirror, span, over)
        except Untrusted as failure:
            log.warning("%s", failure)
            fetcher.avoid(mirror)
            failures.append(failure)
        except NetworkFailure as failure:
            if over.is_set():
                raise
            log.warning("%s", failure)
            failures.append(failure)
    # Wrong bytes say more than none; yet as long as one mirror may still have the right ones, it is worth a retry.
    failures.sort(key=lambda failure: isinstance(failure, NetworkFailure))
    raise failures[0]


def _attempted(alone: Fetcher, mirror: str, span: Span, over: threading.Event) -> bytearray:
    content = bytearray(span.length)
    position = 0
    with closing(alone.stream(span.path, span.offset, span.length)) as pieces:
        for piece in pieces:
            if over.is_set():
                raise NetworkFailure("the transfer was given up", reason="given-up")
            content[position : position + len(piece)] = piece
            position += len(piece)
    view = memoryview(content)
    for part in span.parts:
        at = part.offset - span.offset
        if hashlib.sha256(view[at : at + part.length]).digest() != part.sha256:
            raise Untrusted(
                f"{mirror} served wrong bytes at byte {part.offset} of {part.path}: they do not have the signed hash",
                mend="use another mirror, or publish that file there again; nothing unproven was used",
                reason="part-mismatch",
            )
    return content
