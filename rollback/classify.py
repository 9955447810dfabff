"""What ended a failed trial, concluded from the signs that it left."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rollback.bootlog import BootSigns
from rollback.pstore import Dump
from updater.health_plugin import Cause, Evidence, Stage

_PANIC = re.compile(r"Kernel panic - not syncing: (.+)")
_STAND_IN_WATCHDOG = "Software Watchdog Timer expired"
_OOPS = re.compile(r"\b((?:Oops|BUG): .+)")
_PLACE = re.compile(r"\b(RIP: 0010:\S+|pc : \S+)")
# What went wrong, and where, stands in lines before such a panic.
_SAYS_LITTLE = ("Fatal exception", "softlockup", "Hard LOCKUP")
_VERITY = re.compile(r"device-mapper: verity: (.*corrupt.*)|dm-verity device corrupted")
_INITRD_SAID = re.compile(r"acl-updater: initrd: (.+)")
_IN_INITRD = re.compile(r"systemd\[1\]: .*\binitrd|dracut|sysroot\.mount|Run /init as init process")
# The initrd's systemd says nothing when it hands over; its successor ends what was left of it.
_IN_USERSPACE = re.compile(
    r"systemd\[1\]: (?:Stopped .*initrd-switch-root|initrd-switch-root\.service: Deactivated|Switching root)"
    r"|acl-updater: emergency mode|Received client request to flush runtime journal"
)
_OURS_IN_INITRD = re.compile(r"acl-updater-|emergency|rescue")

_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Signs:
    """Everything that a failed trial left behind.

    `verdict` is what the trial itself recorded, `damaged_*` what reading its artifacts against their digests showed,
    `boots` its boots whose journals reached the state partition (oldest first), `watchdog` whether this boot came
    from a watchdog's reset, `tries_done` how many tries the loader counted (None: not known).
    """

    verdict: Evidence | None = None
    damaged_uki: str = ""
    damaged_slot: str = ""
    dumps: tuple[Dump, ...] = ()
    boots: tuple[BootSigns, ...] = ()
    watchdog: bool = False
    tries_done: int | None = None


def classify(signs: Signs) -> Evidence:
    """Conclude what ended a trial, from the surest sign down; without any sign against it the cause is none."""
    if signs.verdict is not None:
        return signs.verdict
    if signs.damaged_uki:
        return Evidence(Stage.ARTIFACT, Cause.DAMAGED_UKI, signs.damaged_uki)
    if signs.damaged_slot:
        panic = next((f" ({_panic_of(dump)})" for dump in signs.dumps if _panic_of(dump)), "")
        return Evidence(Stage.ARTIFACT, Cause.DAMAGED_SLOT, signs.damaged_slot + panic)
    newest_first = signs.dumps[::-1]
    # A dump that lost the panic's own line tells less than an earlier try's.
    for dump in sorted(newest_first, key=lambda dump: not _panic_of(dump)):
        told = _told_by_dump(dump, reached_userspace=bool(signs.boots))
        if told is not None:
            return told
    for boot in reversed(signs.boots):
        told = _told_by_boot(boot)
        if told is not None:
            return told
    return _told_by_watchdog(signs) if signs.watchdog else _nothing_against(signs)


def _told_by_dump(dump: Dump, *, reached_userspace: bool) -> Evidence | None:
    panic = _panic_of(dump)
    if not panic and dump.reason.lower() != "panic":
        # An oops that the kernel survived.
        return None
    verity = _VERITY.search(dump.text)
    stage = _stage_of(dump.text, reached_userspace=reached_userspace)
    if verity:
        what = (verity[1] or "a block did not match its hash").strip()
        return Evidence(stage, Cause.DAMAGED_SLOT, f"dm-verity met a corrupt block and stopped the kernel: {what}")
    said = [line.strip() for line in _INITRD_SAID.findall(dump.text)]
    if said:
        blocked = [line.removeprefix("failed: ") for line in said if line.startswith("failed: ")]
        running = [line.split(" ")[1] for line in said if line.startswith("job: ") and line.endswith(" running")]
        blocked += [unit for unit in running if not _OURS_IN_INITRD.search(unit)]
        units = f"; failed or still running: {', '.join(blocked[:5])}" if blocked else ""
        cause = Cause.DEADLINE if "deadline" in said[-1] else Cause.EMERGENCY
        return Evidence(Stage.INITRD, cause, f"the initrd gave up: {said[-1][:_REASON_CHARS]}{units}")
    if panic.startswith(_STAND_IN_WATCHDOG):
        return Evidence(stage, Cause.WATCHDOG, f"the system hung and the kernel's own watchdog ended it: {panic}")
    return Evidence(stage, Cause.PANIC, f"the kernel panicked: {panic or 'its log does not say why'}")


def _told_by_boot(boot: BootSigns) -> Evidence | None:
    failed = f"; failed units: {', '.join(boot.failed_units[:5])}" if boot.failed_units else ""
    if boot.verity:
        return Evidence(Stage.USERSPACE, Cause.DAMAGED_SLOT, f"dm-verity met a corrupt block: {boot.verity}")
    if boot.crash:
        return Evidence(Stage.USERSPACE, Cause.PANIC, f"PID 1 crashed: {boot.crash}")
    if boot.emergency:
        return Evidence(Stage.USERSPACE, Cause.EMERGENCY, f"the system came up in emergency mode{failed}")
    if boot.deadline or "timed out" in boot.action:
        sentence = f"the boot was not complete when PID 1's own deadline passed{failed}"
        return Evidence(Stage.USERSPACE, Cause.DEADLINE, sentence)
    if boot.abandoned:
        return Evidence(Stage.HEALTH, Cause.EMERGENCY, f"the health service itself kept failing{failed}")
    if boot.action:
        return Evidence(Stage.USERSPACE, Cause.EMERGENCY, f"PID 1 rebooted by itself: {boot.action}{failed}")
    return None


def _told_by_watchdog(signs: Signs) -> Evidence:
    if signs.boots:
        last = signs.boots[-1].last_line[:_REASON_CHARS]
        return Evidence(
            Stage.USERSPACE, Cause.WATCHDOG, f"the system hung and the watchdog reset it; last line: {last}"
        )
    sentence = (
        "the system hung and the watchdog reset it, before its journal reached the state partition: "
        "in the initrd or soon after"
    )
    return Evidence(Stage.INITRD, Cause.WATCHDOG, sentence)


def _nothing_against(signs: Signs) -> Evidence:
    if signs.boots:
        last = signs.boots[-1]
        if last.orderly or last.asked:
            return Evidence(
                Stage.USERSPACE, Cause.NONE, "somebody rebooted the node in order before there was a verdict"
            )
        line = last.last_line[:_REASON_CHARS]
        sentence = f"the boot ended from one moment to the next, as in a power cut or a reset; last line: {line}"
        return Evidence(Stage.USERSPACE, Cause.NONE, sentence)
    if signs.tries_done == 0:
        return Evidence(Stage.LOADER, Cause.NONE, "the loader never started it")
    tries = "its tries" if signs.tries_done is None else f"{signs.tries_done} tries"
    if signs.tries_done == 1:
        tries = "its one try"
    sentence = f"{tries} left no trace: neither a journal, nor a panic dump, nor a watchdog's reset"
    return Evidence(Stage.UNKNOWN, Cause.NONE, sentence)


def _panic_of(dump: Dump) -> str:
    match = _PANIC.search(dump.text)
    if match is None:
        return ""
    words = [match[1].strip()]
    if words[0].startswith(_SAYS_LITTLE):
        before = dump.text[: match.start()]
        words += [found[-1].strip() for of in (_OOPS, _PLACE) if (found := of.findall(before))]
    return ", ".join(words)[:_REASON_CHARS]


def _stage_of(text: str, *, reached_userspace: bool) -> Stage:
    """Return how far the boot had come by the last kilobytes of its kernel's log.

    systemd writes there only until its journal runs, so that a late panic may hold no word of it.
    """
    if _IN_USERSPACE.search(text):
        return Stage.USERSPACE
    if _IN_INITRD.search(text):
        return Stage.INITRD
    return Stage.USERSPACE if reached_userspace or "Attempted to kill init" in text else Stage.KERNEL
