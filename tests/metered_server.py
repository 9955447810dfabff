"""A good web server that counts what it sends, and kills its client in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hostile_server import Handler, HostileServer, hostile

_CHUNK_BYTES = 1 << 14


class Meter:
    """Serves a folder's files, and counts the bytes of their bodies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._victim = 0
        self._kill_after = 0
        self._killed = 0
        self.served = 0
        self.requests = 0

    def kill(self, victim: int, after_bytes: int) -> None:
        """Kill the process `victim` when as many more bytes were served, and taken in by it."""
        self._kill_after = self.served + after_bytes
        self._victim = victim

    def play(self, handler: Handler) -> None:
        # Requests of a process that is dead wait here as well, and are not answered.
        life = self._killed
        path = self._folder / handler.path.removeprefix("/repo/")
        if not path.is_file():
            handler.answer(404)
            return
        with self._lock:
            self.requests += 1
        size = path.stat().st_size
        first, last = handler.span or (0, size - 1)
        last = min(last, size - 1)
        handler.send_response(206 if handler.span else 200)
        if handler.span:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        with path.open("rb") as file:
            file.seek(first)
            left = last + 1 - first
            while left:
                chunk = file.read(min(_CHUNK_BYTES, left))
                # One chunk at a time, of all connections: the count is exact when the kill comes.
                with self._lock:
                    if self._victim and self.served >= self._kill_after:
                        self._strike(handler.server)
                    if life != self._killed:
                        handler.close_connection = True
                        return
                    handler.wfile.write(chunk)
                    self.served += len(chunk)
                left -= len(chunk)

    def _strike(self, server: HostileServer) -> None:
        while _under_way(server.server_address[1]) and not server.over.wait(0.002):
            pass
        os.kill(self._victim, signal.SIGKILL)
        self._victim = 0
        self._killed += 1


@contextmanager
def metered(folder: Path) -> Iterator[tuple[str, Meter]]:
    """Serve a folder for the length of a block; yield (address, meter)."""
    meter = Meter(folder)
    with hostile(meter.play) as server:
        yield server.url, meter


def _under_way(port: int) -> bool:
    """Tell whether bytes lie in the kernel, sent by the server at `port` and not read by its client."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    for words in map(str.split, lines):
        ports = {int(words[1].split(":")[1], 16), int(words[2].split(":")[1], 16)}
        established = words[3] == "01"
        if port in ports and established and words[4] != "00000000:00000000":
            # Requests wait in the server's own queue while this thread holds the lock: those count not.
            if int(words[1].split(":")[1], 16) == port and words[4].startswith("00000000:"):
                continue
            return True
    return False
