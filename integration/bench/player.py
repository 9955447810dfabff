"""A contender at work: it makes what is served, once, and then updates a slot again and again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from integration.bench.contenders import Contender
from integration.bench.link import SERVER_ADDRESS, Namespaces
from integration.bench.making import made_once
from integration.bench.measure import Usage, forget, run_measured
from integration.bench.peers import Peers
from integration.bench.results import Making, Sample
from integration.bench.server import PORT, CountingServer
from integration.bench.slots import digest, fill, require_same
from updater.release.build import BuiltRelease

SCRIPTS = Path(__file__).with_name("scripts")


@dataclass(frozen=True, slots=True)
class Match:
    """A pair on the bench: its two images, and the folders of this run.

    `boot_bytes` is the length of the newer kernel and initrd as they are shipped, compressed; `publishing` are further
    options with which our newer release is published.
    """

    name: str
    old: BuiltRelease
    new: BuiltRelease
    folder: Path
    served: Path
    boot_bytes: int
    publishing: tuple[str, ...] = ()

    @property
    def length_bytes(self) -> int:
        """Return how long a slot must be."""
        return max(self.old.image.stat().st_size, self.new.image.stat().st_size)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an update takes place: the line, and the server at its end."""

    namespaces: Namespaces
    server: CountingServer
    line: str

    def url(self, match: Match, contender: str) -> str:
        """Return the address of what a contender serves."""
        return f"http://{SERVER_ADDRESS}:{PORT}/{match.name}/{contender}"


class Player(Protocol):
    """One way of updating, over and over."""

    name: str

    def make(self) -> Making:
        """Make what is served, or find it made."""

    def reset(self, other_slot: str) -> None:
        """Bring the node back to where it was before any update."""

    def update(self, ground: Ground, other_slot: str, stop_when: Callable[[], bool] | None = None) -> Sample:
        """Update once and return the cost; with `stop_when`, until the kill."""

    def check(self) -> None:
        """Raise EnvironmentFailure when the slot does not hold the newer image."""


class Peer:
    """A player that runs a contender's scripts."""

    def __init__(self, contender: Contender, match: Match, peers: Peers, keys: Path) -> None:
        """Take the scripts, the pair and the programs; `keys` holds a certificate for bundles."""
        self.name = contender.name
        self._contender = contender
        self._match = match
        self._work = match.folder / "work"
        self._slot = match.folder / "slot.img"
        self._served = match.served / contender.name
        self._node = match.folder / "kept" / contender.name
        self._expected = ""
        self._environment = {
            "PATH": f"{peers.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(peers.python_path),
            "CASYNC_PROTOCOL_PATH": str(peers.bin),
            "LC_ALL": "C.UTF-8",
            "HOME": str(match.folder),
            "OLD": str(match.old.image),
            "NEW": str(match.new.image),
            "SEED": str(match.old.image),
            "SLOT": str(self._slot),
            "OUT": str(self._served),
            "WORK": str(self._work),
            "NODE": str(self._node),
            "KEYS": str(keys),
            "BOOT_BYTES": str(match.boot_bytes),
            **contender.settings,
        }
        self._version = peers.versions.get(contender.peer, "")

    def make(self) -> Making:
        stamp = self._served.parent / f"{self.name}.json"
        releases = (self._match.old, self._match.new)
        key = [(SCRIPTS / self._contender.file).read_text(), dict(self._contender.settings), self._version]
        key += [release.manifest.root.root_hash for release in releases]
        return made_once(stamp, key, self._made)

    def _made(self) -> Making:
        for folder in (self._served, self._node):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._empty_work()
        usage = self._script("make", {}, [])
        served = sum(path.stat().st_size for path in self._served.rglob("*") if path.is_file())
        return Making(self.name, self._match.name, usage.wall_s, usage.cpu_s, usage.rss_bytes, served, False)

    def reset(self, other_slot: str) -> None:
        match = self._match
        fill(self._slot, other_slot, match.old.image, match.new.image, length=match.length_bytes)
        forget(self._slot)
        forget(match.old.image)
        self._empty_work()

    def update(self, ground: Ground, other_slot: str, stop_when: Callable[[], bool] | None = None) -> Sample:
        ground.server.traffic()
        before = ground.server.carried_bytes()
        environment = {"URL": ground.url(self._match, self.name)}
        inside = ground.namespaces.inside(ground.namespaces.client)
        usage = self._script("apply", environment, inside, stop_when)
        traffic = ground.server.traffic() if self._contender.on_wire else None
        return Sample(
            self.name,
            self._match.name,
            other_slot,
            ground.line,
            self._number("wall_s", usage.wall_s),
            usage.cpu_s,
            usage.rss_bytes,
            usage.written_bytes,
            traffic.bytes if traffic else 0,
            traffic.requests if traffic else 0,
            ground.server.carried_bytes() - before,
            int(self._number("bundle_bytes", 0)),
        )

    def check(self) -> None:
        if self.name == "get":
            return
        length = self._match.new.image.stat().st_size
        if not self._expected:
            self._expected = digest(self._match.new.image, length=length)
        require_same(self._expected, self._slot, length=length, who=self.name)

    def _script(
        self, verb: str, extra: dict[str, str], prefix: list[str], stop_when: Callable[[], bool] | None = None
    ) -> Usage:
        text = 'source "$1/slot.sh"; source "$1/$2"; "$3"'
        return run_measured(
            [*prefix, "bash", "-euo", "pipefail", "-c", text, "bash", str(SCRIPTS), self._contender.file, verb],
            env={**self._environment, **extra},
            folder=self._work,
            stop_when=stop_when,
        )

    def _number(self, name: str, otherwise: float) -> float:
        file = self._work / name
        return float(file.read_text()) if file.exists() else otherwise

    def _empty_work(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
