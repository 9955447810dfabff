"""Rounds of all checks of a node, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from rollback.checks import AnyCheck
from rollback.health_files import CheckSet, Origin
from rollback.probes import Prober
from rollback.results import DETAIL_BYTES, Result, Status, bounded
from rollback.verdict import Look


class Rounds:
    """Looks again and again; a check with an interval of its own is spared while it passes."""

    def __init__(self, checks: CheckSet, prober: Prober, when: Literal["always", "trial"]) -> None:
        """Take the merged checks of a node and choose those for a trial boot, or for always."""
        self._checks = checks.of(when)
        self._problems = problem_results(checks)
        self._prober = prober
        self._last: dict[str, tuple[float, Result]] = {}

    def look(self, now: Callable[[], float], going_on: Callable[[], bool], *, fresh: bool = False) -> Look | None:
        """Run what is due (everything, if `fresh`); None when the caller stopped going on midway."""
        started_s = now()
        due = [check for check in self._checks if fresh or not self._is_spared(check, started_s)]
        results = self._prober.run(due, going_on=going_on)
        if results is None:
            return None
        ended_s = now()
        self._last |= {result.name: (started_s, result) for result in results}
        found = (self._last[check.name][1] for check in self._checks)
        return Look(started_s, ended_s, (*self._problems, *found))

    @property
    def spares(self) -> bool:
        """Tell whether any check has an interval of its own."""
        return any(check.interval_s is not None for check in self._checks)

    def _is_spared(self, check: AnyCheck, now_s: float) -> bool:
        if check.interval_s is None or check.name not in self._last:
            return False
        before_s, result = self._last[check.name]
        return result.ok and 0 <= now_s - before_s < check.interval_s


def problem_results(checks: CheckSet) -> tuple[Result, ...]:
    """Return a failed result for each file that does not count.

    The vendor's is required: an image whose checks cannot be read must not be committed. The operator's only informs:
    both releases read it, so it says nothing about the image, and no trial is armed while it stands.
    """
    return tuple(
        Result(
            problem.name,
            Status.ERROR,
            bounded(str(problem.error), DETAIL_BYTES),
            required=problem.origin is Origin.VENDOR,
        )
        for problem in checks.problems
    )
