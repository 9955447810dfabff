"""Boots what a cut left, for real, to the end of the story: healthy on old or new, and the next update good."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from integration.crash.replay import Point, Walk
from integration.lab.runner import execute
from integration.lab.scenario import Scenario, parse_scenario
from integration.lab.stock import Stock

# An update that was cut short is staged anew, or goes on: either way the node ends at rest on a proven release, which
# its own health service has judged. Only then is the updater asked: it would take the guest's one processor from that.
# The next update is the guest's own work, on the file systems that the cut left, or for speed the host's.
_STORY = """
name: {name}
summary: {summary}
tags: [crash]
config:
  health: {{deadline_s: 240, hold_s: 3, interval_s: 1}}
steps:
  - boot: {{until: {{serial: 'Reached target .*boot-complete'}}, timeout_s: 600}}
  - wait: {{until: {{standing: [1, 2]}}}}
{following}"""
_LIVE = """  - expect: {quarantine: []}
  - updater: {run: update --to 3.0.0, background: true}
  - wait: {until: {committed: 3}, timeout_s: 600}
  - wait: {until: {settled: 3}}
"""
_OFFLINE = """  - power: down
  - expect: {quarantine: []}
  - update_to: 3
"""
_STORIES = hashlib.sha256(f"{_STORY}{_LIVE}{_OFFLINE}".encode()).hexdigest()[:16]
_TOLD = "told.json"
# Of the points that fill a spread up, every third is at a change of the variable store.
_STORES_IN_FILLING = 3


@dataclass(frozen=True, slots=True)
class Told:
    """How the story of one state ended; `live` when the guest took the next update by itself.

    `stories` names the kind of story that this was: another kind says nothing about it.
    """

    recording: str
    point: str
    loader: str
    passed: bool
    problem: str
    boots: list[str]
    seconds: float
    live: bool = True
    stories: str = _STORIES


def spread(found: Walk, count: int) -> tuple[list[Point], list[Point]]:
    """Return the states to boot: all that differ in what the loader would do, then others up to `count` of both.

    The others: first those in which journal or ledger stand elsewhere, then changes of the variable store, seeded
    choices and flush boundaries, evenly over the recording.
    """
    first = list(found.loaders.values())[: max(count, len(found.loaders) if count >= 25 else count)]
    taken = {(point.epoch, point.cut) for point in first}
    others: list[Point] = []
    for point in (*found.phases.values(), *_filling(found, count)):
        if len(first) + len(others) >= count:
            break
        if (point.epoch, point.cut) not in taken:
            taken.add((point.epoch, point.cut))
            others.append(point)
    return _in_order(first), _in_order(others)


def name_of(point: Point) -> str:
    """Return a name for a point that a folder can bear."""
    return f"epoch-{point.epoch:05}-{str(point.cut).replace(' ', '-')}"


def tell(
    stock: Stock, recording: str, point: Point, start: tuple[Path, Path], folder: Path, *, live: bool = True
) -> Told:
    """Boot the state in `start` (its disk and its variable store, which are removed) to the end of its story.

    The next update is staged by the guest where it is `live`, else on the powered-off disk.
    """
    try:
        report = execute(stock, scenario_of(point, live=live), folder, start=start)
    finally:
        for file in start:
            file.unlink(missing_ok=True)
    boots = [f"{boot.slot}/{boot.release} {boot.outcome.value}" for boot in report.boots]
    told = Told(recording, str(point), point.judged.loader, report.passed, report.problem, boots, report.seconds, live)
    (folder / _TOLD).write_text(json.dumps(asdict(told), indent=2))
    return told


def scenario_of(point: Point, *, live: bool) -> Scenario:
    """Return the story of a point as a scenario."""
    summary = f"Power came back where the loader found {point.judged.loader}."
    text = _STORY.format(name=name_of(point), summary=json.dumps(summary), following=_LIVE if live else _OFFLINE)
    return parse_scenario(text.encode(), "the story")


def told_before(recording: str, point: Point, folder: Path) -> Told | None:
    """Return how this story, as it is told now, ended well in an earlier run over the same recording, or None."""
    try:
        told = Told(**{"stories": "", **json.loads((folder / _TOLD).read_text())})
    except (OSError, ValueError, TypeError):
        return None
    same = (told.recording, told.point, told.passed, told.stories) == (recording, str(point), True, _STORIES)
    return told if same else None


def sweep(folder: Path) -> None:
    """Remove the disks that an interrupted run has left in its folder."""
    for left in (*folder.glob("*/disk.raw"), *folder.glob("*/efi-variables.fd"), *folder.glob("cut-*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def failed(told: Sequence[Told]) -> list[Told]:
    """Return the stories that did not end well."""
    return [one for one in told if not one.passed]


def _filling(found: Walk, count: int) -> Iterable[Point]:
    stores = _evenly(found.stores, count)
    others = _evenly([*found.seeds, *found.ends], count)
    for index, point in enumerate(others):
        if index % _STORES_IN_FILLING == 0 and stores:
            yield stores.pop(len(stores) // 2)
        yield point


def _evenly(points: Sequence[Point], count: int) -> list[Point]:
    if len(points) <= count:
        return list(points)
    return [points[index * (len(points) - 1) // max(1, count - 1)] for index in range(count)]


def _in_order(points: Iterable[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.epoch, point.cut.kind.value, point.cut.at))
