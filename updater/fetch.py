"""The one way in which bytes come from a repository, metadata and image blocks alike."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.http_mirror import HttpMirror, ca_bundle
from updater.kept import Kept
from updater.mirrors import Budget, FolderMirror, Mirror, MirrorFailure, Timeouts

__all__ = ["Counters", "Fetcher", "Retries", "Timeouts"]

log = logging.getLogger(__name__)

# So much new content proves that a mirror works, and its earlier failures are forgiven.
_PROGRESS_BYTES = 1 << 20

# How soon a pause notices that nobody waits for its end any more.
_LOOK_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a mirror is asked again, and the pauses between, in seconds, which double and are jittered."""

    attempts: int = 4
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0


class Counters:
    """What was asked of the network by a fetcher and those made from it, whatever the thread."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.bytes_fetched = 0
        self.requests = 0
        self.retries = 0
        self._lock = threading.Lock()

    def asked(self) -> None:
        """Count a request."""
        self.add(requests=1)

    def add(self, *, bytes_fetched: int = 0, requests: int = 0, retries: int = 0) -> None:
        """Count."""
        with self._lock:
            self.bytes_fetched += bytes_fetched
            self.requests += requests
            self.retries += retries


class Rate:
    """A limit in bytes a second that all connections of a fetcher share."""

    def __init__(
        self,
        bytes_per_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allow `bytes_per_s`, and a burst of what one second may bring."""
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock() - 1.0

    def spend(self, count: int) -> float:
        """Return the seconds to wait until `count` bytes that have come are paid for."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - 1.0) + count / self._bytes_per_s
            return max(0.0, self._free_at - now)


class Fetcher:
    """Read files of a repository from the first of several mirrors that serves them.

    Nothing that it returns is proven: callers check every byte against hashes. Raises NetworkFailure when no mirror
    serves the file now (`reason` is that of the failure that says most), and never holds more than a piece in memory.
    """

    def __init__(
        self,
        mirrors: Sequence[str],
        *,
        ca_file: Path | None = None,
        client_cert: str | tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        rate_limit: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the mirrors' addresses, the best first: http, https and file URLs or absolute paths.

        `ca_file` replaces the system's CA bundle; `client_cert` is a PEM file with key and certificate, or a pair
        (certificate, key); `headers` go to the mirrors themselves only; `rate_limit` is in bytes a second. Raises
        EnvironmentFailure.
        """
        if not mirrors:
            raise EnvironmentFailure(
                "no repository is configured", mend="name its address in the configuration", reason="no-mirror"
            )
        self.counters = Counters()
        self.kept: Kept | None = None
        """What ranges that are proven by hashes of their own are kept in, so that a kill costs none of them."""
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or Retries()
        self._sleep = sleep
        self._rate = Rate(rate_limit) if rate_limit else None
        self._mirrors: list[Mirror] = [
            _open(
                address,
                timeouts=self._timeouts,
                ca_file=ca_file,
                client_cert=client_cert,
                headers=headers,
                on_request=self.counters.asked,
            )
            for address in mirrors
        ]

    @property
    def mirrors(self) -> list[str]:
        """Return the mirrors' addresses without secrets, in the order in which they are asked."""
        return [mirror.name for mirror in self._mirrors]

    @property
    def local(self) -> bool:
        """Tell whether all mirrors are folders of this machine."""
        return all(mirror.local for mirror in self._mirrors)

    def per_mirror(self) -> list[Fetcher]:
        """Return a fetcher for each mirror alone; they share connections and counters."""
        if len(self._mirrors) == 1:
            return [self]
        return [self._only(mirror) for mirror in self._mirrors]

    def _only(self, mirror: Mirror) -> Fetcher:
        alone = Fetcher.__new__(Fetcher)
        alone.counters = self.counters
        alone.kept = self.kept
        alone._timeouts = self._timeouts
        # With others to turn to, a dead mirror is given up sooner.
        alone._retries = Retries(
            min(2, self._retries.attempts), self._retries.first_pause_s, self._retries.longest_pause_s
        )
        alone._sleep = self._sleep
        alone._rate = self._rate
        alone._mirrors = [mirror]
        return alone

    def avoid(self, mirror: str) -> None:
        """Ask `mirror` last from now on: what it served was not what was signed."""
        # A new list: other threads may be walking along the old one.
        self._mirrors = sorted(self._mirrors, key=lambda candidate: candidate.name == mirror)

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return a small file whole; raise Untrusted (`too-large`) when more than `max_bytes` are served."""
        content = bytearray()
        turns = _Turns(self._mirrors, self._retries, path, self._budget(max_bytes))
        while True:
            mirror = turns.current
            content.clear()
            try:
                with contextlib.closing(mirror.pieces(path, 0, max_bytes + 1, turns.budget, ranged=False)) as pieces:
                    for piece in pieces:
                        self._arrived(piece)
                        content += piece
                        if len(content) > max_bytes:
                            raise Untrusted(
                                f"{mirror.name} serves more than {max_bytes} bytes as {path}",
                                mend="use another mirror, and tell whoever runs this one",
                                reason="too-large",
                            )
                return bytes(content)
            except MirrorFailure as failure:
                self._pause(turns.failed(failure, progressed=False), turns)

    def stream(
        self, path: str, offset: int, length: int, over: threading.Event | None = None
    ) -> Generator[bytes, None, None]:
        """Yield exactly `length` bytes of a file from byte `offset` on, in pieces of at most 256 KiB.

        One Range request, where nothing fails. A broken transfer goes on from where it stopped, at the next mirror or
        at the same one after a pause. Raises NetworkFailure, at once when `over` is set; nothing is yielded twice.
        """
        position, end = offset, offset + length
        turns = _Turns(self._mirrors, self._retries, path, self._budget(length))
        while position < end:
            mirror = turns.current
            began_at = position
            try:
                left = end - position
                with contextlib.closing(mirror.pieces(path, position, left, turns.budget, ranged=True)) as pieces:
                    for piece in pieces:
                        self._arrived(piece, over)
                        position += len(piece)
                        yield piece
                if position < end and position - began_at < _PROGRESS_BYTES:
                    raise _too_short(mirror.name, path, position, end, again=position > began_at)
            except MirrorFailure as failure:
                if over is not None and over.is_set():
                    raise _given_up() from failure
                progressed = position - began_at >= _PROGRESS_BYTES
                self._pause(turns.failed(failure, progressed=progressed), turns, over)

    def close(self) -> None:
        """Close the kept connections."""
        for mirror in self._mirrors:
            mirror.close()

    def cut(self) -> None:
        """End the transfers of all threads: those whose `over` is set end at once, others are tried again."""
        for mirror in self._mirrors:
            mirror.cut()

    def _budget(self, length: int) -> float:
        return self._timeouts.grace_s + length / self._timeouts.slowest_bytes_per_s

    def _arrived(self, piece: bytes, over: threading.Event | None = None) -> None:
        self.counters.add(bytes_fetched=len(piece))
        if self._rate is not None:
            self._rest(self._rate.spend(len(piece)), over)

    def _pause(self, seconds: float, turns: _Turns, over: threading.Event | None = None) -> None:
        self.counters.add(retries=1)
        if seconds > 0:
            turns.paused(seconds)
            self._rest(seconds, over)

    def _rest(self, seconds: float, over: threading.Event | None) -> None:
        if over is None and seconds > 0:
            self._sleep(seconds)
        while over is not None and seconds > 0:
            if over.is_set():
                raise _given_up()
            self._sleep(min(seconds, _LOOK_UP_S))
            seconds -= _LOOK_UP_S


class _Turns:
    """Whose turn it is among the mirrors of one call, and how long each may still be waited for."""

    def __init__(self, mirrors: Sequence[Mirror], retries: Retries, path: str, allowed_s: float) -> None:
        self._left = list(mirrors)
        self._budgets = {mirror.name: Budget(allowed_s) for mirror in mirrors}
        # What each asked for by Retry-After, less the pauses since.
        self._waits = {mirror.name: 0.0 for mirror in mirrors}
        self._retries = retries
        self._path = path
        self._failures: list[MirrorFailure] = []
        self._rounds = 0
        self._asked: set[str] = set()

    @property
    def current(self) -> Mirror:
        return self._left[0]

    @property
    def budget(self) -> Budget:
        return self._budgets[self.current.name]

    def paused(self, seconds: float) -> None:
        """Take a pause off the time of every mirror that it is made for."""
        for mirror in self._left:
            self._budgets[mirror.name].spend(seconds)
            self._waits[mirror.name] = max(0.0, self._waits[mirror.name] - seconds)

    def failed(self, failure: MirrorFailure, *, progressed: bool) -> float:
        """Give the turn to the next mirror; return the seconds to pause before; raise NetworkFailure at the end."""
        log.debug("fetch: %s", failure)
        self._failures.append(failure)
        if progressed:
            self._rounds = 0
            self._asked.clear()
        mirror = self._left.pop(0)
        patient = failure.wait_s is None or failure.wait_s <= self._retries.longest_pause_s
        in_time = self._budgets[mirror.name].left_s > 0
        if failure.again and patient and in_time and self._rounds + 1 < self._retries.attempts:
            self._left.append(mirror)
            self._waits[mirror.name] = failure.wait_s or 0.0
            self._asked.add(mirror.name)
        if not self._left:
            verdict = self._verdict()
            # An exception that is its own cause would never be freed, nor its traceback's connections.
            if verdict is failure:
                raise verdict
            raise verdict from failure
        self._left.sort(key=lambda mirror: (self._waits[mirror.name], mirror.name in self._asked))
        if not self._waits[self.current.name] and self.current.name not in self._asked:
            return 0.0
        backoff: float = min(self._retries.longest_pause_s, self._retries.first_pause_s * 2**self._rounds)
        pause = max(self._waits[self.current.name], backoff * random.uniform(0.5, 1.0))
        self._rounds += 1
        self._asked.clear()
        if all(self._budgets[mirror.name].left_s <= pause for mirror in self._left):
            raise self._verdict() from failure
        return pause

    def _verdict(self) -> NetworkFailure:
        # That the time is up says less than what it was used up by.
        telling_ones = [failure for failure in self._failures if failure.reason != "deadline"]
        last = {failure.mirror: failure for failure in telling_ones or self._failures}
        if len(last) == 1:
            return (telling_ones or self._failures)[-1]
        # A mirror that answered says more than one that could not be reached.
        telling = next(
            (f for f in last.values() if f.reason not in ("unreachable", "timeout", "stalled", "deadline")), None
        )
        every_reason = {failure.reason for failure in last.values()}
        return NetworkFailure(
            f"no mirror serves {self._path}: " + "; ".join(failure.message for failure in last.values()),
            mend="see the network and the servers",
            reason=every_reason.pop() if len(every_reason) == 1 else (telling or next(reversed(last.values()))).reason,
        )


def _given_up() -> NetworkFailure:
    return NetworkFailure("the transfer was given up", reason="given-up")


def _too_short(mirror: str, path: str, position: int, end: int, *, again: bool) -> MirrorFailure:
    return MirrorFailure(
        f"{mirror} ends {path} at byte {position}, and {end} are needed",
        mend="use another mirror, or mend that server",
        reason="file-too-short",
        again=again,
        mirror=mirror,
    )


def _open(
    address: str,
    *,
    timeouts: Timeouts,
    ca_file: Path | None,
    client_cert: str | tuple[str, str] | None,
    headers: Mapping[str, str] | None,
    on_request: Callable[[], None],
) -> Mirror:
    """Return the mirror behind an http, https or file URL or an absolute path; raise EnvironmentFailure."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpMirror(
            address,
            timeouts=timeouts,
            verify=ca_bundle(ca_file),
            client_cert=client_cert,
            headers=headers,
            on_request=on_request,
        )
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderMirror(Path(urllib.parse.unquote(parts.path)))
    if address.startswith("/"):
        return FolderMirror(Path(address))
    raise EnvironmentFailure(
        f"{address!r} is not the address of a repository",
        mend="write https://…, http://…, file:///… or the absolute path of a folder",
        reason="mirror-invalid",
    )
