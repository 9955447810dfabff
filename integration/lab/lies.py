"""Answers of a web server that are wrong in a named way."""

from __future__ import annotations

import gzip
import re
from http.server import BaseHTTPRequestHandler

LIES = frozenset({"no-range", "wrong-range", "gzip", "endless", "garble", "longer"})
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
_LOGIN = b"<html><head><title>Welcome</title></head><body><form action=/login>Log in to go on</form></body></html>"
_PIECE = bytes(64 * 1024)


def lie(to: BaseHTTPRequestHandler, content: bytes, kind: str) -> None:
    """Answer a request for a file with `content` in a way that is wrong; a client that leaves ends it."""
    to.close_connection = True
    try:
        _answer(to, content, kind)
    except (BrokenPipeError, ConnectionResetError):
        return


def _answer(to: BaseHTTPRequestHandler, content: bytes, kind: str) -> None:
    match = _RANGE.fullmatch(to.headers.get("Range", ""))
    first = int(match.group(1)) if match else 0
    last = min(int(match.group(2)), len(content) - 1) if match and match.group(2) else len(content) - 1
    part = content[first : last + 1]
    if kind == "portal":
        _say(to, 200, _LOGIN, {"Content-Type": "text/html"})
    elif kind == "no-range":
        _say(to, 200, content)
    elif kind == "wrong-range":
        shift = 4096 if first == 0 else -min(first, 4096)
        there = {"Content-Range": f"bytes {first + shift}-{last + shift}/{len(content)}"}
        _say(to, 206 if match else 200, content[first + shift : last + 1 + shift], there if match else {})
    elif kind == "gzip":
        _say(to, 200, gzip.compress(part, 1), {"Content-Encoding": "gzip"})
    elif kind == "garble":
        wrong = bytearray(part)
        for at in range(0, len(wrong), 1000):
            wrong[at] ^= 0x55
        _say(to, 206 if match else 200, bytes(wrong), _place(match is not None, first, last, len(content)))
    elif kind == "longer":
        _say(to, 206 if match else 200, part + b"!", _place(match is not None, first, last + 1, len(content) + 1))
    else:
        _endless(to, part)


def _place(asked: bool, first: int, last: int, length: int) -> dict[str, str]:
    return {"Content-Range": f"bytes {first}-{last}/{length}"} if asked else {}


def _say(to: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    to.send_response(status)
    for name, value in {"Accept-Ranges": "bytes", **(headers or {}), "Content-Length": str(len(body))}.items():
        to.send_header(name, value)
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(body)


def _endless(to: BaseHTTPRequestHandler, part: bytes) -> None:
    to.send_response(200)
    to.end_headers()
    to.wfile.write(part)
    while True:
        to.wfile.write(_PIECE)
