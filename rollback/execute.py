"""One foreign command, bounded in time and in output whatever it does.

`updater.run.run` trusts the tools that it calls; a health check may ignore signals, hand its pipes to a child that
outlives it, write without end, or block in the kernel.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from updater.run import search_path

_REAP_S = 1.0
_CHUNK = 1 << 16

# Processes that even SIGKILL has not ended yet: they are kept to be reaped when they do end.
_abandoned: list[subprocess.Popen[bytes]] = []
_abandoned_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `exit_code` is None after a timeout, negative after a signal."""

    exit_code: int | None
    output: bytes
    errors: bytes

    @property
    def text(self) -> str:
        """Return what it wrote, output before errors."""
        return b"\n".join(part.rstrip() for part in (self.output, self.errors) if part.strip()).decode(
            "utf-8", "replace"
        )


class _Kept:
    """The end, or the beginning, of a stream."""

    def __init__(self, limit_bytes: int, end: Literal["head", "tail"]) -> None:
        self._limit = limit_bytes
        self._end = end
        self.content = bytearray()

    def add(self, chunk: bytes) -> None:
        if self._end == "head":
            self.content += chunk[: self._limit - len(self.content)]
        else:
            self.content += chunk
            del self.content[: -self._limit]

    @property
    def is_full(self) -> bool:
        return self._end == "head" and len(self.content) >= self._limit


def execute(
    argv: Sequence[str],
    *,
    timeout_s: float,
    limit_bytes: int = 8192,
    keep: Literal["head", "tail"] = "tail",
) -> Ended:
    """Run a command in a session of its own; return within `timeout_s` and about a second.

    At most `limit_bytes` of each stream are kept; with `keep="head"` the command is ended once it has written as
    many. Whatever is left of its process group is killed when it ends. Raises OSError when it cannot be started.
    """
    _reap_abandoned()
    deadline = time.monotonic() + timeout_s
    environment = {"PATH": search_path(), "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout.fileno(): _Kept(limit_bytes, keep), process.stderr.fileno(): _Kept(limit_bytes, "tail")}
    handle = os.pidfd_open(process.pid)
    try:
        finished = _follow(handle, kept, deadline)
    finally:
        # Before the leader is reaped: its process group's id cannot have been taken by another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        ended = _ends_within(handle, _REAP_S)
        os.close(handle)
        process.stdout.close()
        process.stderr.close()
        if ended:
            process.wait()
        else:
            with _abandoned_lock:
                _abandoned.append(process)
    output, errors = (bytes(stream.content) for stream in kept.values())
    return Ended(process.returncode if finished else None, output, errors)


def _follow(handle: int, kept: dict[int, _Kept], deadline: float) -> bool:
    """Read until the process ends (True), its output is full (True) or time is up (False)."""
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        for stream in kept:
            os.set_blocking(stream, False)
            selector.register(stream, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = [key.fd for key, _ in selector.select(left)]
            for stream in kept:
                # An end of file does not mean that the process has ended, nor the reverse.
                if stream in ready and not _read(stream, kept[stream]):
                    selector.unregister(stream)
            if any(stream.is_full for stream in kept.values()):
                return True
            if handle in ready:
                for stream in kept:
                    _drain(stream, kept[stream])
                return True
    return False


def _read(stream: int, kept: _Kept) -> bool:
    try:
        chunk = os.read(stream, _CHUNK)
    except BlockingIOError:
        return True
    kept.add(chunk)
    return bool(chunk)


def _drain(stream: int, kept: _Kept) -> None:
    """Take what the ended process left in the pipe; a child that still holds it may go on writing, unread."""
    for _ in range(32):
        try:
            chunk = os.read(stream, _CHUNK)
        except OSError:
            return
        if not chunk:
            return
        kept.add(chunk)


def _ends_within(handle: int, seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _reap_abandoned() -> None:
    with _abandoned_lock:
        _abandoned[:] = [process for process in _abandoned if process.poll() is None]
