"""Boots as seen from outside the guest: which slot and release ran, through which phases, and how each ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from integration.lab.serial import Mark, Sighting
from updater.boot.entries import EntryName

# What the initrd says before it gives up: see updater/units/initrd/usr/lib/acl-updater/initrd-panic.
_INITRD_GIVES_UP = "acl-updater: initrd:"


class Outcome(Enum):
    """How one boot went, in the words of reports and scenarios."""

    HEALTHY = "healthy"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    PANIC = "panic"
    WATCHDOG = "watchdog"
    INITRD_FAILED = "initrd failed"
    LOADER_ERROR = "loader error"
    REBOOTED = "rebooted"
    HALTED = "halted"
    POWER_CUT = "power cut"
    RUNNING = "running"
    STUCK = "stuck"


class Ending(Enum):
    """What ended a boot, as QEMU saw it."""

    RESET = "reset"
    WATCHDOG = "watchdog"
    POWER_OFF = "power off"
    POWER_CUT = "power cut"
    STILL_ON = "still on"
    CRASH = "emulator crash"


class Phase(Enum):
    """One stretch of a boot."""

    FIRMWARE = "firmware"
    LOADER = "loader"
    KERNEL = "kernel"
    INITRD = "initrd"
    USERSPACE = "userspace"
    TRIAL = "trial"
    VERDICT = "verdict"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a boot, in seconds since that boot's power-on."""

    phase: Phase
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class DiskView:
    """What a machine's disk shows of its boot: root hash head (32 hex digits) to slot, the entries, their generations.

    Every trial that is armed takes a generation of its own, and keeps it when it is committed and counted again.
    """

    slots: Mapping[str, str]
    entries: tuple[EntryName, ...]
    generations: Mapping[str, int | None] = field(default_factory=dict)

    def entry_of(self, slot: str | None) -> EntryName | None:
        """Return the entry file of a slot; of two (a cut between create and delete), the one with fewer tries."""
        mine = [entry for entry in self.entries if entry.stem == slot]
        return min(mine, key=lambda e: e.tries_left if e.tries_left is not None else 1 << 30, default=None)


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot, from power-on or reset to the next."""

    n: int
    slot: str | None
    release: str | None
    outcome: Outcome
    seconds: float
    started_s: float
    spans: tuple[Span, ...]
    sightings: tuple[Sighting, ...]
    ending: Ending
    entry: str | None
    faults: tuple[str, ...]
    serial_log: str
    detail: str = ""


def slot_of(root_hash: str | None, slots: Mapping[str, str]) -> str | None:
    """Return the slot that holds a root hash, known by its first 128 bits."""
    return slots.get(root_hash[:32]) if root_hash else None


def spans_of(
    sightings: Sequence[Sighting], end_s: float, *, trial: bool, verdict: tuple[Phase, float] | None = None
) -> tuple[Span, ...]:
    """Cut a boot into phases at the marks that begin them; a mark that was missed leaves its phase out.

    `verdict` is the phase that a trial's verdict began, and when.
    """
    starts: list[tuple[Phase, float]] = [(Phase.FIRMWARE, 0.0)]
    last = Phase.TRIAL if trial else Phase.UP
    for phase, marks in (
        (Phase.LOADER, (Mark.LOADER,)),
        (Phase.KERNEL, (Mark.STUB, Mark.KERNEL, Mark.COMMAND_LINE)),
        (Phase.INITRD, (Mark.INITRD,)),
        (Phase.USERSPACE, (Mark.SWITCH_ROOT, Mark.USERSPACE)),
        (last, (Mark.MULTI_USER, Mark.LOGIN)),
    ):
        # The firmware may start more than one boot option before one of them takes; the last loader start counts.
        seen = [sighting.at_s for sighting in sightings if sighting.mark in marks]
        if seen and min(seen) >= starts[-1][1]:
            starts.append((phase, min(seen)))
    if verdict is not None and verdict[1] >= starts[-1][1]:
        starts.append(verdict)
    ends = [at for _, at in starts[1:]] + [max(end_s, starts[-1][1])]
    return tuple(Span(phase, at, to) for (phase, at), to in zip(starts, ends, strict=True) if to >= at)


def judge(
    sightings: Sequence[Sighting],
    ending: Ending,
    *,
    entry: EntryName | None,
    entry_after: EntryName | None,
    was_proven: bool,
) -> tuple[Outcome, str]:
    """Return how a boot went, and the words behind it, from outside evidence alone.

    `entry` is the booted slot's entry file after the loader counted, `entry_after` the one at the boot's end;
    `was_proven` tells whether this entry had been committed before (or shipped with the disk).
    """

    def text_of(mark: Mark) -> str | None:
        return next((sighting.text for sighting in sightings if sighting.mark is mark), None)

    has = {sighting.mark for sighting in sightings}
    panic = text_of(Mark.PANIC)
    if ending is Ending.POWER_CUT:
        return Outcome.POWER_CUT, ""
    if panic is not None:
        # The initrd's emergency path and its deadline panic on purpose, so that their words reach pstore.
        words = [s.text for s in sightings if s.mark is Mark.UPDATER and _INITRD_GIVES_UP in s.text]
        if words:
            return Outcome.INITRD_FAILED, words[-1].partition(_INITRD_GIVES_UP)[2].strip()
        return Outcome.PANIC, panic
    if ending is Ending.WATCHDOG:
        return Outcome.WATCHDOG, "the hardware watchdog was not fed"
    if ending is Ending.CRASH:
        return Outcome.STUCK, "the emulator itself ended"
    condemned = entry_after is not None and entry_after.tries_left == 0 and entry != entry_after
    if condemned:
        return Outcome.ROLLED_BACK, f"its entry became {entry_after.file if entry_after else ''}"
    blessed = (
        entry is not None
        and entry.tries_left is not None
        and entry_after is not None
        and (entry_after.tries_left is None or entry_after.tries_left > entry.tries_left)
    )
    if blessed:
        return (Outcome.HEALTHY if was_proven else Outcome.COMMITTED), ""
    is_up = bool(has & {Mark.MULTI_USER, Mark.LOGIN})
    if is_up and was_proven:
        return Outcome.HEALTHY, ""
    if ending is Ending.STILL_ON:
        return Outcome.RUNNING, ""
    if not has & {Mark.KERNEL, Mark.COMMAND_LINE, Mark.INITRD}:
        return Outcome.LOADER_ERROR, text_of(Mark.LOADER_ERROR) or "no kernel was seen"
    if ending is Ending.POWER_OFF:
        return Outcome.HALTED, ""
    if not has & {Mark.SWITCH_ROOT, Mark.USERSPACE}:
        return Outcome.INITRD_FAILED, text_of(Mark.EMERGENCY) or text_of(Mark.VERITY) or ""
    return Outcome.REBOOTED, text_of(Mark.EMERGENCY) or ""
