"""A plain static web server (nginx) whose log tells what every client cost."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure

PORT = 8080
_STARTS_WITHIN_S = 20.0

_CONFIGURATION = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
{user}
events {{ worker_connections 512; }}
http {{
  # status, body and header bytes that were sent, request bytes that came, method and path
  log_format counted '$status $bytes_sent $request_length $request_method $uri';
  access_log {folder}/access.log counted;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  default_type application/octet-stream;
  sendfile on; tcp_nopush on; keepalive_timeout 65; keepalive_requests 1000000;
  open_file_cache max=1000;
  server {{ listen {port} backlog=256; root {root}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the server saw: requests, and bytes of HTTP both ways (heads and bodies), also by path."""

    requests: int
    bytes: int
    paths: dict[str, int]


def parse_log(text: str) -> Traffic:
    """Add up a log; a last line without its end is one that is still being written, and is left out."""
    complete = text[: text.rfind("\n") + 1]
    requests = 0
    paths: Counter[str] = Counter()
    for line in complete.splitlines():
        _, sent, received, _, path = line.split(" ", 4)
        requests += 1
        paths[path] += int(sent) + int(received)
    return Traffic(requests, paths.total(), dict(paths))


def parse_devices(text: str) -> int:
    """Add up the bytes, both ways, of all devices but the loopback in a `/proc/PID/net/dev`."""
    total = 0
    for line in text.splitlines()[2:]:
        name, numbers = line.split(":", 1)
        fields = numbers.split()
        if name.strip() != "lo":
            total += int(fields[0]) + int(fields[8])
    return total


class CountingServer:
    """nginx over one folder, started inside a namespace."""

    def __init__(self, folder: Path, pid: int) -> None:
        """Read the log that lies in nginx's own `folder`; `pid` is a process in its namespace."""
        self._log = folder / "access.log"
        self._pid = pid
        self._seen = 0

    def carried_bytes(self) -> int:
        """Return the bytes of all packets that passed the server's end of the line so far, both ways."""
        return parse_devices(Path(f"/proc/{self._pid}/net/dev").read_text())

    def traffic(self) -> Traffic:
        """Return what was logged since the last call; waits until the log is at rest, at most a second."""
        size = self._log.stat().st_size
        for _ in range(20):
            time.sleep(0.05)
            now = self._log.stat().st_size
            if now == size and now > self._seen:
                break
            size = now
        with self._log.open("rb") as file:
            file.seek(self._seen)
            raw = file.read()
        self._seen += len(raw)
        return parse_log(raw.decode("utf-8", "replace"))


@contextmanager
def serve(nginx: str, root: Path, folder: Path, prefix: Sequence[str]) -> Iterator[CountingServer]:
    """Serve `root`; `prefix` are the words that run a command in the server's namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(_CONFIGURATION.format(folder=folder, root=root, port=PORT, user=user))
    (folder / "access.log").write_text("")
    (folder / "nginx.pid").unlink(missing_ok=True)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*prefix, nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while not (folder / "nginx.pid").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "output").read_text("utf-8", "replace")[-300:]
                raise EnvironmentFailure(f"nginx does not start: {said}", mend="see its error.log", reason="no-server")
            time.sleep(0.02)
        yield CountingServer(folder, process.pid)
    finally:
        process.terminate()
        process.wait()
