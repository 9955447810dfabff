"""Looks at servers: a TCP port, an HTTP answer."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rollback.checks import Http, Tcp
from rollback.results import Outcome, Status

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

BODY_BYTES = 1 << 16


def look_at_port(check: Tcp) -> Outcome:
    """Judge whether a port accepts a connection."""
    where = f"{check.host} port {check.port}"
    try:
        socket.create_connection((check.host, check.port), timeout=check.timeout_s).close()
    except TimeoutError:
        return Outcome(Status.TIMEOUT, f"{where} did not accept a connection within {check.timeout_s:g} s")
    except OSError as error:
        return Outcome(Status.FAILED, f"{where} refuses: {error.strerror or error}")
    return Outcome(Status.OK, f"{where} accepts connections")


def look_at_server(check: Http) -> Outcome:
    """Judge a server's answer to one GET, asked directly: proxies are for reaching others, not for judging oneself."""
    from http.client import HTTPException

    deadline = time.monotonic() + check.timeout_s
    where = check.unix_socket or check.url
    try:
        connection = _connection(check)
        try:
            target = urlsplit(check.url)
            path = (target.path or "/") + (f"?{target.query}" if target.query else "")
            connection.request("GET", path, headers={"User-Agent": "acl-updater-health", "Accept": "*/*"})
            response = connection.getresponse()
            body = _body(response, deadline)
        finally:
            connection.close()
    except TimeoutError:
        return Outcome(Status.TIMEOUT, f"{where} did not answer within {check.timeout_s:g} s")
    except HTTPException as error:
        return Outcome(Status.FAILED, f"{where} does not speak HTTP: {type(error).__name__} {error}")
    except OSError as error:
        return Outcome(Status.FAILED, f"{where} cannot be reached: {error.strerror or error}")
    return _judge(check, where, response.status, body)


def _judge(check: Http, where: str, status: int, body: bytes) -> Outcome:
    text = body.decode("utf-8", "replace")
    if status != check.status:
        return Outcome(Status.FAILED, f"{where} answers with status {status} instead of {check.status}", text)
    if check.contains is not None and check.contains not in text:
        return Outcome(Status.FAILED, f"{where} does not say {check.contains!r}", text)
    if check.json_field is not None:
        try:
            found = _field(json.loads(body), check.json_field)
        except (ValueError, RecursionError):
            return Outcome(Status.FAILED, f"{where} does not answer in JSON", text)
        except LookupError:
            return Outcome(Status.FAILED, f"{where} has no field {check.json_field}", text)
        if not _equal(found, check.json_equals):
            why = f"{where} says {check.json_field} = {found!r} instead of {check.json_equals!r}"
            return Outcome(Status.FAILED, why, text)
    return Outcome(Status.OK, f"{where} answers with status {status}")


def _field(document: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if isinstance(document, list) and part.isdecimal():
            document = document[int(part)]
        elif isinstance(document, dict):
            document = document[part]
        else:
            raise LookupError(part)
    return document


def _equal(found: Any, wanted: Any) -> bool:
    # In Python true equals 1.
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _body(response: HTTPResponse, deadline: float) -> bytes:
    """Read the beginning of a body; each read has a timeout, and all of them a deadline."""
    body = b""
    while len(body) < BODY_BYTES:
        if time.monotonic() > deadline:
            raise TimeoutError
        chunk = response.read1(BODY_BYTES - len(body))
        if not chunk:
            break
        body += chunk
    return body


def _connection(check: Http) -> HTTPConnection:
    import ssl
    from http.client import HTTPConnection, HTTPSConnection

    target = urlsplit(check.url)
    host = target.hostname or ""
    if check.unix_socket is not None:
        connection = HTTPConnection(host, timeout=check.timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(check.timeout_s)
        try:
            connection.sock.connect(check.unix_socket)
        except OSError:
            connection.close()
            raise
        return connection
    if target.scheme == "https":
        context = ssl.create_default_context(cafile=check.ca_file)
        return HTTPSConnection(host, target.port, timeout=check.timeout_s, context=context)
    return HTTPConnection(host, target.port, timeout=check.timeout_s)
