"""A static web server for tests: Range requests, byte counts and faults on demand."""

from __future__ import annotations

import fnmatch
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from integration.lab.lies import LIES, lie

_CHUNK_BYTES = 64 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


@dataclass(frozen=True, slots=True)
class ServerFault:
    """What goes wrong: for paths that match `paths`, after `after_bytes` of body were served in all.

    `kind` is `refuse` (connections are closed without a word), `reset` (by a TCP reset), `cut` (the body ends early),
    `stall` (the body stops for ever), `slow` (`rate` bytes a second), `status` (an HTTP status in place of the file),
    `portal` (a page that wants a login), or one of the lies about a file's bytes in `integration.lab.lies`.
    """

    kind: str
    paths: str = "*"
    after_bytes: int = 0
    status: int = 503
    rate: int = 20_000


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was answered."""

    at_s: float
    path: str
    status: int
    body_bytes: int


class LabServer:
    """Serves a folder on a loopback port of its own; a context manager."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        """Serve `folder`; port 0 takes a free one."""
        self.folder = folder.resolve()
        self._lock = threading.Condition()
        self._fault: ServerFault | None = None
        self._bytes = 0
        self._mark = 0
        self.fault_hits = 0
        self._closing = threading.Event()
        self.served: list[Served] = []
        self.on_bytes: list[Callable[[int], None]] = []
        outer = self

        class Handler(_Handler):
            server_of_tests = outer

        self._http = Http(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True, name="http")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Return its address on the host, without a final slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def body_bytes(self) -> int:
        """Return the bytes of file bodies that were sent so far."""
        return self._bytes

    @property
    def bytes_since_mark(self) -> int:
        """Return the bytes sent since `mark`."""
        return self._bytes - self._mark

    def mark(self) -> None:
        """Begin to count `bytes_since_mark` anew."""
        with self._lock:
            self._mark = self._bytes

    def break_with(self, fault: ServerFault | None) -> None:
        """Set the fault, or mend the server with None."""
        with self._lock:
            self._fault = fault
            self._mark = self._bytes

    # -- called by handlers --------------------------------------------------------------------------------------

    def fault_for(self, path: str) -> ServerFault | None:
        """Return the fault that a request for `path` meets now."""
        fault = self._fault
        if fault is None or not fnmatch.fnmatch(path, fault.paths) or self.bytes_since_mark < fault.after_bytes:
            return None
        self.fault_hits += 1
        return fault

    def count(self, length: int) -> None:
        """Count body bytes that went out."""
        with self._lock:
            self._bytes += length
            total = self.bytes_since_mark
        for callback in list(self.on_bytes):
            callback(total)

    def wait_for_end(self) -> None:
        """Hold a stalled request until the server closes."""
        self._closing.wait()

    def record(self, path: str, status: int, body_bytes: int) -> None:
        """Keep an answered request."""
        with self._lock:
            self.served.append(Served(time.time(), path, status, body_bytes))


class Http(ThreadingHTTPServer):
    """A server to which a client that hangs up, as one whose power is cut, is nothing worth a word."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error in answering, unless it is the client's leaving."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_tests: LabServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the lab keeps its own record."""

    def _answer(self, *, with_body: bool) -> None:
        tests = self.server_of_tests
        path = unquote(urlsplit(self.path).path).lstrip("/")
        fault = tests.fault_for(path)
        if fault is not None and self._fails(path, fault):
            return
        file = (tests.folder / path).resolve()
        if not file.is_relative_to(tests.folder) or not file.is_file():
            self._refuse(path, HTTPStatus.NOT_FOUND)
            return
        length = file.stat().st_size
        if fault is not None and fault.kind in LIES:
            lie(self, file.read_bytes(), fault.kind)
            return
        start, end, status = 0, length, HTTPStatus.OK
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted and any(wanted.groups()):
            first, last = wanted.groups()
            start = int(first) if first else max(0, length - int(last))
            end = min(length, int(last) + 1) if first and last else length
            if start >= end:
                self._refuse(path, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"bytes */{length}")
                return
            status = HTTPStatus.PARTIAL_CONTENT
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        if status is HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{length}")
        self.end_headers()
        tests.record(path, status, end - start if with_body else 0)
        if with_body:
            self._send(file, path, start, end)

    def _fails(self, path: str, fault: ServerFault) -> bool:
        """Answer without the file, where that is what the fault does."""
        if fault.kind == "status":
            self._refuse(path, fault.status)
        elif fault.kind == "portal":
            lie(self, b"", fault.kind)
        elif fault.kind in ("refuse", "reset", "stall"):
            if fault.kind == "stall":
                self.server_of_tests.wait_for_end()
            elif fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
        else:
            return False
        return True

    def _send(self, file: Path, path: str, start: int, end: int) -> None:
        tests = self.server_of_tests
        try:
            with file.open("rb") as source:
                source.seek(start)
                while start < end:
                    fault = tests.fault_for(path)
                    slow = fault is not None and fault.kind == "slow"
                    if fault is not None and not slow and fault.kind not in LIES:
                        self.close_connection = True
                        if fault.kind == "stall":
                            tests.wait_for_end()
                        return
                    most = _CHUNK_BYTES
                    if fault is not None and slow:
                        most = max(1, min(most, fault.rate // 4))
                        time.sleep(most / fault.rate)
                    data = source.read(min(most, end - start))
                    self.wfile.write(data)
                    start += len(data)
                    tests.count(len(data))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse(self, path: str, status: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.server_of_tests.record(path, status, 0)
