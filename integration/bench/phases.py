"""The steps of a running `acl-updater`, by what it tells systemd about its status."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Told = tuple[float, str]


class Phases:
    """Listens on a socket of systemd's notify protocol (sd_notify(3)) and notes when each message came."""

    def __init__(self, path: Path) -> None:
        """Bind the socket at `path`, which must be short (108 bytes)."""
        self.path = path
        self._told: list[Told] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, name="phases")
        self._thread.start()

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            self._told.append((time.monotonic(), message.decode("utf-8", "replace")))

    def close(self) -> None:
        """Stop listening."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def seconds(self, ended_at: float) -> dict[str, float]:
        """Return how long each step took; the last one until `ended_at` (monotonic)."""
        return step_seconds(self._told, ended_at)


def step_seconds(told: Sequence[Told], ended_at: float) -> dict[str, float]:
    """Return each step's seconds: from its first message to the next step's first."""
    starts: list[tuple[str, float]] = []
    for at, message in told:
        for line in message.splitlines():
            name, colon, _ = line.removeprefix("STATUS=").partition(":")
            if line.startswith("STATUS=") and colon and (not starts or starts[-1][0] != name):
                starts.append((name, at))
    found: dict[str, float] = {}
    ends = [*(at for _, at in starts), ended_at][1:]
    for (name, begin), end in zip(starts, ends, strict=True):
        found[name] = found.get(name, 0.0) + end - begin
    return found


@contextmanager
def phases(folder: Path) -> Iterator[Phases]:
    """Listen in a folder for as long as the block runs."""
    path = folder / "notify"
    path.unlink(missing_ok=True)
    listener = Phases(path)
    try:
        yield listener
    finally:
        listener.close()
