"""Samples of a run, and what is said of several: median, range, ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

# In a sample's details: seconds of one step of ours.
STEP = "seconds of "


@dataclass(frozen=True, slots=True)
class Sample:
    """One update by one contender: what it was, and what it cost.

    `wire_bytes` and `requests` are HTTP's as the server counted them; `bundle_bytes` what was read of a local bundle;
    `carried_bytes` all IP packets on the line. `parts` are the wire bytes by what they were for.
    """

    contender: str
    pair: str
    other_slot: str
    line: str
    wall_s: float
    cpu_s: float
    rss_bytes: int
    written_bytes: int
    wire_bytes: int
    requests: int
    carried_bytes: int = 0
    bundle_bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)

    @property
    def fetched_bytes(self) -> int:
        """Return what came from elsewhere: over the wire, or out of the bundle."""
        return self.wire_bytes or self.bundle_bytes


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of several numbers."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        """Return the spread of at least one number."""
        found = list(numbers)
        return cls(median(found), min(found), max(found))


@dataclass(frozen=True, slots=True)
class Failure:
    """A contender that did not get through, and what it said."""

    contender: str
    pair: str
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Making:
    """What it took to make what a contender serves; `reused` when it was made by an earlier run."""

    contender: str
    pair: str
    wall_s: float
    cpu_s: float
    rss_bytes: int
    served_bytes: int
    reused: bool


Key = tuple[str, str, str, str]


def grouped(samples: Iterable[Sample]) -> dict[Key, list[Sample]]:
    """Return samples by contender, pair, other slot and line, in the order in which they came."""
    found: dict[Key, list[Sample]] = {}
    for sample in samples:
        found.setdefault((sample.contender, sample.pair, sample.other_slot, sample.line), []).append(sample)
    return found


def spread(samples: Sequence[Sample], measure: Callable[[Sample], float]) -> Spread:
    """Return the spread of one measure."""
    return Spread.of(measure(sample) for sample in samples)


def ratio(ours: float, theirs: float) -> float | None:
    """Return ours as a multiple of theirs, None where there is nothing to compare with."""
    return ours / theirs if theirs > 0 else None
