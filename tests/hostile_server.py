"""Web servers on loopback that misbehave as they are told."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Play = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; a play answers it with the methods here."""

    protocol_version = "HTTP/1.1"
    server: HostileServer
    timeout = 20
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.seen.append(Seen(self.path, dict(self.headers.items()), self.client_address[1]))
        self.server.play(self)

    def do_CONNECT(self) -> None:
        """Be a proxy: pass bytes on to the named server until one side ends."""
        self.server.seen.append(Seen(self.path, dict(self.headers.items()), self.client_address[1]))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((self.server.instead_of.get(host, host), int(port))) as there:
            self.send_response(200)
            self.end_headers()
            answers = threading.Thread(target=_passed_on, args=(there, self.connection), daemon=True)
            answers.start()
            _passed_on(self.connection, there)
            answers.join(10)
        self.close_connection = True

    @property
    def span(self) -> tuple[int, int] | None:
        """Return (first, last) as asked by the Range header."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(match.group(1)), int(match.group(2))) if match else None

    def answer(self, status: int, body: bytes = b"", *, length: int | None = -1, **headers: str) -> None:
        """Send a response; `length` announces another length than the body has, None announces none."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        else:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def serve(self, content: bytes, *, cut: int | None = None, ranges: bool = True) -> None:
        """Answer as a good server would, except that the connection ends after `cut` bytes of the body."""
        span = self.span if ranges else None
        first, last = span if span else (0, len(content) - 1)
        last = min(last, len(content) - 1)
        if first > last:
            self.answer(416, Content_Range=f"bytes */{len(content)}")
            return
        body = content[first : last + 1]
        headers = {"Content_Range": f"bytes {first}-{last}/{len(content)}"} if span else {}
        self.answer(206 if span else 200, body[:cut], length=len(body), **headers)
        if cut is not None and cut < len(body):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    connection: int


class HostileServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves what its play says."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, play: Play) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.play = play
        self.seen: list[Seen] = []
        # Plays that hang wait for this, so that no thread outlives its test.
        self.over = threading.Event()
        self.scheme = "http"
        # Names that only the proxy knows.
        self.instead_of: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/repo"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave misbehaving servers: that is the point."""


def _passed_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def hostile(play: Play, *, certificate: Path | None = None, client_ca: Path | None = None) -> Iterator[HostileServer]:
    """Run a server for the length of a block, with TLS when a PEM file of key and certificate is given."""
    server = HostileServer(play)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
