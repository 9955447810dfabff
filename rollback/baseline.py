"""What was broken before an update, so that it does not blame the new release."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rollback.health_files import CheckSet
from rollback.probes import Prober
from rollback.results import Result
from rollback.rounds import Rounds

ROUNDS = 2
MAX_NAMES = 1000


def capture(
    checks: CheckSet,
    prober: Prober,
    *,
    pause: Callable[[], None],
    pstore_names: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run the checks on the running release; return what fails in every one of two rounds, as plain JSON values.

    A passing failure must not excuse the new release, hence the second round after `pause`. The names of the panic
    dumps that exist are kept as well: later ones belong to the trial. Raises InvalidDocument for an operator's file
    that cannot be read.
    """
    problem = checks.operator_problem()
    if problem is not None:
        raise problem
    rounds = Rounds(checks, prober, "trial")
    failed = _failures(rounds)
    for _ in range(ROUNDS - 1):
        if not failed:
            break
        pause()
        again = _failures(rounds)
        failed = {name: result for name, result in again.items() if name in failed}
    return {
        "format": 1,
        "failing": {name: result.detail for name, result in sorted(failed.items())[:MAX_NAMES]},
        "pstore": sorted(pstore_names)[-MAX_NAMES:],
    }


def failing_names(baseline: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the failures that a baseline excuses; one that cannot be understood excuses nothing."""
    found = (baseline or {}).get("failing")
    return frozenset(str(name) for name in found) if isinstance(found, Mapping) else frozenset()


def pstore_names(baseline: Mapping[str, Any] | None) -> frozenset[str] | None:
    """Return the panic dumps that existed before the trial, None when the baseline does not say."""
    found = (baseline or {}).get("pstore")
    return frozenset(str(name) for name in found) if isinstance(found, list) else None


def sentence(baseline: Mapping[str, Any]) -> str:
    """Say in one sentence what a baseline holds."""
    failing = sorted(failing_names(baseline))
    if not failing:
        return "every required check passes on the running release"
    shown = ", ".join(failing[:5]) + (f" and {len(failing) - 5} more" if len(failing) > 5 else "")
    return f"already failing on the running release, and so not blamed on the new one: {shown}"


def _failures(rounds: Rounds) -> dict[str, Result]:
    look = rounds.look(time.monotonic, lambda: True, fresh=True)
    results = look.results if look is not None else ()
    return {name: result for result in results if result.required for name in result.failures}
