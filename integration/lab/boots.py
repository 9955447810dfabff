"""The record of a machine's boots while they happen, made from outside the guest."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from integration.lab.emulator import Given
from integration.lab.qmp import QmpEvent
from integration.lab.serial import CommandLine, Console, Mark, Sighting, read_command_line
from integration.lab.timeline import (
    Boot,
    DiskView,
    Ending,
    Outcome,
    Phase,
    judge,
    slot_of,
    spans_of,
)
from updater.boot.entries import EntryName
from updater.errors import UpdaterError


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, `at_s` seconds after the machine's first power-on, during boot `boot` (0: before)."""

    at_s: float
    boot: int
    kind: str
    text: str


@dataclass(slots=True)
class _Running:
    n: int
    started_s: float
    console: Console
    log: Path
    command_line: CommandLine
    view: DiskView | None = None
    slot: str | None = None
    release: str | None = None
    entry: EntryName | None = None
    watchdog: bool = False
    text: str = ""
    was_proven: bool = False
    verdict_s: float | None = None


# What a person who watches the terminal wants to read; the rest is in the serial log.
_TOLD = {
    Mark.LOADER_ERROR: "loader",
    Mark.FAULT: "fault",
    Mark.EMERGENCY: "emergency",
    Mark.VERITY: "verity",
    Mark.PANIC: "panic",
    Mark.LOCKUP: "lockup",
    Mark.SWITCH_ROOT: "initrd",
    Mark.MULTI_USER: "userspace",
    Mark.UPDATER: "updater",
    Mark.RESTART: "guest",
    Mark.POWER_OFF: "guest",
}


