"""Looks at systemd's units and at the system as a whole."""

from __future__ import annotations

import json
from typing import Any

from rollback.checks import SystemdSystem, SystemdUnit
from rollback.execute import execute
from rollback.results import Outcome, Status

# The judge itself is one of the jobs that the boot waits for.
OWN_UNITS = frozenset({"acl-updater-health.service", "boot-complete.target"})

_LIMIT = 1 << 20


class CannotAskSystemd(Exception):
    """systemctl failed or did not answer in time."""


def look_at_unit(check: SystemdUnit, restarts_before: int | None) -> tuple[Outcome, int | None]:
    """Judge one unit; return its restart counter as well, to be handed in at the next look."""
    found = _properties(check.unit, ("LoadState", "ActiveState", "SubState", "Result", "NRestarts"), check.timeout_s)
    load, active, sub = found.get("LoadState", ""), found.get("ActiveState", ""), found.get("SubState", "")
    counter = int(found["NRestarts"]) if found.get("NRestarts", "").isdecimal() else None
    if load != "loaded":
        return Outcome(Status.FAILED, f"{check.unit} is {load or 'unknown'} instead of loaded"), counter
    state = f"{check.unit} is {active} ({sub})"
    if active == "failed" or (check.expect == "active" and active not in ("active", "reloading", "refreshing")):
        result = found.get("Result", "success")
        return Outcome(Status.FAILED, state + (f", result {result}" if result not in ("", "success") else "")), counter
    if counter is not None and restarts_before is not None and counter > restarts_before:
        return Outcome(Status.FAILED, f"{state} but was restarted since the last look ({counter} times)"), counter
    if counter is not None and check.max_restarts is not None and counter > check.max_restarts:
        return Outcome(Status.FAILED, f"{state} but was restarted {counter} times since the boot"), counter
    return Outcome(Status.OK, state), counter


def look_at_system(check: SystemdSystem) -> Outcome:
    """Judge the whole system: nothing has failed, and nothing but this service is still starting.

    `starting` is not by itself an answer: the system is in that state until the verdict, because a job of its boot
    waits for it.
    """
    state = _ask(["show", "--property=SystemState", "--value"], check.timeout_s).strip()
    if state == "running":
        return Outcome(Status.OK, "the system is running")
    if state not in ("starting", "degraded"):
        return Outcome(Status.FAILED, f"the system is in the state {state or 'unknown'}")
    allowed = OWN_UNITS.union(check.allowed)
    units = _units(check.timeout_s)
    failed = sorted(name for name, active in units if active == "failed" and name not in allowed)
    starting = sorted(
        # A device that only the mount table knows stays "activating" for good.
        name
        for name, active in units
        if active == "activating" and name not in allowed and not name.endswith(".device")
    )
    starting = _of_the_boot(starting, check.timeout_s)
    parts = [f"failed: {', '.join(failed)}"] if failed else []
    parts += [f"still starting: {', '.join(starting)}"] if starting else []
    if not parts:
        return Outcome(Status.OK, f"the system is {state}, nothing has failed and nothing else is pending")
    return Outcome(Status.FAILED, f"the system is {state}; {'; '.join(parts)}", findings=tuple(failed + starting))


def is_shutting_down(timeout_s: float = 10.0) -> bool:
    """Tell whether the system is on its way down; False when systemd does not say."""
    try:
        return _ask(["show", "--property=SystemState", "--value"], timeout_s).strip() == "stopping"
    except (CannotAskSystemd, OSError):
        return False


def _of_the_boot(units: list[str], timeout_s: float) -> list[str]:
    """Leave out units that a timer, path or socket starts: they come and go at any time."""
    return [unit for unit in units if not _properties(unit, ("TriggeredBy",), timeout_s).get("TriggeredBy")]


def _units(timeout_s: float) -> list[tuple[str, str]]:
    answer = _ask(["list-units", "--all", "--full", "--state=failed,activating", "--output=json"], timeout_s)
    try:
        units: list[dict[str, Any]] = json.loads(answer or "[]")
        return [(str(unit["unit"]), str(unit["active"])) for unit in units]
    except (ValueError, TypeError, KeyError) as error:
        raise CannotAskSystemd(f"systemctl list-units gave no list of units: {error}") from error


def _properties(unit: str, names: tuple[str, ...], timeout_s: float) -> dict[str, str]:
    answer = _ask(["show", *(f"--property={name}" for name in names), "--", unit], timeout_s)
    pairs = (line.partition("=") for line in answer.splitlines())
    return {key: value for key, separator, value in pairs if separator}


def _ask(words: list[str], timeout_s: float) -> str:
    argv = ["systemctl", "--no-pager", "--no-ask-password", *words]
    ended = execute(argv, timeout_s=timeout_s, limit_bytes=_LIMIT)
    if ended.exit_code is None:
        raise CannotAskSystemd(f"systemd did not answer within {timeout_s:g} s")
    if ended.exit_code != 0:
        said = ended.errors.decode("utf-8", "replace").strip()
        raise CannotAskSystemd(f"systemctl {words[0]} failed with exit code {ended.exit_code}: {said}")
    return ended.output.decode("utf-8", "replace")
