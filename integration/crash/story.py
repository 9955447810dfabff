"""Boots what a cut left, for real, to the end of the story: healthy on old or new, and the next update good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from integration.crash.replay import Point, Walk
from integration.lab.report import Report
from integration.lab.runner import execute
from integration.lab.scenario import parse_scenario
from integration.lab.stock import Stock

# An update that was cut short is staged anew, or goes on: either way the node ends idle on a proven release.
_STORY = """
name: {name}
summary: {summary}
tags: [crash]
config:
  health: {{deadline_s: 240, hold_s: 3, interval_s: 1}}
steps:
  - boot: {{until: {{standing: [1, 2]}}}}
  - expect: {{quarantine: []}}
  - update_to: 3
"""


@dataclass(frozen=True, slots=True)
class Told:
    """How the story of one state ended."""

    point: Point
    report: Report


def spread(found: Walk, count: int) -> list[Point]:
    """Return the states to boot: all that differ in what the loader would do, then an even spread up to `count`."""
    chosen = {point.epoch: point for point in found.signatures.values()}
    for index in range(count):
        if len(chosen) >= count:
            break
        point = found.ends[index * (len(found.ends) - 1) // max(1, count - 1)]
        chosen.setdefault(point.epoch, point)
    return [chosen[epoch] for epoch in sorted(chosen)]


def tell(stock: Stock, point: Point, start: tuple[Path, Path], folder: Path) -> Told:
    """Boot the state in `start` (its disk and its variable store, which are removed) to the end of its story."""
    order = ", ".join(point.judged.order)
    text = _STORY.format(name=f"epoch-{point.epoch:05}", summary=f"Power came back where the ESP held {order}.")
    scenario = parse_scenario(text.encode(), "the story")
    try:
        return Told(point, execute(stock, scenario, folder / "story", start=start))
    finally:
        for file in start:
            file.unlink(missing_ok=True)


def failed(told: Sequence[Told]) -> list[Told]:
    """Return the stories that did not end well."""
    return [one for one in told if not one.report.passed]
