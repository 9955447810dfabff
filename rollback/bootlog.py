"""The journals of earlier boots, and the signs in them of how a boot ended."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rollback.execute import execute

MAX_CANDIDATES = 10
TEXT_BYTES = 1 << 19
KERNEL_BYTES = 1 << 18
TEXT_LINES = 4000

_JSON_BYTES = 4 << 20
_JSON_LINES = 3000
_HEAD_BYTES = 1 << 16

# systemd's catalogue (sd-messages.h): stable over versions and languages, unlike the sentences.
_SHUTDOWN_ASKED = "98268866d1d54a499c4e98921d93bc40"
_JOURNAL_STOPPED = "d93fb3c9c24d451a97cea615ce59c00b"
_JOURNAL_STARTED = "f77379a8490b408bbe5f6940505a777b"
_UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"

# PID 1's emergency_action() names no message id.
_ACTION = re.compile(r"^systemd: (?:Forcibly rebooting|Rebooting immediately|Rebooting): (?!Ctrl-Alt-Del)(.+)")
_CRASH = re.compile(r"^systemd: (Caught <\w+>.*|Freezing execution.*)")
_SHUTDOWN_TARGET = re.compile(r"^systemd: Reached target (?:reboot|poweroff|halt|kexec)\.target")
_EMERGENCY = re.compile(r"^systemd: Reached target (?:emergency|rescue)\.target|^acl-updater: emergency mode")
_DEADLINE = re.compile(r"^acl-updater: the boot is not complete at its deadline")
_ABANDONED = re.compile(r"^acl-updater: the health service is gone")
_VERITY = re.compile(r"^kernel: (device-mapper: verity: .*corrupt.*)")


@dataclass(frozen=True, slots=True)
class BootSigns:
    """What one boot's journal says about its end; empty strings where it says nothing.

    `action` is the reason that PID 1 gave for rebooting by itself. `orderly` tells a shutdown that was carried out in
    order, and `asked` that somebody asked for it. `failed_units` are in the order of their failures.
    """

    boot_id: str
    last_line: str = ""
    action: str = ""
    crash: str = ""
    emergency: str = ""
    deadline: str = ""
    abandoned: str = ""
    verity: str = ""
    asked: bool = False
    orderly: bool = False
    failed_units: tuple[str, ...] = ()


@dataclass(slots=True)
class BootLogs:
    """Reads the journal through journalctl, in `budget_s` seconds altogether."""

    budget_s: float = 45.0
    _started: float = field(default_factory=time.monotonic)

    def boots_of(self, root_hash: str, *, after: str | None, before: str, known: Iterable[str] = ()) -> list[str]:
        """Return the ids of the boots that ran from `root_hash`, oldest first: between two boots, or known anyway."""
        every = self._boots()
        here = every.index(plain(before)) if plain(before) in every else len(every)
        start = every.index(plain(after)) + 1 if after and plain(after) in every else 0
        recorded = {plain(one) for one in known}
        candidates = every[start:here][-MAX_CANDIDATES:]
        return [boot for boot in candidates if boot in recorded or root_hash in self._kernel_head(boot)]

    def signs_of(self, boot_id: str) -> BootSigns:
        """Return what a boot's journal says about its end."""
        fields = "MESSAGE,MESSAGE_ID,SYSLOG_IDENTIFIER,_PID,UNIT"
        raw = self._ask("-b", plain(boot_id), "-n", str(_JSON_LINES), "-o", "json", f"--output-fields={fields}")
        return read_signs(boot_id, _entries(raw))

    def text_of(self, boot_id: str, *, kernel_only: bool = False) -> bytes:
        """Return the end of a boot's journal, or of its kernel's log, for people to read."""
        which = ["-k"] if kernel_only else []
        words = ["-b", plain(boot_id), "-n", str(TEXT_LINES), "-o", "short-monotonic", "--no-hostname"]
        return self._ask(*which, *words, limit_bytes=KERNEL_BYTES if kernel_only else TEXT_BYTES)

    def _boots(self) -> list[str]:
        try:
            listed = json.loads(self._ask("--list-boots", "-o", "json") or b"[]")
            return [str(boot["boot_id"]) for boot in listed]
        except (ValueError, TypeError, KeyError):
            return []

    def _kernel_head(self, boot_id: str) -> str:
        raw = self._ask("-b", boot_id, "_TRANSPORT=kernel", "-o", "cat", limit_bytes=_HEAD_BYTES, head=True)
        return raw.decode("utf-8", "replace")

    def _ask(self, *words: str, limit_bytes: int = _JSON_BYTES, head: bool = False) -> bytes:
        left = self.budget_s - (time.monotonic() - self._started)
        if left <= 0:
            return b""
        try:
            return execute(
                ["journalctl", "--no-pager", "--quiet", *words],
                timeout_s=min(20.0, left),
                limit_bytes=limit_bytes,
                keep="head" if head else "tail",
            ).output
        except OSError:
            return b""


def plain(boot_id: str) -> str:
    """Return a boot id as the journal writes it: the kernel puts dashes in."""
    return boot_id.replace("-", "").lower()


def read_signs(boot_id: str, entries: Iterable[dict[str, Any]]) -> BootSigns:
    """Read the signs of a boot's end from its journal's entries, in their order."""
    found: dict[str, str] = {}
    failed: list[str] = []
    asked = orderly = False
    for entry in entries:
        line = f"{entry.get('SYSLOG_IDENTIFIER', '')}: {_text(entry.get('MESSAGE'))}"
        found["last_line"] = line
        message_id = entry.get("MESSAGE_ID")
        asked = asked or message_id == _SHUTDOWN_ASKED
        # The initrd's journal stops as well, when the root's takes over.
        orderly = (orderly or message_id == _JOURNAL_STOPPED) and message_id != _JOURNAL_STARTED
        unit = str(entry.get("UNIT", ""))
        if message_id == _UNIT_FAILED and unit and unit not in failed:
            failed.append(unit)
        # Anybody may write to the journal under any name; only PID 1 is PID 1.
        if line.startswith("systemd: ") and str(entry.get("_PID", "1")) != "1":
            continue
        orderly = orderly or bool(_SHUTDOWN_TARGET.search(line))
        for name, pattern in _PATTERNS.items():
            match = pattern.search(line)
            if match and name not in found:
                found[name] = match[match.lastindex or 0]
    return BootSigns(boot_id, asked=asked, orderly=orderly, failed_units=tuple(failed[:20]), **found)


_PATTERNS = {
    "action": _ACTION,
    "crash": _CRASH,
    "emergency": _EMERGENCY,
    "deadline": _DEADLINE,
    "abandoned": _ABANDONED,
    "verity": _VERITY,
}


def _entries(raw: bytes) -> Iterable[dict[str, Any]]:
    for line in raw.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            # The first line of a cut tail.
            continue
        if isinstance(entry, dict):
            yield entry


def _text(message: Any) -> str:
    """Return a journal field as text: what is not UTF-8 comes as a list of bytes, what is too long as null."""
    if isinstance(message, list):
        try:
            return bytes(message).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return ""
    return str(message or "")
