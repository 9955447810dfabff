"""A whole run: inputs, making, turns, resumed updates, image sizes; what was seen goes into one record."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from integration.bench.contenders import BY_NAME
from integration.bench.course import ZEROS, Course, Growth, Step, Turn
from integration.bench.link import LOCAL, Line, namespaces
from integration.bench.making import publishing_digest
from integration.bench.ours import VARIANTS, Ours
from integration.bench.pairs import Pair, make_pair
from integration.bench.peers import Peers, find_peer, peers
from integration.bench.player import Ground, Match, Peer, Player
from integration.bench.results import Failure, Making, Sample
from integration.bench.server import serve
from integration.bench.site import build_side, existing
from integration.bench.sizes import make_match, size_name
from integration.images.tooltree import ToolTree, tool_tree
from updater.errors import UpdaterError
from updater.run import run

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Record:
    """What a run has seen so far."""

    samples: list[Sample] = field(default_factory=list)
    makings: list[Making] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    pairs: dict[str, Mapping[str, object]] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Bench:
    """The bench of one run: its folder, its tools, and the players for each pair."""

    def __init__(
        self,
        folder: Path,
        only: Sequence[str] = (),
        deadline_s: float | None = None,
        saved: Callable[[Record], None] = lambda _: None,
    ) -> None:
        """Work in `folder`; after `deadline_s` seconds no further update begins.

        `only` restricts the contenders: `zstd`, or `K:zstd` for one pair. `saved` is called with the record after
        each step, for who wants to keep what there is so far.
        """
        self.record = Record()
        self._folder = folder
        self._saved = saved
        self._only = frozenset(only)
        self._ends_at = time.monotonic() + deadline_s if deadline_s else float("inf")
        folder.mkdir(parents=True, exist_ok=True)
        self._tools: ToolTree = tool_tree()
        self._peers: Peers = peers()
        self._served = folder / "served"
        self._matches: dict[str, Match] = {}
        self._players: dict[tuple[str, str], Player | None] = {}
        self._keys = _certificate(folder / "keys", self._peers)
        self.record.notes.update({f"{name}: not run": why for name, why in self._peers.missing.items()})

    @property
    def versions(self) -> dict[str, str]:
        """Return the peers' versions."""
        return self._peers.versions

    def go(self, course: Course) -> Record:
        """Run a course to its end, or to the deadline; a contender that fails is recorded and left out."""
        for name in course.pairs:
            self._match(name)
        for step in course.steps:
            if self._late(step.title):
                break
            self._do(step)
            self._saved(self.record)
        return self.record

    def _do(self, step: Step) -> None:
        if isinstance(step, Growth):
            self._grow(step)
            return
        with self._ground(step.line) as ground:
            if isinstance(step, Turn):
                self._take(step, ground)
                return
            for name in self._wanted(step.pair, step.contenders):
                act = partial(self._resume, ground=ground)
                self._guarded(name, step.pair, "killed at half", act)

    def _grow(self, step: Growth) -> None:
        """Update to an image of a given size, which exists only meanwhile."""
        name = size_name(step.mib)
        folder = self._folder / "sizes" / name
        parts, image = make_pair(step.pair, self._tools).new, self._match(step.pair).new.image
        log.info("image of %s: building it", name)
        self._matches[name] = make_match(step.mib, image, parts, folder, self._served, self._tools)
        try:
            with self._ground(LOCAL) as ground:
                self._take(Turn(name, step.contenders, ZEROS, LOCAL), ground)
        finally:
            del self._matches[name]
            for leftover in (folder, self._served / name):
                shutil.rmtree(leftover, ignore_errors=True)

    def _late(self, what: str) -> bool:
        if time.monotonic() <= self._ends_at:
            return False
        self.record.notes.setdefault("cut short", f"the time was up before {what}")
        return True

    def _wanted(self, pair: str, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self._only or {name, f"{pair}:{name}"} & self._only]

    def _take(self, turn: Turn, ground: Ground) -> None:
        for number in range(turn.runs):
            for name in self._wanted(turn.pair, turn.contenders):
                where = f"{turn.other_slot}, {turn.line.name}"

                def update(player: Player, turn: Turn = turn, number: int = number) -> None:
                    player.reset(turn.other_slot)
                    sample = player.update(ground, turn.other_slot)
                    player.check()
                    self._add(sample, f"run {number + 1} of {turn.runs}")

                self._guarded(name, turn.pair, where, update)

    def _resume(self, player: Player, ground: Ground) -> None:
        """Update whole, then kill an update when half the bytes have passed, and let it go on."""
        player.reset(ZEROS)
        whole = player.update(ground, ZEROS)
        player.reset(ZEROS)
        half = ground.server.carried_bytes() + whole.carried_bytes // 2
        first = player.update(ground, ZEROS, lambda: ground.server.carried_bytes() >= half)
        second = player.update(ground, ZEROS)
        player.check()
        more = first.wire_bytes + second.wire_bytes - whole.wire_bytes
        details = {"whole_bytes": float(whole.wire_bytes), "extra_bytes": float(more), "whole_s": whole.wall_s}
        self._add(replace(second, other_slot="killed at half", details=details), "resumed")

    def _add(self, sample: Sample, what: str) -> None:
        self.record.samples.append(sample)
        log.info(
            "%-13s %s, %s, %s, %s: %.2f s, cpu %.2f s, %.1f MB fetched in %d requests, RSS %.0f MB",
            sample.contender,
            sample.pair,
            sample.other_slot,
            sample.line,
            what,
            sample.wall_s,
            sample.cpu_s,
            sample.fetched_bytes / 1e6,
            sample.requests,
            sample.rss_bytes / 1e6,
        )

    def _guarded(self, name: str, pair: str, where: str, act: Callable[[Player], None]) -> None:
        if self._late(f"{name}, pair {pair}, {where}"):
            return
        try:
            player = self._player(name, pair)
            if player is not None:
                act(player)
        except (UpdaterError, OSError) as error:
            log.warning("%s, pair %s, %s: %s", name, pair, where, error)
            self.record.failures.append(Failure(name, pair, where, str(error)[-800:]))
            self._players[name, pair] = None

    def _player(self, name: str, pair: str) -> Player | None:
        key = (name, pair)
        if key not in self._players:
            self._players[key] = None
            player = self._new_player(name, self._match(pair))
            if player is None:
                return None
            log.info("%s: making what is served for pair %s", name, pair)
            making = player.make()
            if (making.contender, making.pair) not in {(m.contender, m.pair) for m in self.record.makings}:
                self.record.makings.append(making)
            self._players[key] = player
        return self._players[key]

    def _new_player(self, name: str, match: Match) -> Player | None:
        if name in VARIANTS:
            variant = VARIANTS[name]
            self.record.summaries[name] = variant.summary
            return Ours(variant, match, self._tools)
        contender = BY_NAME[name]
        self.record.summaries[name] = contender.summary
        if contender.note:
            self.record.notes[name] = contender.note
        if match.length_bytes > contender.largest_bytes or contender.peer in self._peers.missing:
            return None
        return Peer(contender, match, self._peers, self._keys)

    def _match(self, name: str) -> Match:
        if name not in self._matches:
            folder = self._folder / "pairs" / name
            pair = make_pair(name, self._tools)
            self._build(pair, folder)
            self.record.pairs[name] = _about(pair, folder)
            self._matches[name] = Match(
                name,
                existing(folder / "old"),
                existing(folder / "new"),
                folder,
                self._served / name,
                pair.new.boot_bytes,
            )
        return self._matches[name]

    def _build(self, pair: Pair, folder: Path) -> None:
        stamp = folder / "built"
        key = " ".join((str(pair.new.folder), str(self._tools.stub), publishing_digest()))
        if stamp.exists() and stamp.read_text() == key:
            return
        stamp.unlink(missing_ok=True)
        for side, out in ((pair.old, folder / "old"), (pair.new, folder / "new")):
            shutil.rmtree(out, ignore_errors=True)
            build_side(side, out, self._tools)
        stamp.write_text(key)

    @contextmanager
    def _ground(self, line: Line) -> Iterator[Ground]:
        with namespaces(line) as ends:
            self.record.lines[line.name] = ends.made_by
            prefix = ends.inside(ends.server)
            nginx = find_peer(self._peers, "nginx")
            self._served.mkdir(parents=True, exist_ok=True)
            with serve(nginx, self._served, self._folder / "nginx", prefix) as server:
                yield Ground(ends, server, line.name)


def _about(pair: Pair, folder: Path) -> Mapping[str, object]:
    old, new = existing(folder / "old"), existing(folder / "new")
    return {
        "summary": pair.recipe.summary,
        "old_bytes": old.image.stat().st_size,
        "new_bytes": new.image.stat().st_size,
        "uki_bytes": new.uki.stat().st_size,
        "tree_bytes": new.tree.stat().st_size,
        "updated": pair.updated,
    }


def _certificate(folder: Path, peers: Peers) -> Path:
    if not (folder / "cert.pem").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "openssl.cnf").write_text(
            "[req]\ndistinguished_name = dn\n[dn]\n[v3]\nbasicConstraints = CA:true\n"
            "extendedKeyUsage = emailProtection,codeSigning\nsubjectKeyIdentifier = hash\n"
        )
        run(
            [
                find_peer(peers, "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650",
                "-subj", "/CN=bench", "-config", folder / "openssl.cnf", "-extensions", "v3",
                "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
            ],
        )  # fmt: skip
    return folder
