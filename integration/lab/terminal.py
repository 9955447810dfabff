"""A run's events as lines that a person can follow while they happen."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import TextIO

from integration.lab.boots import Event
from integration.lab.report import Report
from integration.lab.timeline import Boot, Outcome

_COLOURS = {
    "step": "1",
    "power": "2",
    "kernel": "36",
    "fault": "33",
    "panic": "31",
    "watchdog": "31",
    "emergency": "31",
    "verity": "31",
    "loader": "31",
    "power cut": "35",
    "commit": "32",
    "lab": "35",
}
_GOOD = (Outcome.HEALTHY, Outcome.COMMITTED)


def live(out: TextIO | None = None) -> Callable[[Event], None]:
    """Return what prints each event as one line; coloured on a terminal that wants colours."""
    stream = out or sys.stdout
    paint = painter(stream)

    def tell(event: Event) -> None:
        minutes, seconds = divmod(event.at_s, 60)
        if event.kind == "expect":
            good = event.text.startswith("held")
            mark = paint("✓" if good else "✗", "32" if good else "1;31")
            text = event.text.removeprefix("held: ").removeprefix("FAILED: ")
            line = f"{mark} {text}"
        else:
            line = paint(event.text, _COLOURS.get(event.kind, ""))
        boot = f"boot {event.boot}" if event.boot else ""
        room = max(40, shutil.get_terminal_size((120, 24)).columns - 26) if stream.isatty() else 400
        shown = line if len(event.text) <= room else paint(event.text[: room - 1] + "…", _COLOURS.get(event.kind, ""))
        stream.write(f"{int(minutes):3d}:{seconds:04.1f}  {boot:7}  {event.kind:9}  {shown}\n")
        stream.flush()

    return tell


def summary(report: Report, out: TextIO | None = None) -> None:
    """Print a run's boots and verdict."""
    stream = out or sys.stdout
    paint = painter(stream)
    stream.write("\n")
    for boot in report.boots:
        stream.write(f"  {_boot_line(boot, paint)}\n")
    held = sum(1 for one in report.expectations if one.ok)
    verdict = paint(" PASS ", "1;30;42") if report.passed else paint(" FAIL ", "1;37;41")
    stream.write(f"\n{verdict} {report.name}: {held} of {len(report.expectations)} expectations held, ")
    stream.write(f"{len(report.boots)} boots, {report.seconds:.0f} s\n")
    if not report.passed:
        for line in report.problem.splitlines():
            stream.write(f"  {paint(line, '31')}\n")
    stream.flush()


def painter(stream: TextIO) -> Callable[[str, str], str]:
    """Return what colours words for a stream: not at all where it is no terminal, or NO_COLOR is set."""
    coloured = stream.isatty() and "NO_COLOR" not in os.environ

    def paint(text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if coloured and colour else text

    return paint


def _boot_line(boot: Boot, paint: Callable[[str, str], str]) -> str:
    colour = "32" if boot.outcome in _GOOD else ("33" if boot.outcome is Outcome.RUNNING else "31")
    words = f"boot {boot.n}  slot {boot.slot or '-'}  release {boot.release or '-':14} {boot.seconds:6.1f} s  "
    return words + paint(boot.outcome.value, colour) + (f"  ({boot.detail})" if boot.detail else "")
