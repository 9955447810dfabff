"""What a serial console tells of one boot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """One thing that a boot's serial console can show."""

    FIRMWARE = "firmware"
    LOADER = "loader"
    LOADER_ERROR = "loader error"
    STUB = "stub"
    KERNEL = "kernel"
    SECURE_BOOT = "secure boot"
    COMMAND_LINE = "command line"
    INITRD = "initrd"
    SWITCH_ROOT = "switch root"
    USERSPACE = "userspace"
    MULTI_USER = "multi-user"
    BOOT_COMPLETE = "boot complete"
    LOGIN = "login"
    FAULT = "fault"
    EMERGENCY = "emergency"
    VERITY = "verity"
    PANIC = "panic"
    LOCKUP = "lockup"
    WATCHDOG = "watchdog armed"
    UPDATER = "updater"
    RESTART = "restart"
    POWER_OFF = "power off"


# The first pattern that matches a line names its mark. Group `text`, where there is one, is what the mark keeps.
_PATTERNS: tuple[tuple[Mark, re.Pattern[str]], ...] = tuple(
    (mark, re.compile(pattern))
    for mark, pattern in (
        (Mark.LOADER, r"BdsDxe: starting (?P<text>Boot.*)"),
        (Mark.FIRMWARE, r"BdsDxe: (?P<text>loading .*|failed .*|No bootable .*)"),
        (Mark.LOADER, r"^acl: (?P<text>slot [ab], tries left: .*)"),
        (Mark.LOADER_ERROR, r"^acl: (?P<text>slot [ab] does not load|no slot starts.*|the try of .*)"),
        (Mark.LOADER_ERROR, r"(?P<text>(?:Error (?:loading|opening|reading|preparing|starting)|Failed to execute) .*)"),
        (Mark.STUB, r"EFI stub: (?P<text>.*)"),
        (Mark.COMMAND_LINE, r"^(?:\[ *[0-9.]+\] )?(?:Kernel c|C)ommand line: (?P<text>.*)"),
        (Mark.SECURE_BOOT, r"\] secureboot: (?P<text>Secure boot .*)"),
        (Mark.KERNEL, r"\] (?P<text>Linux version \S+)"),
        (Mark.FAULT, r"acl-lab: fault (?P<text>.*)"),
        (Mark.PANIC, r"Kernel panic - not syncing: (?P<text>.*)"),
        (Mark.LOCKUP, r"(?P<text>watchdog: BUG: soft lockup.*|INFO: task .* blocked for more than.*)"),
        (Mark.VERITY, r"device-mapper: verity: (?P<text>.*corrupt.*)"),
        (Mark.INITRD, r"systemd\[1\]: (?P<text>Running in initrd)"),
        (Mark.SWITCH_ROOT, r"(?:systemd\[1\]: |Starting .*- )(?P<text>Switching root|Switch Root)"),
        (
            Mark.EMERGENCY,
            r"(?:Started|Starting|Reached target|Entering) .*(?P<text>[Ee]mergency (?:[Ss]hell|[Mm]ode|mode)?.*)",
        ),
        (Mark.MULTI_USER, r"Reached target .*(?P<text>multi-user\.target|Multi-User System)"),
        (Mark.BOOT_COMPLETE, r"Reached target .*(?P<text>boot-complete\.target|Boot Completion Check)"),
        (Mark.LOGIN, r"(?:^|\s)(?P<text>\S+ login:) *$"),
        (Mark.WATCHDOG, r"systemd\[1\]: (?P<text>(?:Using hardware watchdog|Watchdog running).*)"),
        (Mark.UPDATER, r"(?P<text>acl-updater(?:-[a-z]+)?(?:\[\d+\])?: .*)"),
        (Mark.POWER_OFF, r"reboot: (?P<text>Power down|System halted)"),
        (Mark.RESTART, r"reboot: (?P<text>Restarting system.*)"),
    )
)
# PID 1 greets twice: the first time in the initrd, the second time from the release's own root.
_GREETING = re.compile(r"systemd\[1\]: systemd \S+ running in system mode|Welcome to .*!")
_ESCAPES = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78cM]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ROOT_HASH = re.compile(r"(?:root|usr)hash=([0-9a-f]{64})")
_FAULT = re.compile(r"acl\.lab\.fault=(\S+)")
_LONGEST_LINE = 8192


@dataclass(frozen=True, slots=True)
class Sighting:
    """A mark, the seconds since this boot's power-on at which it was seen, and the words that showed it."""

    mark: Mark
    at_s: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What a kernel's command line says to the lab: the root hash that it boots and the faults that it was given."""

    root_hash: str | None
    faults: tuple[str, ...]


def plain(line: str) -> str:
    """Return a console line without escape sequences and control characters."""
    return _ESCAPES.sub("", line).rstrip("\r\n")


def read_command_line(text: str) -> CommandLine:
    """Return what a kernel's command line says to the lab; the last `roothash=` or `usrhash=` wins, as in systemd."""
    words = text.split()
    hashes = [match.group(1) for word in words if (match := _ROOT_HASH.fullmatch(word))]
    faults = tuple(match.group(1) for word in words if (match := _FAULT.fullmatch(word)))
    return CommandLine(hashes[-1] if hashes else None, faults)


class Console:
    """Reads one boot's serial bytes, in whatever pieces they come, into sightings."""

    def __init__(self) -> None:
        """Begin at power-on."""
        self._pending = b""
        self.sightings: list[Sighting] = []

    def feed(self, data: bytes, at_s: float) -> list[Sighting]:
        """Take more bytes; return the sightings that they complete."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _LONGEST_LINE:
            lines.append(self._pending)
            self._pending = b""
        before = len(self.sightings)
        for line in lines:
            self._look(line, at_s)
        # A login prompt waits on its line for ever: it is the one mark that no newline completes.
        if self._pending.rstrip().endswith(b"login:"):
            self._look(self._pending, at_s)
            self._pending = b""
        return self.sightings[before:]

    def _look(self, raw: bytes, at_s: float) -> None:
        line = plain(raw.decode("utf-8", "replace"))
        for mark, pattern in _PATTERNS:
            match = pattern.search(line)
            if match is not None:
                self.sightings.append(Sighting(mark, at_s, match.group("text").strip()))
                return
        if _GREETING.search(line) and self.first(Mark.SWITCH_ROOT) is not None:
            self.sightings.append(Sighting(Mark.USERSPACE, at_s, line.strip()[-120:]))

    def last(self, mark: Mark) -> Sighting | None:
        """Return the latest sighting of a mark."""
        return next((sighting for sighting in reversed(self.sightings) if sighting.mark is mark), None)

    def first(self, mark: Mark) -> Sighting | None:
        """Return the earliest sighting of a mark."""
        return next((sighting for sighting in self.sightings if sighting.mark is mark), None)
