"""What the commands print: reports, errors, logs, progress."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from updater.errors import ExitCode, UpdaterError

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a command: data for machines, lines for people."""

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    exit_code: int = ExitCode.DONE


def show(report: Report, *, as_json: bool) -> int:
    """Print a report; return its exit code."""
    if as_json:
        print(json.dumps(report.data, indent=2, sort_keys=True))
    else:
        for line in report.lines:
            print(line)
    sys.stdout.flush()
    return int(report.exit_code)


def show_error(error: UpdaterError, *, as_json: bool) -> int:
    """Print an error to whoever reads: one JSON document, or a sentence with what to do next."""
    if as_json:
        told = {"error": error.message, "mend": error.mend, "reason": error.reason, "exit_code": int(error.exit_code)}
        print(json.dumps(told, indent=2, sort_keys=True))
    else:
        print(f"acl-updater: {error.message}", file=sys.stderr)
        if error.mend:
            print(f"  what to do: {error.mend}", file=sys.stderr)
    return int(error.exit_code)


def start_logging(verbose: bool) -> None:
    """Log to stderr, in systemd's own priorities where it listens."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    if "JOURNAL_STREAM" in os.environ and not verbose:
        logging.getLogger("updater").setLevel(logging.INFO)
        logging.getLogger("rollback").setLevel(logging.INFO)


class _JournalFormatter(logging.Formatter):
    """Prefixes lines with syslog priorities, which systemd reads from a service's stderr."""

    def format(self, record: logging.LogRecord) -> str:
        priority = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}.get(record.levelno, 5)
        return f"<{priority}>{super().format(record)}"


class ConsoleReporter:
    """A bar for each long step on a terminal, lines elsewhere, `STATUS=` to systemd."""

    _LINE_EVERY_S = 5.0

    def __init__(self, *, quiet: bool = False) -> None:
        """Show to stderr; `quiet` leaves only systemd's status."""
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._name = ""
        self._last_line = time.monotonic()
        self._notify = _notifier()

    def begin(self, name: str, sentence: str) -> None:
        self._name = name
        self._last_line = time.monotonic()
        self._tell(f"{name}: {sentence}")
        if not self._quiet:
            print(f"· {name}: {sentence}", file=sys.stderr, flush=True)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if self._terminal and not self._quiet:
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total_bytes or None, unit="B", unit_scale=True, leave=False, desc=self._name)
            self._bar.n = done_bytes
            self._bar.total = total_bytes or None
            self._bar.refresh(nolock=True) if now - self._last_line > 0.1 else None
            if now - self._last_line > 0.1:
                self._last_line = now
            return
        if now - self._last_line < self._LINE_EVERY_S:
            return
        self._last_line = now
        share = f"{100 * done_bytes // total_bytes} % of {total_bytes >> 20} MiB" if total_bytes else f"{done_bytes}"
        self._tell(f"{self._name}: {share}")
        if not self._quiet:
            print(f"  {self._name}: {share}", file=sys.stderr, flush=True)

    def end(self, name: str, result: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._tell(f"{name}: {result}")
        if not self._quiet and result != "done":
            print(f"  {result}", file=sys.stderr, flush=True)

    def _tell(self, status: str) -> None:
        if self._notify is not None:
            self._notify.notify(f"STATUS={status}")


def _notifier() -> Any:
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    import sdnotify

    return sdnotify.SystemdNotifier()
