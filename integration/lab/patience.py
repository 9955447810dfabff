"""Waiting that a busy machine cannot turn into a failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_MOST = 8.0


def slowness() -> float:
    """Return how many times slower than a quiet machine this one may be now, from 1 to 8.

    The load of the last minute for each processor; `ACL_LAB_PATIENCE` (a factor) multiplies it.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    try:
        factor = float(os.environ.get("ACL_LAB_PATIENCE", "1"))
    except ValueError:
        factor = 1.0
    return max(1.0, min(_MOST, load)) * max(0.1, factor)


@dataclass(slots=True)
class Patience:
    """A budget of seconds of a quiet machine, spent more slowly while the machine is busy."""

    budget_s: float
    clock: Callable[[], float] = time.monotonic
    pace: Callable[[], float] = slowness
    _left_s: float = field(init=False)
    _last_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._left_s = self.budget_s
        self._last_s = self.clock()

    @property
    def is_over(self) -> bool:
        """Charge the time since the last look; tell whether the budget is spent."""
        now = self.clock()
        self._left_s -= (now - self._last_s) / self.pace()
        self._last_s = now
        return self._left_s <= 0
