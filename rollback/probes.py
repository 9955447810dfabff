"""The runner of checks: all at once within a bound, each with a timeout that holds."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rollback.checks import AnyCheck, Command, File, Http, Mount, SystemdSystem, SystemdUnit, Tcp, Verity
from rollback.execute import execute
from rollback.results import DETAIL_BYTES, OUTPUT_BYTES, Outcome, Result, Status, bounded

log = logging.getLogger(__name__)

PARALLEL = 4
# A check ends itself at its timeout; one that has not ended this much later is left behind.
GRACE_S = 2.0
_SLICE_S = 0.5


class Prober:
    """Runs checks in threads that it can leave behind.

    A thread may hang in the kernel (a dead disk, a name server) where nothing can end it. Its check then counts as
    timed out, and is not started again until that thread has come back.
    """

    def __init__(self, *, root: Path = Path("/"), parallel: int = PARALLEL, grace_s: float = GRACE_S) -> None:
        """Look at the machine whose /proc and /sys are below `root`."""
        self._root = root
        self._parallel = parallel
        self._grace_s = grace_s
        self._mail: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        self._left_behind: dict[str, int] = {}
        self._restarts: dict[str, int] = {}
        self._ticket = 0

    def run(self, checks: Sequence[AnyCheck], *, going_on: Callable[[], bool] = lambda: True) -> list[Result] | None:
        """Run every check once; return the results in the order of the checks.

        `going_on` is called at least twice a second; when it says no, the run is dropped and None returned.
        """
        waiting = list(checks)
        running: dict[int, tuple[AnyCheck, float]] = {}
        results: dict[str, Result] = {}
        while waiting or running:
            while waiting and len(running) < self._parallel:
                check = waiting.pop(0)
                if check.name in self._left_behind:
                    results[check.name] = _late(check, "the run before has not come back yet")
                else:
                    self._ticket += 1
                    running[self._ticket] = check, time.monotonic() + check.timeout_s + self._grace_s
                    self._start(self._ticket, check)
            if not running:
                continue
            soonest = min(deadline for _, deadline in running.values())
            self._collect(running, results, max(0.0, min(_SLICE_S, soonest - time.monotonic())))
            self._leave_behind(running, results)
            if not going_on():
                self._left_behind |= {check.name: ticket for ticket, (check, _) in running.items()}
                return None
        return [results[check.name] for check in checks]

    def _start(self, ticket: int, check: AnyCheck) -> None:
        # A daemon, so that one that never comes back does not keep the process from ending.
        threading.Thread(target=self._work, args=(ticket, check), name=f"check-{check.name}", daemon=True).start()

    def _work(self, ticket: int, check: AnyCheck) -> None:
        started_s = time.monotonic()
        outcome = self._look(check)
        self._mail.put(
            (
                ticket,
                Result(
                    name=check.name,
                    status=outcome.status,
                    detail=bounded(outcome.detail, DETAIL_BYTES),
                    output=bounded(outcome.output, OUTPUT_BYTES),
                    findings=outcome.findings,
                    required=check.required,
                    duration_s=time.monotonic() - started_s,
                    started_s=started_s,
                ),
            )
        )

    def _look(self, check: AnyCheck) -> Outcome:
        from rollback.probe_systemd import CannotAskSystemd

        try:
            return self._look_at(check)
        except CannotAskSystemd as error:
            return Outcome(Status.ERROR, str(error))
        except OSError as error:
            return Outcome(Status.ERROR, f"the check could not be carried out: {error}")
        except Exception as error:
            # A mistake of ours counts against the boot, like anything that cannot be shown to be well.
            log.exception("the check %s broke", check.name)
            return Outcome(Status.ERROR, f"the check itself broke: {type(error).__name__}: {error}")

    def _look_at(self, check: AnyCheck) -> Outcome:
        from rollback import probe_disk, probe_network, probe_systemd

        match check:
            case SystemdUnit():
                outcome, counter = probe_systemd.look_at_unit(check, self._restarts.get(check.name))
                if counter is not None:
                    self._restarts[check.name] = counter
                return outcome
            case SystemdSystem():
                return probe_systemd.look_at_system(check)
            case Command():
                return look_at_command(check)
            case Http():
                return probe_network.look_at_server(check)
            case Tcp():
                return probe_network.look_at_port(check)
            case File():
                return probe_disk.look_at_file(check)
            case Mount():
                return probe_disk.look_at_mount(check, self._root)
            case Verity():
                return probe_disk.look_at_verity(check, self._root)

    def _collect(self, running: dict[int, tuple[AnyCheck, float]], results: dict[str, Result], wait_s: float) -> None:
        try:
            ticket, result = self._mail.get(timeout=wait_s)
            while True:
                if ticket in running:
                    del running[ticket]
                    results[result.name] = result
                elif self._left_behind.get(result.name) == ticket:
                    del self._left_behind[result.name]
                ticket, result = self._mail.get_nowait()
        except queue.Empty:
            return

    def _leave_behind(self, running: dict[int, tuple[AnyCheck, float]], results: dict[str, Result]) -> None:
        now = time.monotonic()
        for ticket, (check, deadline) in list(running.items()):
            if now >= deadline:
                del running[ticket]
                self._left_behind[check.name] = ticket
                results[check.name] = _late(check, "and could not be ended")


def look_at_command(check: Command) -> Outcome:
    """Judge a command by its exit code and its output."""
    shown = check.argv[0]
    try:
        ended = execute(check.argv, timeout_s=check.timeout_s, limit_bytes=OUTPUT_BYTES)
    except FileNotFoundError:
        return Outcome(Status.FAILED, f"{shown} is not installed")
    except PermissionError:
        return Outcome(Status.FAILED, f"{shown} may not be executed")
    if ended.exit_code is None:
        return Outcome(Status.TIMEOUT, f"{shown} did not end within {check.timeout_s:g} s and was killed", ended.text)
    if ended.exit_code < 0:
        return Outcome(Status.FAILED, f"{shown} was ended by signal {-ended.exit_code}", ended.text)
    if ended.exit_code != check.exit_code:
        why = f"{shown} ended with exit code {ended.exit_code} instead of {check.exit_code}"
        return Outcome(Status.FAILED, why, ended.text)
    if check.contains is not None and check.contains not in ended.text:
        return Outcome(Status.FAILED, f"{shown} did not say {check.contains!r}", ended.text)
    return Outcome(Status.OK, f"{shown} ended with exit code {ended.exit_code}")


def _late(check: AnyCheck, why: str) -> Result:
    detail = f"the check did not end within {check.timeout_s:g} s: {why}"
    return Result(check.name, Status.TIMEOUT, detail, required=check.required, started_s=time.monotonic())
