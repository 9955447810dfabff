"""Places that hold a repository, each asked once for a range of a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from updater.errors import NetworkFailure
from updater.files import checked

PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a server may take, in seconds of waiting for it (our own work does not count).

    A connection that brings less than `slowest_bytes_per_s` over `stall_s` has stalled. A whole call may wait for each
    mirror, its retries and pauses included, `grace_s` and the time that its bytes take at the slowest rate.
    """

    connect_s: float = 10.0
    stall_s: float = 30.0
    slowest_bytes_per_s: int = 4096
    grace_s: float = 180.0


class MirrorFailure(NetworkFailure):
    """An attempt that failed; `again` tells whether this same mirror may do better in a moment."""

    def __init__(
        self, message: str, *, mend: str, reason: str, again: bool, wait_s: float | None = None, mirror: str = ""
    ) -> None:
        super().__init__(message, mend=mend, reason=reason)
        self.again = again
        self.wait_s = wait_s
        self.mirror = mirror


class Budget:
    """The time that one call may still wait for one mirror."""

    def __init__(self, allowed_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.left_s = allowed_s
        self.clock = clock

    def spend(self, seconds: float) -> None:
        """Take waited time off."""
        self.left_s -= seconds


class Mirror(Protocol):
    """A place that holds the repository."""

    @property
    def name(self) -> str:
        """Return its address without secrets, for messages."""

    @property
    def local(self) -> bool:
        """Tell whether its bytes lie on this machine: fetching them again costs nothing."""

    def pieces(
        self, path: str, offset: int, length: int, budget: Budget, *, ranged: bool
    ) -> Generator[bytes, None, None]:
        """Yield at most `length` bytes of a file from `offset` on, fewer only where the file ends; raise MirrorFailure.

        `ranged` asks a web server for just that range; otherwise the whole file is asked for, and left after `length`.
        """

    def cut(self) -> None:
        """End the calls that are under way, in whatever thread: they fail."""

    def close(self) -> None:
        """Let go of what is kept open."""


class FolderMirror:
    """A local folder that holds the repository, such as a mounted stick."""

    local = True

    def __init__(self, base: Path) -> None:
        """Serve files below `base`."""
        self.base = base

    @property
    def name(self) -> str:
        """Return the folder's path."""
        return str(self.base)

    def pieces(
        self, path: str, offset: int, length: int, budget: Budget, *, ranged: bool
    ) -> Generator[bytes, None, None]:
        """Yield a range of a file."""
        at = self.base / checked(path)
        try:
            with at.open("rb") as file:
                file.seek(offset)
                while length > 0 and (piece := file.read(min(length, PIECE_BYTES))):
                    length -= len(piece)
                    yield piece
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise not_found(self.name, path, "there is no such file") from error
        except OSError as error:
            raise MirrorFailure(
                f"cannot read {at}: {error.strerror or error}",
                mend="see whether that folder's medium is well",
                reason="file-error",
                again=False,
                mirror=self.name,
            ) from error

    def cut(self) -> None:
        """Do nothing: no call waits for anybody."""

    def close(self) -> None:
        """Do nothing: no file stays open."""


def not_found(mirror: str, path: str, why: str) -> MirrorFailure:
    """Return the failure of a mirror that lacks a file."""
    return MirrorFailure(
        f"{mirror} does not have {path} ({why})",
        mend="see whether its address is right and its content complete",
        reason="not-found",
        again=False,
        mirror=mirror,
    )
