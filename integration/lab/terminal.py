"""A run's events as lines that a person can follow while they happen."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from integration.lab.boots import Event
from integration.lab.report import Report, printable
from integration.lab.serial import plain
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
_CLEAR = "\r\x1b[K"
_REDRAW_S = 0.2
_LONGEST_LINE = 4096
_GOOD = (Outcome.HEALTHY, Outcome.COMMITTED)


class Live:
    """Prints each event as one line, coloured where the terminal wants it; below them the console's last line, live.

    The tail is for terminals only. Events and console bytes may come from several threads.
    """

    def __init__(self, out: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `out`, or to standard output."""
        self._out = out or sys.stdout
        self._paint = painter(self._out)
        self._is_terminal = self._out.isatty()
        self._clock = clock
        self._lock = threading.Lock()
        self._rest = b""
        self._tail = ""
        self._drawn_s = float("-inf")

    def tell(self, event: Event) -> None:
        """Print an event."""
        with self._lock:
            if self._is_terminal:
                self._out.write(_CLEAR)
            self._out.write(f"{self._line(event)}\n")
            if self._is_terminal:
                self._tail = "" if event.kind in ("power", "boot") else self._tail
                self._draw()
            self._out.flush()

    def show(self, data: bytes) -> None:
        """Take bytes of the running boot's console."""
        if not self._is_terminal:
            return
        with self._lock:
            *whole, self._rest = (self._rest + data).split(b"\n")
            lines = [printable(plain(line.decode("utf-8", "replace"))) for line in (*whole, self._rest)]
            self._rest = self._rest[-_LONGEST_LINE:]
            self._tail = next((line.strip() for line in reversed(lines) if line.strip()), self._tail)
            if self._clock() - self._drawn_s >= _REDRAW_S:
                self._draw()
                self._out.flush()

    def close(self) -> None:
        """Take the tail away."""
        with self._lock:
            if self._is_terminal:
                self._out.write(_CLEAR)
                self._out.flush()

    def _draw(self) -> None:
        self._drawn_s = self._clock()
        room = shutil.get_terminal_size((120, 24)).columns - 1
        self._out.write(_CLEAR + self._paint(f"  │ {self._tail}"[:room], "2") if self._tail else _CLEAR)

    def _line(self, event: Event) -> str:
        minutes, seconds = divmod(event.at_s, 60)
        if event.kind == "expect":
            good = event.text.startswith("held")
            mark = self._paint("✓" if good else "✗", "32" if good else "1;31")
            text = event.text.removeprefix("held: ").removeprefix("FAILED: ")
            line = f"{mark} {text}"
        else:
            line = self._paint(event.text, _COLOURS.get(event.kind, ""))
        boot = f"boot {event.boot}" if event.boot else ""
        room = max(40, shutil.get_terminal_size((120, 24)).columns - 26) if self._is_terminal else 400
        short = self._paint(event.text[: room - 1] + "…", _COLOURS.get(event.kind, ""))
        shown = line if len(event.text) <= room else short
        return f"{int(minutes):3d}:{seconds:04.1f}  {boot:7}  {event.kind:9}  {shown}"


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
