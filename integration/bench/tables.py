"""The tables of a run, as rows of text: what was fetched, what it cost, and how we stand against each target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from integration.bench.course import ZEROS
from integration.bench.link import LOCAL, Line
from integration.bench.results import STEP, Making, Sample, Spread, grouped, ratio, spread

OURS_PREFIX = "ours"


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of texts."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def megabytes(number: float) -> str:
    """Return bytes as MB (10^6) with two digits that matter below ten."""
    value = number / 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def shown(found: Spread, show: Callable[[float], str]) -> str:
    """Return the median, with the range where there is one."""
    if found.least == found.most:
        return show(found.middle)
    return f"{show(found.middle)} ({show(found.least)}–{show(found.most)})"


def seconds(number: float) -> str:
    """Return seconds with two digits behind the point."""
    return f"{number:.2f}"


def factor(number: float | None) -> str:
    """Return a ratio, or a dash where there is none."""
    return "–" if number is None else f"{number:.2f} ×"


def costs(samples: Iterable[Sample], pair: str, other_slot: str, line: str) -> Table:
    """Return what each contender took for one kind of update, next to the `dd` of the same turn."""
    rows = []
    groups = [(key[0], found) for key, found in grouped(samples).items() if key[1:] == (pair, other_slot, line)]
    yardstick = next((spread(found, lambda s: s.wall_s).middle for name, found in groups if name == "dd"), 0.0)
    for name, found in groups:
        wall = spread(found, lambda s: s.wall_s)
        rows.append(
            (
                name,
                str(len(found)),
                shown(spread(found, lambda s: s.fetched_bytes), megabytes),
                shown(spread(found, lambda s: s.requests), lambda n: f"{n:.0f}"),
                shown(wall, seconds),
                factor(ratio(wall.middle, yardstick)),
                shown(spread(found, lambda s: s.cpu_s), seconds),
                shown(spread(found, lambda s: s.rss_bytes), lambda n: f"{n / 1e6:.0f}"),
                shown(spread(found, lambda s: s.written_bytes), megabytes),
            )
        )
    head = ("", "runs", "fetched MB", "requests", "wall s", "× dd", "CPU s", "peak RSS MB", "written MB")
    return Table(f"Pair {pair}, other slot: {other_slot}, line: {line}", head, tuple(rows))


def resumed(samples: Iterable[Sample]) -> Table:
    """Return what a kill at half of the bytes cost."""
    rows = []
    for sample in samples:
        if "extra_bytes" in sample.details and "whole_bytes" in sample.details:
            whole, extra = sample.details["whole_bytes"], sample.details["extra_bytes"]
            rows.append(
                (
                    sample.contender,
                    megabytes(whole),
                    megabytes(max(0.0, extra)),
                    factor(ratio(extra, whole)),
                    seconds(sample.wall_s),
                )
            )
    head = ("", "undisturbed MB", "fetched again MB", "of the whole", "wall s of the second start")
    return Table("Killed when half of the bytes had passed, then started again", head, tuple(rows))


def making(makings: Iterable[Making]) -> Table:
    """Return what it took to make what is served."""
    rows = [
        (
            m.pair,
            m.contender,
            seconds(m.wall_s),
            seconds(m.cpu_s),
            f"{m.rss_bytes / 1e6:.0f}",
            megabytes(m.served_bytes),
            "an earlier run" if m.reused else "this run",
        )
        for m in makings
        if m.contender not in ("dd", "get") and not is_size(m.pair)
    ]
    head = ("pair", "", "wall s", "CPU s", "peak RSS MB", "served MB", "made in")
    return Table("Making what is served", head, tuple(rows))


def parts_table(samples: Iterable[Sample]) -> Table:
    """Return what our bytes were for."""
    rows = []
    for (name, pair, other_slot, line), found in grouped(samples).items():
        if name.startswith(OURS_PREFIX) and line == LOCAL.name and not is_size(pair):
            last = found[-1].parts
            text = ", ".join(f"{part} {megabytes(count)}" for part, count in sorted(last.items()))
            rows.append((name, pair, other_slot, text))
    return Table("What our bytes were for, MB", ("", "pair", "other slot", ""), tuple(rows))


def steps_table(samples: Iterable[Sample]) -> Table:
    """Return where our time went on the local line, step by step; what is before the first step is in `start`."""
    rows = []
    for (name, pair, other_slot, line), found in grouped(samples).items():
        if line != LOCAL.name or not any(key.startswith(STEP) for key in found[0].details):
            continue
        middles = {
            key.removeprefix(STEP): spread(found, lambda s, key=key: s.details.get(key, 0.0)).middle  # type: ignore[misc]
            for key in found[0].details
            if key.startswith(STEP)
        }
        whole = spread(found, lambda s: s.wall_s).middle
        told = sorted(((taken, step) for step, taken in middles.items() if taken >= 0.05), reverse=True)
        text = ", ".join(f"{step} {seconds(taken)}" for taken, step in told)
        start = max(0.0, whole - sum(middles.values()))
        rows.append((name, pair, other_slot, seconds(whole), seconds(start), text))
    head = ("", "pair", "other slot", "wall s", "start s", "steps of 0.05 s and more")
    return Table("Where our time went, local", head, tuple(rows))


def growth(samples: Iterable[Sample]) -> Table:
    """Return what images of growing size cost."""
    groups = {key: found for key, found in grouped(samples).items() if is_size(key[1])}
    rows = []
    for (name, size, _, _), found in groups.items():
        yardsticks = [taken for key, taken in groups.items() if key[0] == "dd" and key[1] == size]
        yardstick = spread(yardsticks[0], lambda s: s.wall_s).middle if yardsticks else 0.0
        wall = spread(found, lambda s: s.wall_s).middle
        rows.append(
            (
                size,
                name,
                megabytes(spread(found, lambda s: s.fetched_bytes).middle),
                f"{spread(found, lambda s: s.requests).middle:.0f}",
                seconds(wall),
                factor(ratio(wall, yardstick)),
                seconds(spread(found, lambda s: s.cpu_s).middle),
                f"{spread(found, lambda s: s.rss_bytes).middle / 1e6:.0f}",
            )
        )
    head = ("image", "", "fetched MB", "requests", "wall s", "× dd", "CPU s", "peak RSS MB")
    return Table("Cost against image size, nothing to reuse, other slot: zeros, line: local", head, tuple(rows))


def is_size(pair: str) -> bool:
    """Tell whether a pair is an image of a given size."""
    return pair.endswith("MiB")


@dataclass(frozen=True, slots=True)
class Target:
    """One target of the project: our number as a multiple of another one's, within one run."""

    measure: str
    against: str
    limit: float
    ours: float | None
    theirs: float | None

    @property
    def ratio(self) -> float | None:
        """Return what was reached."""
        if self.ours is None or self.theirs is None:
            return None
        return ratio(self.ours, self.theirs)

    @property
    def verdict(self) -> str:
        """Return whether the target was met in this run."""
        if self.ratio is None:
            return "not measured"
        return "met" if self.ratio <= self.limit else "missed"


def target_table(targets: Sequence[Target]) -> Table:
    """Return how each target stands."""
    rows = tuple((t.measure, t.against, f"≤ {t.limit:g} ×", factor(t.ratio), t.verdict) for t in targets)
    return Table("Targets, as ratios within this run", ("measure", "against", "target", "reached", ""), rows)


def kinds(samples: Iterable[Sample]) -> list[tuple[str, str, str]]:
    """Return the kinds of update (pair, other slot, line) in the order in which they were measured."""
    found: dict[tuple[str, str, str], None] = {}
    for sample in samples:
        if "extra_bytes" not in sample.details and not is_size(sample.pair):
            found.setdefault((sample.pair, sample.other_slot, sample.line))
    return list(found)


class Medians:
    """Medians of a run, for ratios."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        """Take all samples of the run."""
        self._groups = grouped(samples)

    def of(
        self, name: str, pair: str, measure: Callable[[Sample], float], *, line: Line = LOCAL, other_slot: str = ZEROS
    ) -> float | None:
        """Return a contender's median, None when it was not measured there."""
        found = self._groups.get((name, pair, other_slot, line.name))
        return spread(found, measure).middle if found else None
