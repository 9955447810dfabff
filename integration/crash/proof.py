"""A proof while it is made: what the walk found, and the stories that are told of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from integration.crash.judge import Image
from integration.crash.recording import Recorded
from integration.crash.replay import Point, Walk, states
from integration.crash.story import Told, name_of, spread, tell, told_before
from integration.lab.stock import Stock
from updater.errors import EnvironmentFailure
from updater.manifest import parse_manifest


@dataclass(slots=True)
class Proof:
    """A proof in the folder `out`; what it has so far can be reported at any time."""

    out: Path
    found: Walk = field(default_factory=Walk)
    told: list[Told] = field(default_factory=list)
    seconds: float = 0.0


def published(stock: Stock) -> dict[str, Image]:
    """Return the lab's releases by version, as their manifests pin them."""
    found = {}
    for path in sorted((stock.repository / "targets/manifests").glob("*.json")):
        manifest = parse_manifest(path.read_bytes(), path.name)
        number = stock.number(manifest.version)
        if number is not None:
            found[manifest.version] = Image(number, manifest.version, manifest.root.root_hash, manifest.uki.sha256)
    if not found:
        raise EnvironmentFailure("the lab's repository has no manifest", mend="build it anew", reason="lab-release")
    return found


def boot_spread(
    stock: Stock,
    recorded: Recorded,
    proof: Proof,
    count: int,
    machines: int,
    *,
    again: bool = False,
    live: int | None = None,
    each: Callable[[], None] = lambda: None,
) -> None:
    """Boot a spread of the states for real, some machines at a time, those that the loader can tell apart first.

    `each` is called after each story. Stories that ended well in an earlier run are taken from there. The first `live`
    of those that are told now (None: all) take the next update themselves, see `tell`.
    """
    most_live = count if live is None else live
    folder = proof.out / "boots"
    first, others = spread(proof.found, count)
    print(f"\n  {len(first) + len(others)} states are booted for real", flush=True)
    for points in (first, others):
        left = []
        for point in points:
            known = None if again else told_before(recorded.name, point, folder / name_of(point))
            if known is None:
                left.append(point)
            else:
                _hear(known, proof, each, "told before")
        _boot(stock, recorded, left, folder, machines, most_live, lambda told: _hear(told, proof, each, "held"))
        most_live = max(0, most_live - len(left))


def _boot(
    stock: Stock,
    recorded: Recorded,
    points: list[Point],
    folder: Path,
    machines: int,
    most_live: int,
    hear: Callable[[Told], None],
) -> None:
    if not points:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cut-", dir=folder) as scratch:
        pool = ThreadPoolExecutor(machines)
        running: list[Future[Told]] = []
        cuts = [(point.epoch, point.cut) for point in points]
        for number, medium in enumerate(states(recorded, cuts, Path(scratch))):
            point = points[number]
            start = medium.freeze(Path(scratch) / str(number), recorded.disk_bytes, recorded.store_bytes)
            place = folder / name_of(point)
            shutil.rmtree(place, ignore_errors=True)
            live = number < most_live
            running.append(pool.submit(tell, stock, recorded.name, point, start, place, live=live))
            if len(running) > machines:
                hear(running.pop(0).result())
        for future in running:
            hear(future.result())
        pool.shutdown()


def _hear(told: Told, proof: Proof, each: Callable[[], None], word: str) -> None:
    proof.told.append(told)
    print(
        f"  {word if told.passed else 'FAILED'}: {told.point} ({told.loader}): {', '.join(told.boots)}, "
        f"{told.seconds:.0f} s{'' if told.passed else f': {told.problem}'}",
        flush=True,
    )
    each()
