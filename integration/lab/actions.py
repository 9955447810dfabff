"""What each kind of step does."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection
from functools import singledispatch
from typing import Any

from integration.lab import node
from integration.lab.disk import Disk
from integration.lab.expectations import expect
from integration.lab.fat import FatReader
from integration.lab.machine import LabTimeout
from integration.lab.patience import Patience
from integration.lab.run import Run, merged
from integration.lab.scenario import Boot, Expect, InGuest, Offline, Updater, Wait
from integration.lab.serial import Mark
from integration.lab.terms import Condition
from integration.lab.timeline import Outcome
from updater.boot.entries import ENTRIES
from updater.errors import EnvironmentFailure

# A good release on a busy machine needs time, and no more than this to show that it holds.
_GOOD_HEALTH = {"health": {"deadline_s": 240, "hold_s": 3}}
# Nothing that waits for a reboot or a verdict.
_AT_REST = frozenset({"idle", "staging", "staged"})


@singledispatch
def perform(action: Any, run: Run) -> None:
    """Do one step; raise Failed when what it waits for does not come, an UpdaterError when the lab itself cannot."""
    raise TypeError(f"no step of the kind {type(action).__name__}")


@perform.register
def _(action: Boot, run: Run) -> None:
    first = len(run.machine.boots)
    run.give()
    run.machine.power_on()
    reach(run, action.until, action.timeout_s, first=first)


@perform.register
def _(action: Wait, run: Run) -> None:
    reach(run, action.until, action.timeout_s, first=max(0, len(run.machine.boots) - 1))


@perform.register
def _(action: Offline, run: Run) -> None:
    if run.machine.is_on:
        raise EnvironmentFailure("the machine is on", mend="add a step `power: down` before", reason="lab-scenario")
    run.server.mark()
    kill_when = action.kill_when and trigger_of(run, action.kill_when)
    done = node.offline(
        run.disk.path,
        action.run,
        config=run.offline_config(),
        timeout_s=action.timeout_s,
        variables=run.disk.variables,
        kill_when=kill_when or None,
    )
    run.observer.note(
        "updater",
        f"acl-updater --disk … {action.run}: "
        + (done.killed or f"exit {done.exit_code}. {done.sentence}".rstrip(". ")),
    )
    if action.kill_when is not None:
        if done.killed is None:
            raise EnvironmentFailure(
                f"`{action.run}` ended before {action.kill_when} could cut it: {done.text.strip()[-300:]}",
                mend="choose an earlier moment",
                reason="fault-not-injected",
            )
        run.power_went()
        return
    judge_call(run, done, action.exit, action.reason, action.output)


@perform.register
def _(action: InGuest, run: Run) -> None:
    patience = Patience(action.timeout_s)
    while True:
        ran = run.machine.guest("sh", "-c", action.run, budget_s=action.timeout_s)
        text = f"{ran.stdout}\n{ran.stderr}"
        exits = action.exit is None or ran.exit_code == action.exit
        prints = action.output is None or _finds(action.output, text)
        if (exits and prints) or not action.repeat or patience.is_over:
            break
        run.machine.pause(1.0)
    if action.exit is not None:
        found = f"{ran.exit_code} {ran.stderr[-300:]}".strip()
        run.check(f"exit code of `{action.run}`", action.exit, found, exits)
    if action.output is not None:
        run.check(f"output of `{action.run}`", action.output, text.strip()[-500:], prints)


@perform.register
def _(action: Updater, run: Run) -> None:
    if action.background:
        run.machine.guest_begin("acl-updater", "--json", *action.run.split(), budget_s=action.timeout_s)
        return
    done = node.in_guest(run.machine, action.run, budget_s=action.timeout_s)
    run.observer.note("updater", f"acl-updater {action.run}: exit {done.exit_code}. {done.sentence}".rstrip(". "))
    judge_call(run, done, action.exit, action.reason, action.output)


@perform.register
def _(action: Expect, run: Run) -> None:
    expect(action, run)


@perform.register
def _(action: str, run: Run) -> None:
    if action == "faults":
        run.faults.clear()
    elif action == "cut":
        run.machine.power_cut()
        run.power_went()
    elif action == "down":
        run.machine.power_off()
    elif action == "reboot":
        run.machine.reboot()
    else:
        run.give()
        run.machine.power_on()


@perform.register
def _(action: dict, run: Run) -> None:  # type: ignore[type-arg]
    run.config = merged(run.config, action)
    run.give()


@perform.register
def _(action: int, run: Run) -> None:
    """Prove that the node is as good as before: the next good update is armed, tried and committed."""
    if run.machine.is_on:
        run.machine.power_off()
    run.faults.clear()
    run.config = merged(run.config, _GOOD_HEALTH)
    perform(Offline(run=f"update --to {run.version(action)}"), run)
    perform(Boot(until=Condition(committed=action)), run)


def reach(run: Run, condition: Condition, budget_s: float, *, first: int) -> None:
    """Wait for a condition on boots from index `first` on; a wait in vain is an expectation that failed."""
    try:
        if condition.settled is not None:
            settle(run, {run.version(condition.settled)}, {"idle"}, budget_s)
        elif condition.standing is not None:
            settle(run, {run.version(number) for number in condition.standing}, _AT_REST, budget_s)
        else:
            run.machine.wait(ready_of(run, condition, first), str(condition), budget_s=budget_s)
    except LabTimeout as error:
        last = run.last_boot
        found = f"boot {last.n} of release {last.release} {last.outcome.value}" if last else "no boot"
        run.check(f"in {budget_s:g} s", str(condition), f"{found} ({error.message})", ok=False)
    run.check("reached", str(condition), str(condition), ok=True)


def settle(run: Run, versions: Collection[str], situations: Collection[str], budget_s: float) -> None:
    """Wait until one of these releases runs and its updater, asked in the guest, is in one of these situations."""
    patience = Patience(budget_s)
    said = "nothing"
    while not patience.is_over:
        boot = run.last_boot
        if boot is not None and boot.release in versions and run.machine.agent_is_up:
            try:
                done = node.in_guest(run.machine, "status", budget_s=60)
                said = node.Status(done.document).situation or done.text.strip()[-300:]
                if done.exit_code == 0 and said in situations:
                    return
            except LabTimeout as error:
                said = error.message
        elif not run.machine.is_on:
            said = "the machine is off"
        run.machine.pause(1.0)
    names = " or ".join(sorted(versions))
    raise LabTimeout(f"release {names} did not settle: {said}", mend="see its serial log", reason="lab-timeout")


def ready_of(run: Run, condition: Condition, first: int) -> Callable[[], bool]:
    """Return the predicate of a condition that can be seen from outside."""
    if condition.committed is not None:
        version = run.version(condition.committed)
        return lambda: any(b.release == version and b.outcome is Outcome.COMMITTED for b in run.machine.boots[first:])
    if condition.running is not None:
        version = run.version(condition.running)
        return lambda: any(
            boot.release == version and any(s.mark in (Mark.MULTI_USER, Mark.LOGIN) for s in boot.sightings)
            for boot in run.machine.boots[first:]
        )
    if condition.powered_off:
        return lambda: not run.machine.is_on
    if condition.boots is not None:
        wanted = first + condition.boots
        return lambda: len(run.machine.boots) > wanted or (len(run.machine.boots) == wanted and not run.machine.is_on)
    trigger = trigger_of(run, condition)
    return lambda: trigger() is not None


def trigger_of(run: Run, condition: Condition) -> Callable[[], str | None]:
    """Return a cheap look at the world that gives a reason once the condition holds."""
    if condition.serial is not None:
        pattern = re.compile(condition.serial)
        return lambda: f"the console showed {condition.serial!r}" if run.observer.console_shows(pattern) else None
    if condition.served_bytes is not None:
        wanted = condition.served_bytes
        return lambda: f"{run.server.bytes_since_mark} bytes served" if run.server.bytes_since_mark >= wanted else None
    if condition.stands is not None:
        enough = condition.stands
        return lambda: f"the processor has spun for {enough:g} s" if run.machine.strikes.stands_s >= enough else None
    if condition.entry is not None:
        # Looked at every few milliseconds: the partition table is read once.
        esp, pattern_of_name = run.disk.esp(), condition.entry
        return lambda: _entry_seen(run.disk, esp, pattern_of_name)
    return lambda: str(condition) if ready_of(run, condition, 0)() else None


def judge_call(run: Run, done: node.Did, code: int | None, reason: str | None, output: str | None) -> None:
    """Hold a call of `acl-updater` against what was expected of it."""
    words = f"`acl-updater {done.words}`"
    if code is not None:
        found = f"{done.exit_code} {done.text.strip()[-400:]}" if done.exit_code != code else str(code)
        run.check(f"exit code of {words}", code, found, done.exit_code == code)
    if reason is not None:
        run.check(f"reason of {words}", reason, done.reason or "none", done.reason == reason)
    if output is not None:
        run.check(f"output of {words}", output, done.text.strip()[-500:], _finds(output, done.text))


def _entry_seen(disk: Disk, esp: FatReader, pattern: str) -> str | None:
    try:
        has_files = disk.layout.boot.backend == "systemd-boot"
        if has_files and not any(fnmatch.fnmatchcase(name, pattern) for name in esp.names(ENTRIES)):
            return None
        # A name reaches the disk before its content does: only an entry that the loader lists is there.
        names = disk.loader_order()
    except (OSError, ValueError, EnvironmentFailure):
        # Half-written: the next look, two milliseconds later, may see it whole.
        return None
    found = any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return f"the loader would list {', '.join(names)}" if found else None


def _finds(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None
