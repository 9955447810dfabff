"""A limit on how long one call may block on a connection, however slowly bytes trickle in."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

_IDLE_S = 5.0


class _Watch:
    """Shuts the socket that one thread uses when its call outlasts its time.

    A socket's own timeout starts again with every byte, so that a server which sends its headers, a TLS handshake or a
    chunk's length one byte at a time could hold a node for years. A helper thread for each, while there are calls.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._socket: weakref.ref[socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._cut = False

    def watch(self, connection: socket.socket | None) -> None:
        """Name the socket that the current call blocks on."""
        self._socket = None if connection is None else weakref.ref(connection)

    def watched(self) -> socket.socket | None:
        """Return the socket that was named last, if it still exists."""
        return self._socket() if self._socket is not None else None

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Shut the socket when the block is not left within `seconds`; raise TimeoutError then."""
        self._cut = False
        with self._changed:
            idle = self._deadline is None
            self._deadline = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="http-guard", daemon=True)
                self._thread.start()
            elif idle:
                self._changed.notify()
        try:
            yield
        except Exception as error:
            if self._cut:
                raise TimeoutError(f"nothing whole arrived within {seconds:g} s") from error
            raise
        finally:
            # The thread wakes at the old deadline, if at all, and finds that there is none.
            self._deadline = None
        if self._cut:
            raise TimeoutError(f"nothing whole arrived within {seconds:g} s")

    def cut(self) -> None:
        """End the call that is under way, if any, as if its time were up."""
        with self._changed:
            # Before its socket is named, a call keeps its deadline: it may be cut again.
            if self._deadline is not None and self.watched() is not None:
                self._deadline = None
                self._shut()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                deadline = self._deadline
                if deadline is None:
                    if not self._changed.wait(_IDLE_S) and self._deadline is None:
                        self._thread = None
                        return
                elif (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
                else:
                    self._deadline = None
                    self._shut()

    def _shut(self) -> None:
        self._cut = True
        connection = self._socket() if self._socket is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):
                # Past SSLSocket.shutdown, which would let the reader go on without TLS.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Guard:
    """Limits what each thread's calls may block; the threads of one mirror share the guard and nothing else."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._watches: weakref.WeakSet[_Watch] = weakref.WeakSet()
        self._adding = threading.Lock()

    def watch(self, connection: socket.socket | None) -> None:
        """Name the socket that this thread's current call blocks on."""
        self._mine().watch(connection)

    def watched(self) -> socket.socket | None:
        """Return the socket that this thread named last."""
        return self._mine().watched()

    def limit(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Shut this thread's socket when the block is not left within `seconds`; raise TimeoutError then."""
        return self._mine().limit(seconds)

    def cut(self) -> None:
        """End what every thread waits for."""
        with self._adding:
            watches = list(self._watches)
        for watch in watches:
            watch.cut()

    def close(self) -> None:
        """End the helper threads."""
        with self._adding:
            watches = list(self._watches)
        for watch in watches:
            watch.close()

    def _mine(self) -> _Watch:
        found: _Watch | None = getattr(self._local, "watch", None)
        if found is None:
            found = self._local.watch = _Watch()
            with self._adding:
                self._watches.add(found)
        return found


def guarded_adapter(guard: Guard, *, pool_maxsize: int) -> HTTPAdapter:
    """Return an adapter for requests whose connections show their sockets to `guard`."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.response import HTTPResponse

    class PlainConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            guard.watch(made)
            return made

        def getresponse(self) -> HTTPResponse:  # type: ignore[override]
            guard.watch(self.sock)
            return super().getresponse()

    class SecureConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            guard.watch(made)
            return made

        def getresponse(self) -> HTTPResponse:  # type: ignore[override]
            guard.watch(self.sock)
            return super().getresponse()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    pools = {"http": PlainPool, "https": SecurePool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(*args, **kwargs)
            manager.pool_classes_by_scheme = pools
            return manager

    return Adapter(pool_maxsize=pool_maxsize)