class Observer:
    """Keeps the boots and events of one machine; told by the thread that watches it, read by any."""

    def __init__(
        self,
        folder: Path,
        *,
        releases: Mapping[str, str],
        look: Callable[[], DiskView],
        tell: Callable[[Event], None] | None = None,
        show: Callable[[bytes], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write serial logs to `folder`; `releases` maps root hashes to versions, `look` reads the machine's disk.

        An uncounted entry counts as proven; a counted one does once its boot was seen to commit.
        """
        self.folder = folder
        self.releases = releases
        self.events: list[Event] = []
        self.disk_errors = 0
        self._proven: set[tuple[str | None, int | None]] = set()
        self._look = look
        self._tell = tell
        self._show = show
        self._clock = clock
        self._zero: float | None = None
        self._done: list[Boot] = []
        self._now: _Running | None = None
        # Whoever waits reads the boots while the machine's thread ends one: a boot is either running or done.
        self._turn = threading.Lock()
        self._looked_s = float("-inf")

    # -- called by the machine -----------------------------------------------------------------------------------

    def begin(self, given: Given) -> None:
        """Begin a boot."""
        n = len(self._done) + 1
        log = self.folder / f"serial-{n:02d}.log"
        log.write_bytes(b"")
        self._now = _Running(n, self._at(), Console(), log, CommandLine(None, ()))
        self._looked_s = float("-inf")
        self.note(
            "power",
            f"boot {n} begins" + (f", given {' '.join(given.kernel_parameters)}" if given.kernel_parameters else ""),
        )

    def serial(self, data: bytes) -> None:
        """Take serial bytes of the running boot."""
        now = self._now
        if now is None:
            return
        with now.log.open("ab") as file:
            file.write(data)
        if self._show is not None:
            self._show(data)
        now.text += data.decode("utf-8", "replace")
        for sighting in now.console.feed(data, self._at() - now.started_s):
            self._sighted(now, sighting)

    def event(self, event: QmpEvent) -> None:
        """Take an event of QEMU."""
        now = self._now
        if event.name == "WATCHDOG" and now is not None:
            now.watchdog = True
            self.note("watchdog", f"the hardware watchdog fired: {event.about.get('action', '')}")
        elif event.name == "BLOCK_IO_ERROR":
            self.disk_errors += 1
            if self.disk_errors == 1:
                self.note("fault", f"the disk failed a {event.about.get('operation', 'transfer')}")

    def end(self, ending: Ending) -> None:
        """End the running boot, with the disk at rest."""
        now = self._now
        if now is None:
            return
        view = self._view()
        boot = self._boot(now, ending, view)
        self._learn(now, boot, view)
        with self._turn:
            self._now = None
            self._done.append(boot)
        text = f"boot {boot.n} ended after {boot.seconds:.0f} s: {boot.outcome.value}"
        self.note("boot", text + (f" ({boot.detail})" if boot.detail else ""))

    def note(self, kind: str, text: str) -> None:
        """Record an event of the lab itself."""
        done, now = self._state()
        event = Event(round(self._at(), 3), now.n if now else len(done), kind, text)
        self.events.append(event)
        if self._tell is not None:
            self._tell(event)

    # -- read by others ------------------------------------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        """Tell whether the running boot has not said a word yet."""
        now = self._now
        return now is not None and not now.text

    @property
    def running(self) -> tuple[int, str | None]:
        """Return the number of the running boot and its release; 0 and None between two boots."""
        return (self._now.n, self._now.release) if self._now is not None else (0, None)

    @property
    def saw_watchdog(self) -> bool:
        """Tell whether the running boot's watchdog fired."""
        now = self._now
        return now is not None and now.watchdog

    @property
    def boots(self) -> tuple[Boot, ...]:
        """Return every boot so far; the running one is judged as it stands."""
        done, now = self._state()
        if now is None:
            return done
        # Waiting threads ask often; the disk is looked at twice a second at most.
        if self._clock() - self._looked_s >= 0.5:
            now.view = self._view() or now.view
            self._looked_s = self._clock()
        boot = self._boot(now, Ending.STILL_ON, now.view)
        self._learn(now, boot, now.view)
        return (*done, boot)

    def console_shows(self, pattern: re.Pattern[str]) -> bool:
        """Tell whether the running boot's console has shown a pattern."""
        now = self._now
        return now is not None and pattern.search(now.text) is not None

    def newest_log(self) -> Path:
        """Return the serial log of the running or last boot."""
        done, now = self._state()
        n = now.n if now else max(1, len(done))
        return self.folder / f"serial-{n:02d}.log"

    # -- within --------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[tuple[Boot, ...], _Running | None]:
        with self._turn:
            return tuple(self._done), self._now

    def _at(self) -> float:
        if self._zero is None:
            self._zero = self._clock()
        return self._clock() - self._zero

    def _sighted(self, now: _Running, sighting: Sighting) -> None:
        # The kernel says its command line twice; the disk is looked at once, before the guest can change it.
        if sighting.mark is Mark.COMMAND_LINE and now.command_line.root_hash is None:
            now.command_line = read_command_line(sighting.text)
            now.view = self._view()
            root_hash = now.command_line.root_hash
            now.release = self.releases.get(root_hash or "")
            if now.view is not None:
                now.slot = slot_of(root_hash, now.view.slots)
                now.entry = now.view.entry_of(now.slot)
                now.was_proven = self._is_proven(now)
            named = f"release {now.release}" if now.release else f"an unknown release (root hash {root_hash})"
            entry = f", entry {now.entry.file}" if now.entry else ""
            self.note("kernel", f"slot {now.slot or '?'} boots {named}{entry}")
        elif sighting.mark in _TOLD:
            self.note(_TOLD[sighting.mark], sighting.text)

    def _view(self) -> DiskView | None:
        try:
            return self._look()
        except (UpdaterError, OSError, ValueError) as error:
            # A directory that the guest is rewriting can be read torn; the next look sees it whole.
            if self._now is None:
                self.note("lab", f"the disk could not be read: {error}")
            return None

    def _boot(self, now: _Running, ending: Ending, view: DiskView | None) -> Boot:
        seconds = self._at() - now.started_s
        entry_after = view.entry_of(now.slot) if view else None
        outcome, detail = judge(
            now.console.sightings,
            ending,
            entry=now.entry,
            entry_after=entry_after,
            was_proven=now.was_proven,
        )
        if now.verdict_s is None and outcome in (Outcome.COMMITTED, Outcome.ROLLED_BACK):
            now.verdict_s = seconds
        counted = now.entry is not None and now.entry.tries_left is not None
        trial = counted and not now.was_proven
        verdict = None
        if trial and now.verdict_s is not None:
            verdict = (Phase.UP if outcome is Outcome.COMMITTED else Phase.VERDICT, now.verdict_s)
        return Boot(
            n=now.n,
            slot=now.slot,
            release=now.release,
            outcome=outcome,
            seconds=round(seconds, 1),
            started_s=round(now.started_s, 3),
            spans=spans_of(now.console.sightings, seconds, trial=trial, verdict=verdict),
            sightings=tuple(now.console.sightings),
            ending=ending,
            entry=now.entry.file if now.entry else None,
            faults=now.command_line.faults,
            serial_log=now.log.name,
            detail=detail,
        )

    def _is_proven(self, now: _Running) -> bool:
        if now.entry is None or now.view is None:
            return False
        return now.entry.tries_left is None or self._trial(now, now.view) in self._proven

    def _trial(self, now: _Running, view: DiskView) -> tuple[str | None, int | None]:
        entry = view.entry_of(now.slot)
        return (now.slot, view.generations.get(entry.file) if entry else None)

    def _learn(self, now: _Running, boot: Boot, view: DiskView | None) -> None:
        if boot.outcome is not Outcome.COMMITTED or view is None:
            return
        trial = self._trial(now, view)
        if trial not in self._proven:
            self._proven.add(trial)
            self.note("commit", f"release {boot.release} is committed in slot {boot.slot}: its entry is good now")
