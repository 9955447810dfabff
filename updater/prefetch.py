"""Several ranges of a repository's files on their way at once, proven and handed over in the order of asking."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

_WHOLE_SYNC_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a file and the SHA-256 (raw) that its bytes must have.

    It may be a piece of something that is of use only whole, `unit_bytes` long; only the last one then `ends_unit`.
    """

    path: str
    offset: int
    length: int
    sha256: bytes
    unit_bytes: int = 0
    ends_unit: bool = True


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
    busy = _Busy()
    flight: deque[tuple[Span, Future[bytearray]]] = deque()
    following = next(left, None)
    using: list[Part] = []
    pool = ThreadPoolExecutor(max_workers=requests_ahead, thread_name_prefix="fetch")

    def refill() -> None:
        nonlocal following
        while (
            following is not None
            and len(flight) < requests_ahead
            and (not flight or sum(span.length for span, _ in flight) + following.length <= bytes_ahead)
        ):
            flight.append((following, pool.submit(busy.fetched, fetcher, following)))
            following = next(left, None)

    try:
        refill()
        while flight:
            # It stays in flight until it has landed: whoever leaves meanwhile must end its transfer too.
            span, future = flight[0]
            content = memoryview(future.result())
            flight.popleft()
            del future
            refill()
            for part in span.parts:
                at = part.offset - span.offset
                yield part, content[at : at + part.length]
                using.append(part)
                while using and part.ends_unit:
                    done = using.pop(0)
                    if fetcher.kept:
                        fetcher.kept.used(done.path, done.offset, done.length)
            # Gone before the next one is waited for: one span is used, the others are ahead.
            content.release()
    finally:
        busy.over.set()
        landed = False
        try:
            for _, future in flight:
                future.cancel()
            while not busy.is_done(0):
                # Whoever leaves, by an error or Ctrl-C, does not wait for a server that says nothing. A thread that is
                # just about to ask is met the next time.
                fetcher.cut()
                busy.is_done(0.1)
            landed = True
        finally:
            # A second Ctrl-C may come before the last of them is done: nobody waits for it then.
            pool.shutdown(wait=landed, cancel_futures=True)


class _Busy:
    """The transfers that are under way: Ctrl-C may come between the start of one and the note of who waits for it."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._changed = threading.Condition()
        self._count = 0

    def fetched(self, fetcher: Fetcher, span: Span) -> bytearray:
        """Return a span's bytes; raise NetworkFailure when nobody wants them any more."""
        with self._changed:
            self._count += 1
        try:
            if self.over.is_set():
                raise NetworkFailure("the transfer was given up", reason="given-up")
            return _fetched(fetcher, span, self.over)
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def is_done(self, within_s: float) -> bool:
        """Tell whether no transfer is under way, or none is any more within a time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, within_s)


def stream_whole(fetcher: Fetcher, path: str, length: int) -> Generator[bytes, None, None]:
    """Yield a file that is proven as a whole only: what was kept of its start, then the rest from a mirror.

    When the file turns out to be wrong, drop what is kept of it, and read it again: its start may be another mirror's.
    """
    kept, at = fetcher.kept, 0
    for piece in kept.prefix(path) if kept else ():
        yield piece[: length - at]
        at = min(length, at + len(piece))
    with closing(fetcher.stream(path, at, length - at)) as pieces:
        for piece in pieces:
            if kept and not fetcher.local:
                kept.add(path, at, piece, _WHOLE_SYNC_BYTES)
            at += len(piece)
            yield piece


class _Arriving:
    """The bytes of one span as they come together: some were kept, the others come from one mirror or several."""

    def __init__(self, fetcher: Fetcher, span: Span, over: threading.Event) -> None:
        self.content = bytearray(span.length)
        self._span = span
        self._over = over
        self._kept = fetcher.kept
        self._unproven = list(span.parts)
        self._gaps = self._kept.copy(span.path, span.offset, self.content) if self._kept else [(0, span.length)]
        # Who brought the bytes of a part, so that a mirror answers for none but its own.
        self._brought_by: dict[Part, set[str]] = {}
        self._note("", self._known())

    def complete(self, alone: Fetcher) -> None:
        """Fetch what is missing from a mirror and prove all of it; raise Untrusted, NetworkFailure."""
        mirror = alone.mirrors[0]
        while self._unproven:
            gaps, self._gaps = self._gaps, []
            while gaps:
                low, high = gaps.pop(0)
                at = low
                try:
                    for piece in self._pieces(alone, low, high):
                        self.content[at : at + len(piece)] = piece
                        self._note(mirror, [(at, at + len(piece))])
                        at += len(piece)
                finally:
                    if at < high:
                        self._gaps = [(at, high), *gaps]
            self._prove(mirror)

    def _pieces(self, alone: Fetcher, low: int, high: int) -> Generator[bytes, None, None]:
        span = self._span
        longest = max(max(part.length, part.unit_bytes) for part in span.parts)
        at = span.offset + low
        with closing(alone.stream(span.path, at, high - low, self._over)) as pieces:
            for piece in pieces:
                if self._over.is_set():
                    raise NetworkFailure("the transfer was given up", reason="given-up")
                if self._kept and not alone.local:
                    self._kept.add(span.path, at, piece, longest)
                at += len(piece)
                yield piece

    def _prove(self, mirror: str) -> None:
        """Leave the parts that are wrong to be fetched again; raise Untrusted when the mirror alone brought one."""
        view = memoryview(self.content)
        wrong = [part for part in self._unproven if hashlib.sha256(self._of(part, view)).digest() != part.sha256]
        view.release()
        self._unproven = wrong
        blamed = [part for part in wrong if self._brought_by[part] == {mirror}]
        for part in wrong:
            low = part.offset - self._span.offset
            self._gaps.append((low, low + part.length))
            self._brought_by[part] = set()
            if self._kept:
                self._kept.drop(part.path, part.offset, part.length)
        if blamed:
            raise Untrusted(
                f"{mirror} served wrong bytes at byte {blamed[0].offset} of {self._span.path}: they do not have the "
                "signed hash",
                mend="use another mirror, or publish that file there again; nothing unproven was used",
                reason="part-mismatch",
            )

    def _of(self, part: Part, view: memoryview) -> memoryview:
        at = part.offset - self._span.offset
        return view[at : at + part.length]

    def _known(self) -> list[tuple[int, int]]:
        edges = [0, *(edge for gap in self._gaps for edge in gap), self._span.length]
        return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if low < high]

    def _note(self, mirror: str, ranges: list[tuple[int, int]]) -> None:
        for part in self._unproven:
            low = part.offset - self._span.offset
            if any(start < low + part.length and low < end for start, end in ranges):
                self._brought_by.setdefault(part, set()).add(mirror)


def _fetched(fetcher: Fetcher, span: Span, over: threading.Event) -> bytearray:
    """Return a span's bytes: those that were kept, and the others from the first mirror that has the right ones."""
    arriving = _Arriving(fetcher, span, over)
    failures: list[Untrusted | NetworkFailure] = []
    for alone in fetcher.per_mirror():
        try:
            arriving.complete(alone)
        except Untrusted as failure:
            log.warning("%s", failure)
            fetcher.avoid(alone.mirrors[0])
            failures.append(failure)
        except NetworkFailure as failure:
            if over.is_set():
                raise
            log.warning("%s", failure)
            failures.append(failure)
        else:
            return arriving.content
    # Wrong bytes say more than none; yet as long as one mirror may still have the right ones, it is worth a retry.
    failures.sort(key=lambda failure: isinstance(failure, NetworkFailure))
    raise failures[0]
