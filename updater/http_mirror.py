"""A repository on a static web server or in a blob store."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from updater import __version__
from updater.errors import EnvironmentFailure
from updater.files import checked
from updater.http_guard import Guard, guarded_adapter
from updater.mirrors import PIECE_BYTES, Budget, MirrorFailure, Timeouts, not_found

if TYPE_CHECKING:
    import requests

SKIP_LIMIT_BYTES = 1 << 28
CONNECTIONS = 8
"""Connections that are kept open to one server: as many requests are ever under way at once."""
_MAX_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(slots=True)
class _Body:
    """A response on its way: the next byte is the file's byte `position`; the last one, if that is known, `end` - 1."""

    response: requests.Response
    socket: socket.socket | None
    position: int = -1
    end: int | None = None

    def __del__(self) -> None:
        # One that was left open goes with its mirror.
        self.response.close()


class HttpMirror:
    """A static web server or blob store; proxies and their exceptions come from the environment.

    Several threads may read from it at once.
    """

    local = False

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts,
        verify: str | bool = True,
        client_cert: str | tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the folder's URL; `verify` is a CA bundle or True, as in requests."""
        self._base = url.rstrip("/") + "/"
        self._timeouts = timeouts
        self._verify = verify
        self._client_cert = client_cert
        self._headers = dict(headers or {})
        self._on_request = on_request
        self._session: requests.Session | None = None
        self._guard = Guard()
        self._opening = threading.Lock()
        self._open_bodies: dict[str, list[_Body]] = {}

    @property
    def name(self) -> str:
        """Return the URL without user and password."""
        parts = urllib.parse.urlsplit(self._base)
        return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def pieces(
        self, path: str, offset: int, length: int, budget: Budget, *, ranged: bool
    ) -> Generator[bytes, None, None]:
        """Yield a range of a file from one response."""
        import http.client

        import requests
        import urllib3

        url = self._base + urllib.parse.quote(checked(path), safe="/")
        stop = offset + length
        try:
            body = self._left_open(path, offset) if ranged else None
            if body is None:
                response = self._ask(url, f"bytes={offset}-{stop - 1}" if ranged else None, budget)
                body = _Body(response, self._guard.watched())
            self._guard.watch(body.socket)
            try:
                if body.position < 0:
                    body.position, body.end = self._judge(body.response, path, offset, length, ranged)
                yield from self._read(body, path, offset, stop, budget)
                if ranged and body.response.status_code == 200 and body.position == stop != body.end:
                    self._leave_open(path, body)
                    body = None
            finally:
                if body is not None:
                    body.response.close()
        except requests.exceptions.SSLError as error:
            raise self._failure(
                f"refuses the certificate of {self.name}: {_root_cause(error)}",
                "see the clock, the CA file and the server's certificate",
                "tls-refused",
                False,
                "this node ",
            ) from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise self._failure("did not answer in time", "see the network and the server", "timeout", True) from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise self._failure(
                f"is no address that can be asked: {error}", "mend it", "mirror-invalid", False
            ) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._failure(
                f"failed while {path} was read: {_root_cause(error)}",
                "see the network and the server",
                "unreachable",
                True,
            ) from error

    def _ask(self, url: str, byte_range: str | None, budget: Budget) -> requests.Response:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"acl-updater/{__version__}", **self._headers}
        if byte_range:
            headers["Range"] = byte_range
        first = urllib.parse.urlsplit(url)
        for _ in range(_MAX_REDIRECTS + 1):
            if budget.left_s <= 0:
                raise self._stalled("the time for this file is used up", reason="deadline")
            began = budget.clock()
            self._on_request()
            response: requests.Response | None = None
            try:
                with self._guard.limit(min(self._timeouts.connect_s + self._timeouts.stall_s, budget.left_s)):
                    response = self._send(url, headers, budget)
            except TimeoutError:
                # Headers that were cut short can still look like a response.
                if response is not None:
                    response.close()
                raise
            finally:
                budget.spend(budget.clock() - began)
            target = response.headers.get("Location") if response.is_redirect else None
            if target is None:
                return response
            response.close()
            url = urllib.parse.urljoin(url, target)
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https") or (first.scheme == "https" and parts.scheme != "https"):
                raise self._misbehaves(f"redirects to {parts.scheme or 'nowhere'}, away from {first.scheme}")
            if (parts.scheme, parts.netloc) != (first.scheme, first.netloc):
                # Configured headers may carry a token that is meant for the first server only.
                for name in self._headers:
                    headers.pop(name, None)
        raise self._misbehaves(f"redirects more than {_MAX_REDIRECTS} times")

    def _send(self, url: str, headers: Mapping[str, str], budget: Budget) -> requests.Response:
        """Send one request past the session, which would read a redirect's body to its end, however long it is."""
        import requests

        session = self._opened_session()
        prepared = session.prepare_request(requests.Request("GET", url, headers=dict(headers)))
        environment = session.merge_environment_settings(url, {}, True, self._verify, self._client_cert)
        return session.get_adapter(url).send(
            prepared,
            stream=True,
            timeout=(min(self._timeouts.connect_s, budget.left_s), min(self._timeouts.stall_s, budget.left_s)),
            verify=self._verify,
            cert=self._client_cert,
            proxies=environment["proxies"],
        )

    def _judge(
        self, response: requests.Response, path: str, offset: int, length: int, ranged: bool
    ) -> tuple[int, int | None]:
        """Return where the body starts in the file, and where it ends as far as the headers tell."""
        status = response.status_code
        if status in (404, 410):
            raise not_found(self.name, path, f"HTTP {status}")
        if status in (401, 403, 407):
            raise self._failure(
                f"does not let this node read {path} (HTTP {status})",
                "see the node's credentials and the server's rules",
                "forbidden",
                False,
            )
        if status in (408, 425, 429) or status >= 500:
            raise self._failure(
                f"answered HTTP {status} for {path}",
                "try again later, or see the server's log",
                "server-busy",
                True,
                wait_s=_retry_after(response.headers.get("Retry-After")),
            )
        if status == 416:
            raise self._misbehaves(f"says that {path} ends before byte {offset}", reason="file-too-short")
        if status not in ((200, 206) if ranged else (200,)):
            raise self._misbehaves(f"answered HTTP {status} for {path}")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise self._misbehaves(f"sent {path} as {encoding[:40]!r} although only plain bytes were asked for")
        announced = response.headers.get("Content-Length", "")
        body_length = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 20 else None
        if status == 200:
            if offset > SKIP_LIMIT_BYTES:
                raise self._misbehaves(f"does not know Range requests, and {path} is wanted from byte {offset} on")
            return 0, body_length
        header = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(header.strip())
        if match is None:
            raise self._misbehaves(f"sent {path} with the Content-Range {header[:80]!r}")
        begin, last = int(match.group(1)), int(match.group(2))
        total = None if match.group(3) == "*" else int(match.group(3))
        if (
            begin != offset
            or not begin <= last < offset + length
            or (total is not None and total <= last)
            or (body_length is not None and body_length != last + 1 - begin)
        ):
            raise self._misbehaves(
                f"was asked for bytes {offset} to {offset + length - 1} of {path}, and sent {header[:80]!r}"
                f" with {body_length if body_length is not None else 'an unknown number of'} bytes"
            )
        return begin, last + 1

    def _left_open(self, path: str, offset: int) -> _Body | None:
        """Return the body of a whole file that was left nearest before `offset`."""
        with self._opening:
            bodies = [body for body in self._open_bodies.get(path, []) if body.position <= offset]
            if not bodies:
                return None
            nearest = max(bodies, key=lambda body: body.position)
            self._open_bodies[path].remove(nearest)
            return nearest

    def _leave_open(self, path: str, body: _Body) -> None:
        """Keep what a server without Range is sending for whoever wants the file's next bytes: one for each thread."""
        with self._opening:
            stale = [old for name, bodies in self._open_bodies.items() if name != path for old in bodies]
            self._open_bodies = {path: [*self._open_bodies.get(path, []), body]}
            while len(self._open_bodies[path]) > CONNECTIONS // 2:
                stale.append(self._open_bodies[path].pop(0))
        for old in stale:
            old.response.close()

    def _read(self, body: _Body, path: str, offset: int, stop: int, budget: Budget) -> Generator[bytes, None, None]:
        """Yield the bytes from `offset` to `stop` of a body; those before are passed over."""
        raw, position, end = body.response.raw, body.position, body.end
        goal = stop if end is None else min(end, stop)
        window_s = 0.0
        window_bytes = 0
        while position < goal:
            began = budget.clock()
            with self._guard.limit(2 * self._timeouts.stall_s):
                piece = raw.read1(min(PIECE_BYTES, goal - position), decode_content=False)
            waited = budget.clock() - began
            budget.spend(waited)
            if not piece:
                break
            window_s += waited
            window_bytes += len(piece)
            # A server without Range sends what lies before the offset as well.
            fresh = piece[max(0, offset - position) :]
            position += len(piece)
            body.position = position
            if fresh:
                yield fresh
            if budget.left_s <= 0:
                raise self._stalled(f"took too long over {path}", reason="deadline")
            if window_s >= self._timeouts.stall_s:
                if window_bytes < self._timeouts.slowest_bytes_per_s * window_s:
                    raise self._stalled(f"sent {window_bytes} bytes of {path} in {window_s:.0f} s")
                window_s, window_bytes = 0.0, 0
        if end is not None and position < goal:
            raise self._failure(
                f"closed the connection {end - position} bytes before the announced end of {path}",
                "see the network and the server",
                "short-body",
                True,
            )
        if position == end and "Content-Length" in body.response.headers:
            # http.client notices the end of a body, and gives the connection back, only by a read past it.
            with self._guard.limit(self._timeouts.stall_s):
                raw.read(1)

    def _opened_session(self) -> requests.Session:
        with self._opening:
            if self._session is None:
                from http.cookiejar import DefaultCookiePolicy

                import requests

                session = requests.Session()
                session.cert = self._client_cert
                # Cookies are the only thing of a session that a response changes, and threads share this one.
                session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
                for scheme in ("https://", "http://"):
                    session.mount(scheme, guarded_adapter(self._guard, pool_maxsize=CONNECTIONS))
                self._session = session
            return self._session

    def cut(self) -> None:
        """End the calls that are under way."""
        self._guard.cut()

    def close(self) -> None:
        """Close the kept connections."""
        for bodies in self._open_bodies.values():
            for body in bodies:
                body.response.close()
        self._open_bodies.clear()
        if self._session is not None:
            self._session.close()
            self._session = None
            self._guard.close()
            self._guard = Guard()

    def _failure(
        self, what: str, mend: str, reason: str, again: bool, subject: str | None = None, wait_s: float | None = None
    ) -> MirrorFailure:
        who = f"{self.name} " if subject is None else subject
        return MirrorFailure(who + what, mend=mend, reason=reason, again=again, wait_s=wait_s, mirror=self.name)

    def _misbehaves(self, what: str, reason: str = "server-misbehaves") -> MirrorFailure:
        return self._failure(what, "use another mirror, or mend that server", reason, False)

    def _stalled(self, what: str, reason: str = "stalled") -> MirrorFailure:
        return self._failure(what, "see the network and the server", reason, True)


def ca_bundle(ca_file: Path | None) -> str | bool:
    """Return what proves servers: the given file, else the environment's or the system's, else requests' own."""
    if ca_file is not None:
        if not ca_file.is_file():
            raise EnvironmentFailure(
                f"the CA file {ca_file} is not there",
                mend="mend its path in the configuration",
                reason="ca-file-missing",
            )
        return str(ca_file)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if os.environ.get(name):
            return os.environ[name]
    system = Path("/etc/ssl/certs/ca-certificates.crt")
    return str(system) if system.is_file() else True


def _retry_after(text: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, at least 0; None when it says nothing that is known."""
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _root_cause(error: BaseException) -> str:
    """Return the innermost reason that requests and urllib3 wrap, on one line."""
    innermost = error
    seen = {id(error)}
    while True:
        inner = [getattr(innermost, "reason", None), *innermost.args, innermost.__cause__, innermost.__context__]
        found = next((item for item in inner if isinstance(item, BaseException) and id(item) not in seen), None)
        if found is None:
            break
        seen.add(id(found))
        innermost = found
    text = (innermost.strerror if isinstance(innermost, OSError) else "") or str(innermost) or type(innermost).__name__
    return " ".join(text.split())[:300]
