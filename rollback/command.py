"""The judge of health as the engine and the command line see it."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from updater.errors import ExitCode

if TYPE_CHECKING:
    from rollback.health_files import CheckSet
    from rollback.results import Result
    from updater.config import Health
    from updater.files import Directory
    from updater.health_plugin import Evidence, FailedTrial, HealthEngine

log = logging.getLogger(__name__)

_BASELINE_PAUSE_S = 5.0


class HealthCommands:
    """Implements `updater.health_plugin.HealthPlugin`."""

    def __init__(self, vendor: Path | None = None, operator: Path | None = None, root: Path = Path("/")) -> None:
        """Read checks from the usual folders unless others are named, and look at the machine below `root`."""
        self._vendor = vendor
        self._operator = operator
        self._root = root

    def add_arguments(self, health: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the subcommands of `acl-updater health`: run, show, service."""
        run = health.add_parser("run", help="run the checks once, now", description=_RUN)
        run.add_argument("names", nargs="*", metavar="CHECK", help="only these checks")
        run.add_argument("--json", action="store_true", help="print JSON")
        show = health.add_parser("show", help="show the merged checks and where each comes from", description=_SHOW)
        show.add_argument("--json", action="store_true", help="print JSON")
        health.add_parser("service", help="judge this boot (run by systemd)", description=_SERVICE)

    def run(self, arguments: argparse.Namespace, connect: Callable[[], HealthEngine]) -> int:
        """Carry out the subcommand `arguments.verb`; return its exit code."""
        if arguments.verb == "run":
            return self._run_once(arguments.names, as_json=arguments.json)
        if arguments.verb == "show":
            return self._show(as_json=arguments.json)
        return self._serve(connect)

    def capture_baseline(self, settings: Health) -> dict[str, Any]:
        """Run the checks on the running release and return what fails already, as plain JSON values."""
        from rollback.baseline import capture
        from rollback.probes import Prober
        from rollback.pstore import dump_names

        return capture(
            self._load(),
            Prober(root=self._root),
            pause=lambda: time.sleep(min(settings.interval_s, _BASELINE_PAUSE_S)),
            pstore_names=dump_names(self._root),
        )

    def failing_checks(self, settings: Health) -> list[str]:
        """Run the checks once; return what fails of the required ones, by the names that evidence uses."""
        from rollback.results import failing

        return [name for result in failing(self._results([])) for name in result.failures]

    def baseline_sentence(self, baseline: Mapping[str, Any]) -> str:
        """Say in one sentence what a baseline holds."""
        from rollback.baseline import sentence

        return sentence(baseline)

    def collect_evidence(self, failed: FailedTrial, state: Directory, *, limit_bytes: int) -> Evidence:
        """Look for what ended a trial, keep the files that tell, and judge; never fail, never take long."""
        from rollback.evidence import collect_evidence

        return collect_evidence(failed, state, limit_bytes=limit_bytes, root=self._root)

    def _load(self) -> CheckSet:
        from rollback import health_files

        return health_files.load_checks(
            self._vendor or health_files.VENDOR,
            self._operator or health_files.OPERATOR,
        )

    def _results(self, names: list[str]) -> list[Result]:
        """Run the named checks, switched off or not; without names all that run on a trial."""
        from rollback.probes import Prober
        from rollback.rounds import problem_results

        checks = self._load()
        prober = Prober(root=self._root)
        if names:
            every = [item.check for item in (*checks.placed, *checks.disabled)]
            return prober.run([check for check in every if check.name in names]) or []
        return [*problem_results(checks), *(prober.run(checks.of("trial")) or ())]

    def _run_once(self, names: list[str], *, as_json: bool) -> int:
        from rollback.results import failing

        checks = self._load()
        unknown = sorted(set(names) - {item.check.name for item in (*checks.placed, *checks.disabled)})
        if unknown:
            print(f"no such check: {', '.join(unknown)}: `acl-updater health show` lists them", file=sys.stderr)
            return ExitCode.USAGE
        results = self._results(names)
        failed = failing(results)
        if as_json:
            print(json.dumps({"healthy": not failed, "results": [one.as_json() for one in results]}, indent=2))
        else:
            _print_results(results)
        return ExitCode.FAILED if failed else ExitCode.DONE

    def _show(self, *, as_json: bool) -> int:
        import msgspec

        checks = self._load()
        rows = [(item, True) for item in checks.placed] + [(item, False) for item in checks.disabled]
        if as_json:
            report = {
                "checks": [
                    {"from": item.path, "origin": item.origin.value, "runs": runs, **msgspec.to_builtins(item.check)}
                    for item, runs in rows
                ],
                "masked": list(checks.masked),
                "problems": [{"file": problem.path, "error": str(problem.error)} for problem in checks.problems],
            }
            print(json.dumps(report, indent=2))
        else:
            table = [("CHECK", "KIND", "COUNTS", "RUNS", "FROM")]
            for item, runs in rows:
                check = item.check
                counts = "required" if check.required else "informs"
                table.append((check.name, check.kind, counts, check.when if runs else "no", item.path))
            _print_table(table)
            for path in checks.masked:
                print(f"replaced by the operator's file of the same name: {path}")
            for problem in checks.problems:
                print(f"does not count: {problem.error}")
        return ExitCode.INVALID_INPUT if checks.problems else ExitCode.DONE

    def _serve(self, connect: Callable[[], HealthEngine]) -> int:
        from rollback.clock import BootClock
        from rollback.notify import Notifier
        from rollback.probe_systemd import is_shutting_down
        from rollback.probes import Prober
        from rollback.service import HealthService

        clock = BootClock()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: clock.stop())
        return HealthService(
            connect(),
            self._load,
            clock,
            notifier=Notifier(),
            prober=Prober(root=self._root),
            shutting_down=is_shutting_down,
        ).run()


def commands() -> HealthCommands:
    """Return the judge of health (entry point `acl_updater.health`)."""
    return HealthCommands()


def _print_results(results: list[Result]) -> None:
    table = [("CHECK", "RESULT", "TOOK", "DETAIL")]
    for result in results:
        status = result.status.value + ("" if result.required or result.ok else " (informs)")
        table.append((result.name, status, f"{result.duration_s:.2f} s", result.detail))
    _print_table(table)
    for result in results:
        if not result.ok and result.output:
            print(f"\n{result.name} said:")
            print("\n".join(f"  {line}" for line in result.output.splitlines()))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))


_RUN = "Run every health check once and print what it finds. Exit code 1 if a required check fails."
_SHOW = (
    "Show the checks of /usr/lib/acl-updater/health.d and /etc/acl-updater/health.d as merged. "
    "Exit code 5 if a file could not be read."
)
_SERVICE = "Judge this boot: commit or roll back a trial, renew the protection of a proven release."
