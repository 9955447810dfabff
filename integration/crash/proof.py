"""A proof while it is made: what the walk found, and the stories that are told of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
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
    folder.mkdir(parents=True, exist_ok=True)
    spreads = spread(proof.found, count)
    print(f"\n  {sum(map(len, spreads))} states are booted for real, {machines} at a time", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="cut-", dir=folder) as scratch,
        Telling(machines, lambda told: _hear(told, proof, each, "held")) as telling,
    ):
        for points in spreads:
            left = []
            for point in points:
                known = None if again else told_before(recorded.name, point, folder / name_of(point))
                if known is None:
                    left.append(point)
                else:
                    _hear(known, proof, each, "told before")
            for point, start in _starts(recorded, left, Path(scratch)):
                place = folder / name_of(point)
                shutil.rmtree(place, ignore_errors=True)
                telling.add(partial(tell, stock, recorded.name, point, start, place, live=most_live > 0))
                most_live -= 1


class Telling:
    """Stories that are told some at a time, and heard in the order in which they end."""

    def __init__(self, machines: int, hear: Callable[[Told], None]) -> None:
        self._machines, self._hear = machines, hear
        self._pool = ThreadPoolExecutor(machines)
        self._running: set[Future[Told]] = set()

    def add(self, story: Callable[[], Told]) -> None:
        """Have a story told; return once each that was added has its machine."""
        self._running.add(self._pool.submit(story))
        while len(self._running) > self._machines:
            self._hear_next()

    def __enter__(self) -> Telling:
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Hear the rest to its end; after an exception, begin no other and wait for none."""
        while kind is None and self._running:
            self._hear_next()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def _hear_next(self) -> None:
        ended, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for future in ended:
            self._hear(future.result())


def _starts(recorded: Recorded, points: list[Point], scratch: Path) -> Iterator[tuple[Point, tuple[Path, Path]]]:
    """Yield each point with the disk and the variable store that its cut left, as files in a folder of its own."""
    if not points:
        return
    cuts = [(point.epoch, point.cut) for point in points]
    with tempfile.TemporaryDirectory(prefix="medium-", dir=scratch) as place:
        for point, medium in zip(points, states(recorded, cuts, Path(place)), strict=True):
            yield point, medium.freeze(scratch / name_of(point), recorded.disk_bytes, recorded.store_bytes)


def _hear(told: Told, proof: Proof, each: Callable[[], None], word: str) -> None:
    proof.told.append(told)
    print(
        f"  {word if told.passed else 'FAILED'}: {told.point} ({told.loader}): {', '.join(told.boots)}, "
        f"{told.seconds:.0f} s{'' if told.passed else f': {told.problem}'}",
        flush=True,
    )
    each()
