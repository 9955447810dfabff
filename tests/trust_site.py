"""A publisher with a real repository behind a real web server, and the nodes that trust it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.releases import Release, make_release
from updater.fetch import Fetcher
from updater.files import Directory, MountedDirectory
from updater.release import channels, create, publish, renew, rotate
from updater.release.keys import KeyRing, new_names
from updater.release.repository import Repository
from updater.release.serve import StaticServer
from updater.release.settings import DEFAULT_LIFETIMES_S, Settings
from updater.trust import Trust

START = datetime(2026, 11, 20, 5, 0, 0, tzinfo=UTC)
BUILT = datetime(2026, 11, 1, tzinfo=UTC)


class Site:
    """A publisher with all keys at hand; `now` is the time at which everything is signed."""

    def __init__(self, folder: Path, *, scheme: str = "ed25519", root_keys: int = 3, **lifetimes_s: int) -> None:
        self.folder = folder
        self.repo = folder / "repo"
        self.keys = folder / "keys"
        self.ring = KeyRing([self.keys])
        self.now = START
        for name in new_names(root_keys):
            self.ring.create(name, scheme, None)
        create.create(self.repo, self.ring, Settings({**DEFAULT_LIFETIMES_S, **lifetimes_s}), None, self.clock)

    def clock(self) -> datetime:
        return self.now

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    @property
    def roots(self) -> list[Path]:
        """Return the roots that images ship: the first only, as an old image has it."""
        return [self.repo / "metadata" / "1.root.json"]

    def open(self, directory: Directory | None = None) -> Repository:
        """Open the repository, through another `Directory` where a test wants to break its writes."""
        return Repository(directory or MountedDirectory(self.repo), self.ring, self.clock)

    def built(self, version: str, **details: Any) -> Path:
        """Return a folder with a small built release."""
        return make_release(version, blocks=130, **details).write(self.folder / "out" / version)

    def publish(self, *versions: str) -> None:
        publish.publish(self.open(), [self.built(version) for version in versions])

    def publish_release(self, release: Release) -> None:
        publish.publish(self.open(), [release.write(self.folder / "out" / release.version)])

    def promote(self, version: str, channel: str = "stable") -> None:
        channels.promote(self.open(), version, channel)

    def withdraw(self, version: str, why: str, instead: str | None = None) -> list[channels.Moved]:
        return channels.withdraw(self.open(), version, why, instead)

    def refresh(self, *roles: str) -> None:
        renew.refresh(self.open(), roles)

    def rotate(self, name: str) -> rotate.Rotated:
        return rotate.rotate(self.open(), name, "ed25519", None)

    def copy(self, name: str) -> Path:
        """Return a copy of the repository as it is now: a mirror that will be frozen or tampered with."""
        return Path(shutil.copytree(self.repo, self.folder / name))

    def raw(self, name: str) -> bytes:
        return (self.repo / "metadata" / name).read_bytes()


class Node:
    """A node with its state folder, its clock and the roots of its image."""

    def __init__(self, state: Path | Directory, roots: Sequence[Path], clock: Callable[[], datetime]) -> None:
        self.state = state
        self.roots = list(roots)
        self.clock = clock
        self.built = BUILT

    def trust(self, *mirrors: str) -> Trust:
        """Return what a freshly started process of this node would work with."""
        return Trust(
            self.state,
            Fetcher([str(mirror) for mirror in mirrors], sleep=lambda seconds: None),
            bootstrap_roots=self.roots,
            now=self.clock,
            time_floor=self.built,
        )

    def files(self) -> dict[str, bytes]:
        """Return all that is left on its disk."""
        assert isinstance(self.state, Path)
        return {
            str(path.relative_to(self.state)): path.read_bytes() for path in self.state.rglob("*") if path.is_file()
        }


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP for the length of a block; yield its URL."""
    server = StaticServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
