"""Our own updater as a player: `acl-updater stage` on a node's disk, everything from TUF to the UKI included."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from integration.bench.making import made_once, publishing_digest
from integration.bench.measure import forget, run_measured
from integration.bench.pairs import NEW
from integration.bench.phases import phases
from integration.bench.player import Ground, Match
from integration.bench.results import STEP, Making, Sample
from integration.bench.site import (
    Disk,
    Site,
    make_disk,
    make_site,
    roomy_layout,
    stage_command,
    write_settings,
)
from integration.bench.slots import digest, fill, require_same
from integration.images.tooltree import ToolTree
from updater.manifest import BLOCK_BYTES
from updater.slots import Slot


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of publishing the pair, which leaves the node one way of fetching; options of `acl-release publish`.

    `shared` names the variant whose repository serves this one too; `network` are settings of the node.
    """

    name: str
    summary: str
    older: tuple[str, ...]
    newer: tuple[str, ...]
    shared: str = ""
    network: Mapping[str, int] = field(default_factory=dict)


_DELTA = (("--plain",), ("--deltas", "1", "--no-frames", "--no-packs"))
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "ours-delta",
            "ours, from a release for which there is a delta",
            *_DELTA,
        ),
        Variant(
            "ours-delta-1g",
            "the same on a node that may use 1 GiB of memory",
            *_DELTA,
            shared="ours-delta",
            network={"max_memory_bytes": 1 << 30},
        ),
        Variant(
            "ours-reuse",
            "ours, from a release for which there is no delta",
            ("--deltas", "0", "--no-frames"),
            ("--deltas", "0", "--no-frames"),
        ),
        Variant(
            "ours-full",
            "ours, with frames only",
            ("--plain",),
            ("--deltas", "0", "--no-packs"),
        ),
    )
}


class Ours:
    """A player that runs the product's own commands."""

    def __init__(self, variant: Variant, match: Match, tools: ToolTree) -> None:
        """Take the pair and the tools that make disks."""
        self.name = variant.name
        self._variant = variant
        self._match = match
        self._tools = tools
        self._folder = match.folder / variant.name
        self._served = variant.shared or variant.name
        self._site = Site(match.served / self._served)
        self._disk: Disk | None = None
        self._expected = ""

    def make(self) -> Making:
        match = self._match
        releases = [match.old, match.new]
        self._folder.mkdir(parents=True, exist_ok=True)
        # A repository's newest signature is good for some days only.
        key = [*self._publishing(), publishing_digest(), f"{datetime.now(UTC):%Y-%m-%d}"]
        key += [hashlib.sha256((release.folder / "manifest.json").read_bytes()).hexdigest() for release in releases]
        making = made_once(match.served / f"{self._served}.json", key, self._made)
        self._disk = make_disk(self._folder, match.old, roomy_layout(self._folder, releases), self._tools)
        return making

    def _made(self) -> Making:
        match = self._match
        usage = make_site(self._site, match.old, match.new, *self._publishing())
        served = sum(path.stat().st_size for path in self._site.repository.rglob("*") if path.is_file())
        return Making(self._served, match.name, usage.wall_s, usage.cpu_s, usage.rss_bytes, served, False)

    def _publishing(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self._variant.older, (*self._variant.newer, *self._match.publishing)

    @property
    def disk(self) -> Disk:
        """Return the node's disk."""
        assert self._disk is not None
        return self._disk

    def reset(self, other_slot: str) -> None:
        disk, match = self.disk, self._match
        disk.reset()
        fill(
            disk.path,
            other_slot,
            match.old.image,
            match.new.image,
            offset=disk.offset("data", Slot.B),
            length=match.length_bytes,
        )
        forget(disk.path)

    def update(self, ground: Ground, other_slot: str, stop_when: Callable[[], bool] | None = None) -> Sample:
        url = f"{ground.url(self._match, self._served)}/repository"
        settings = write_settings(self._folder / "config.yaml", url, self._site, self.disk, self._variant.network)
        ground.server.traffic()
        before = ground.server.carried_bytes()
        log = self._folder / "output.log"
        log.unlink(missing_ok=True)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}
        with phases(self._folder) as listener:
            usage = run_measured(
                [*ground.namespaces.inside(ground.namespaces.client), *stage_command(self.disk, settings)],
                env={**environment, "NOTIFY_SOCKET": str(listener.path)},
                folder=self._folder,
                stop_when=stop_when,
            )
            ended_at = time.monotonic()
        traffic = ground.server.traffic()
        blocks = self._match.new.image.stat().st_size // BLOCK_BYTES
        details = {f"{STEP}{name}": seconds for name, seconds in listener.seconds(ended_at).items()}
        details |= {"boot_bytes": float(self._match.boot_bytes), "blocks": float(blocks)}
        return Sample(
            self.name,
            self._match.name,
            other_slot,
            ground.line,
            usage.wall_s,
            usage.cpu_s,
            usage.rss_bytes,
            usage.written_bytes,
            traffic.bytes,
            traffic.requests,
            ground.server.carried_bytes() - before,
            parts=by_role(traffic.paths, self._roles()),
            details=details,
        )

    def _roles(self) -> dict[str, str]:
        (file,) = (self._site.repository / "targets/manifests").glob(f"*.{NEW}.json")
        return roles(json.loads(file.read_bytes()))

    def check(self) -> None:
        length = self._match.new.image.stat().st_size
        if not self._expected:
            self._expected = digest(self._match.new.image, length=length)
        offset = self.disk.offset("data", Slot.B)
        require_same(self._expected, self.disk.path, offset=offset, length=length, who=self.name)


def roles(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return which digests that a manifest names belong to the root and which to the UKI."""
    found: dict[str, str] = {}
    transport = manifest.get("transport") or {}
    for role in ("root", "uki"):
        for digest_ in _digests(transport.get(role)):
            found[digest_] = role
    found[manifest["uki"]["sha256"]] = "uki"
    return found


def _digests(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("sha256"), str):
            yield node["sha256"]
        for child in node.values():
            yield from _digests(child)
    elif isinstance(node, list):
        for child in node:
            yield from _digests(child)


def by_role(paths: Mapping[str, int], known: Mapping[str, str]) -> dict[str, int]:
    """Add up the bytes of paths by what they are for: metadata, root, uki, other."""
    found: Counter[str] = Counter()
    for path, count in paths.items():
        parts = path.split("/")
        if "metadata" in parts or "targets" in parts:
            found["metadata"] += count
        elif "images" in parts:
            found["root"] += count
        else:
            found[known.get(parts[-1], "other")] += count
    return dict(found)
