"""A static web server with Range requests, for development and for tests."""

from __future__ import annotations

import http.server
import logging
import os
import re
import socketserver
import urllib.parse
from collections import deque
from pathlib import Path
from typing import IO, ClassVar

log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d{1,19})?-(\d{1,19})?")
_COPY_BYTES = 1 << 18


class StaticServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serve the files of one folder over HTTP; port 0 takes a free one."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        """Bind at once; `serve_forever` then answers."""
        self.folder = folder.resolve()
        self.requests_seen: deque[str] = deque(maxlen=10_000)
        super().__init__((host, port), RangeHandler)

    @property
    def url(self) -> str:
        """Return the base URL."""
        host, port = self.server_address[:2]
        shown = host.decode() if isinstance(host, bytes | bytearray) else str(host)
        return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a broken connection as one line: clients leave whenever they like."""
        log.debug("serve: %s left", client_address, exc_info=True)


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of plain files, whole or one range; anything else is 404, 405 or 416."""

    protocol_version = "HTTP/1.1"
    server: StaticServer
    server_version = "acl-release"
    sys_version = ""
    timeout: ClassVar[float] = 60
    # Headers and body are two writes: Nagle would hold the second until the first is acknowledged, 40 ms later.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer with the file's bytes."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests_seen.append(self.path)
        at = self._file()
        if at is None:
            self._refuse(404)
            return
        try:
            file = at.open("rb")
        except OSError:
            self._refuse(404)
            return
        with file:
            self._send(file, at, with_body)

    def _file(self) -> Path | None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        parts = [part for part in path.split("/") if part]
        if any(part in (".", "..") or "\0" in part for part in parts):
            return None
        at = self.server.folder.joinpath(*parts)
        # A link out of the folder would publish what nobody meant to publish.
        if not at.is_file() or not at.resolve().is_relative_to(self.server.folder):
            return None
        return at

    def _send(self, file: IO[bytes], at: Path, with_body: bool) -> None:
        length = os.fstat(file.fileno()).st_size
        first, last = 0, length - 1
        asked = self.headers.get("Range")
        partial = False
        if asked is not None:
            span = _span(asked, length)
            if span == "unsatisfiable":
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{length}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if isinstance(span, tuple):
                first, last = span
                partial = True
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{last}/{length}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        # Only the timestamp is ever replaced; all other files keep their bytes for ever.
        fresh = at.name == "timestamp.json"
        self.send_header("Cache-Control", "no-cache" if fresh else "public, max-age=31536000, immutable")
        self.end_headers()
        if with_body:
            file.seek(first)
            left = last - first + 1
            while left > 0 and (chunk := file.read(min(left, _COPY_BYTES))):
                self.wfile.write(chunk)
                left -= len(chunk)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        # A cached 404 would hide the next root from nodes.
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log each request at the level of details."""
        log.info("serve: %s %s", self.client_address[0], format % args)


def _span(header: str, length: int) -> tuple[int, int] | str | None:
    """Return (first, last) of a single range, "unsatisfiable", or None for a header to be ignored (RFC 9110, 14.2)."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == (None, None):
        return None
    first_text, last_text = match.groups()
    if first_text is None:
        wanted = int(last_text)
        return (max(0, length - wanted), length - 1) if wanted and length else "unsatisfiable"
    first = int(first_text)
    last = length - 1 if last_text is None else min(int(last_text), length - 1)
    if last_text is not None and int(last_text) < first:
        return None
    return (first, last) if first < length else "unsatisfiable"
