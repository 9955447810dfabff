"""The verdict on a boot: a pure function of what was seen, when, and what was broken before.

Times are seconds since the boot, suspended time included (CLOCK_BOOTTIME). No wall clock is asked: it may be set at
any moment of a boot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rollback.results import Result

# Between two looks more may pass than an interval, on a busy machine; after this many of them nobody was looking.
MAX_GAP_INTERVALS = 5
# A sentence goes into boot records and status lines; the whole detail is in the evidence.
DETAIL_CHARS = 200


class Decision(StrEnum):
    """What to do about the boot."""

    COMMIT = "commit"
    WAIT = "wait"
    ROLL_BACK = "roll-back"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a boot has, and how long its checks must hold."""

    deadline_s: float
    hold_s: float
    interval_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """One round of all checks: when it began, when it ended, what it found."""

    started_s: float
    ended_s: float
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """What all looks so far amount to; `after` adds one.

    `healthy_since_s` is when the first look of the unbroken healthy row ended. `failing` are the required checks that
    the last look blames on this boot, `last_failing` those of the last look that blamed any, at `last_failing_s`.
    """

    looks: int = 0
    latest_s: float = -math.inf
    healthy_since_s: float | None = None
    failing: tuple[Result, ...] = ()
    last_failing: tuple[Result, ...] = ()
    last_failing_s: float | None = None
    passing: int = 0
    excused: tuple[str, ...] = ()

    def after(self, look: Look, limits: Limits, baseline: frozenset[str]) -> Course:
        """Return the course after one more look.

        A clock that runs backwards stands still here: nothing is held longer, and no deadline moves, because of it.
        """
        started_s, ended_s = max(look.started_s, self.latest_s), max(look.ended_s, self.latest_s)
        blamed = blame(look.results, baseline)
        unwatched = started_s - self.latest_s > MAX_GAP_INTERVALS * limits.interval_s
        since = None if unwatched else self.healthy_since_s
        required = [result for result in look.results if result.required]
        return Course(
            looks=self.looks + 1,
            latest_s=ended_s,
            healthy_since_s=None if blamed else (ended_s if since is None else since),
            failing=blamed,
            last_failing=blamed or self.last_failing,
            last_failing_s=ended_s if blamed else self.last_failing_s,
            passing=sum(result.ok for result in required),
            excused=tuple(result.name for result in required if not result.ok and result not in blamed),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision with its reason: a stable code, a sentence, and the failures behind it by name."""

    decision: Decision
    reason: str
    sentence: str
    deadline_s: float
    healthy_since_s: float | None = None
    failing: tuple[Result, ...] = ()

    @property
    def checks(self) -> tuple[str, ...]:
        """Return what failed, by the names that outlive this boot."""
        return tuple(name for result in self.failing for name in result.failures)


def blame(results: Iterable[Result], baseline: frozenset[str]) -> tuple[Result, ...]:
    """Return the required checks that failed in another way than they already did before the update.

    `baseline` holds the failures of the old release (`Result.failures`): a check with findings is excused only when
    each of its findings is there.
    """
    return tuple(
        result for result in results if result.required and not result.ok and not baseline.issuperset(result.failures)
    )


def judge(limits: Limits, course: Course, now_s: float) -> Verdict:
    """Decide on a boot at `now_s`.

    Commit when the required checks have held for `hold_s`. Roll back at the deadline, or as soon as the checks could
    not hold for long enough before it any more. There is no third way to end: at the deadline nothing waits.
    """
    now_s = max(now_s, course.latest_s)
    deadline_s, hold_s = limits.deadline_s, limits.hold_s
    since = course.healthy_since_s
    in_time = now_s <= deadline_s
    if in_time and since is not None and course.latest_s - since >= hold_s:
        held = f"{course.passing} required checks have held for {_seconds(course.latest_s - since)}"
        if course.excused:
            held += f"; {', '.join(course.excused)} failed before the update already"
        return Verdict(Decision.COMMIT, "healthy", held, deadline_s, since)
    if in_time and now_s < deadline_s and (now_s if since is None else since) + hold_s <= deadline_s:
        return _wait(limits, course, now_s)
    return _roll_back(limits, course, now_s)


def _wait(limits: Limits, course: Course, now_s: float) -> Verdict:
    left = _seconds(limits.deadline_s - now_s)
    since = course.healthy_since_s
    if since is not None:
        held = f"healthy for {_seconds(max(0.0, course.latest_s - since))} of {_seconds(limits.hold_s)}"
        return Verdict(Decision.WAIT, "holding", held, limits.deadline_s, since)
    if course.failing:
        sentence = f"{told(course.failing)}; {left} left"
        return Verdict(Decision.WAIT, "failing", sentence, limits.deadline_s, None, course.failing)
    return Verdict(Decision.WAIT, "starting", f"no check has been run yet; {left} left", limits.deadline_s)


def _roll_back(limits: Limits, course: Course, now_s: float) -> Verdict:
    deadline = f"the deadline, {_seconds(limits.deadline_s)} after the boot"
    too_late = f"too late to hold for {_seconds(limits.hold_s)} before {deadline}"
    since = course.healthy_since_s
    if course.failing:
        late = f"{deadline}, has passed" if now_s >= limits.deadline_s else f"{_seconds(now_s)} is {too_late}"
        sentence = f"{told(course.failing)}; {late}"
        return Verdict(Decision.ROLL_BACK, "check-failed", sentence, limits.deadline_s, None, course.failing)
    if since is not None and course.last_failing_s is not None:
        last = f"{told(course.last_failing)} (last at {_seconds(course.last_failing_s)})"
        sentence = f"{last}; healthy again only since {_seconds(since)}, {too_late}"
        return Verdict(Decision.ROLL_BACK, "not-held", sentence, limits.deadline_s, since, course.last_failing)
    if since is not None:
        sentence = f"healthy only since {_seconds(since)}, {too_late}"
        return Verdict(Decision.ROLL_BACK, "too-late", sentence, limits.deadline_s, since)
    return Verdict(Decision.ROLL_BACK, "too-late", f"no check could be run before {deadline}", limits.deadline_s)


def told(failing: tuple[Result, ...]) -> str:
    """Say in a few words which checks failed, and how."""
    first = "; ".join(f"{result.name}: {_brief(result.detail)}" for result in failing[:2])
    return first + (f"; and {len(failing) - 2} more" if len(failing) > 2 else "")


def _brief(detail: str) -> str:
    line = " ".join(detail.split())
    return line if len(line) <= DETAIL_CHARS else line[: DETAIL_CHARS - 1] + "…"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if abs(value) >= 10 or value == int(value) else f"{value:.1f} s"
