"""What a scenario expects, held against what was seen."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from integration.lab import node
from integration.lab.patience import Patience
from integration.lab.recovery_time import downtime_s
from integration.lab.run import Run
from integration.lab.scenario import Expect, SeenBoot
from integration.lab.timeline import Boot
from updater.errors import EnvironmentFailure

_EVIDENCE = "find /var/lib/acl-updater/evidence -type f -exec head -c 200000 {} + 2>/dev/null"

# A commit writes, flushes and removes; an emulated node on a busy host takes seconds for it.
_ENTRIES_CHANGE_S = 30.0


def expect(wanted: Expect, run: Run) -> None:
    """Check everything that an `expect` step lists; raise Failed at the first that does not hold."""
    _expect_from_outside(wanted, run)
    asked = (wanted.situation, wanted.phase, wanted.quarantine, wanted.put_off, wanted.says, wanted.reason)
    if any(item is not None for item in asked):
        _expect_status(wanted, run)
    if wanted.history is not None:
        _find(run, "history", wanted.history, _ask(run, "history").text)
    if wanted.explain is not None:
        _find(run, "explain", wanted.explain, _ask(run, "explain").text)
    if wanted.evidence is not None:
        _find(run, "evidence", wanted.evidence, run.machine.guest("sh", "-c", _EVIDENCE).stdout)


def _expect_from_outside(wanted: Expect, run: Run) -> None:
    boots = run.machine.boots
    if wanted.boots is not None:
        seen = boots[run.boots_expected :]
        run.boots_expected = len(boots)
        versions = {number: known.version for number, known in run.stock.releases.items()}
        ok = len(seen) == len(wanted.boots) and all(
            boot_matches(pattern, boot, versions) for pattern, boot in zip(wanted.boots, seen, strict=False)
        )
        run.check(
            "boots", [_pattern_words(one, versions) for one in wanted.boots], [_boot_words(one) for one in seen], ok
        )
    if wanted.boots_at_most is not None:
        run.check("boots at most", wanted.boots_at_most, len(boots), len(boots) <= wanted.boots_at_most)
    if wanted.downtime_s is not None:
        _expect_downtime(wanted.downtime_s, run)
    last = boots[-1] if boots else None
    if wanted.slot is not None:
        slot = last.slot if last else None
        run.check("slot that booted", wanted.slot, slot, wanted.slot == slot)
    if wanted.release is not None:
        version, release = run.version(wanted.release), last.release if last else None
        run.check("release that booted", version, release, version == release)
    if wanted.loader is not None:
        found = _loader_order(run, wanted.loader)
        run.check("loader order", wanted.loader, found, _listed(found, wanted.loader))
    for slot, number in (wanted.holds or {}).items():
        head = run.stock.release(number).root_hash[:32]
        found_head = next((uuid for uuid, name in run.disk.look().slots.items() if name == slot), "nothing")
        run.check(f"slot {slot} holds", head, found_head, head == found_head)
    for slot in wanted.unchanged or []:
        before, after = run.digests[slot], run.disk.slot_digest(slot)
        run.check(f"slot {slot} unchanged", before[:16], after[:16], before == after)


def _expect_downtime(most_s: float, run: Run) -> None:
    down_s, limit_s = downtime_s(run.machine.boots), most_s * run.slowest()
    found = "not up" if down_s is None else f"{down_s:.0f} s"
    words = f"{limit_s:.0f} s ({most_s:g} of a quiet machine)"
    run.check("downtime at most", words, found, down_s is not None and down_s <= limit_s)


def _expect_status(wanted: Expect, run: Run) -> None:
    done = _ask(run, "status")
    status = node.Status(done.document)
    run.observer.note("status", "; ".join([status.situation or "none", *status.told]))
    words = (("situation", wanted.situation, status.situation), ("phase", wanted.phase, status.phase))
    for what, text, said in words:
        if text is not None:
            run.check(what, text, said or done.text.strip()[-300:], text == said)
    lists = (("quarantine", wanted.quarantine, status.quarantine), ("put off", wanted.put_off, status.put_off))
    for what, numbers, found in lists:
        if numbers is not None:
            versions = sorted(run.version(number) for number in numbers)
            run.check(what, versions, found, versions == found)
    if wanted.says is not None:
        _find(run, "status says", wanted.says, done.text)
    if wanted.reason is not None:
        pattern = re.compile(wanted.reason)
        run.check("reason", wanted.reason, status.reasons, any(pattern.search(text) for text in status.reasons))


def boot_matches(pattern: SeenBoot, boot: Boot, versions: dict[int, str]) -> bool:
    """Tell whether a boot is as a scenario says."""
    return (
        (pattern.slot is None or pattern.slot == boot.slot)
        and (pattern.release is None or versions.get(pattern.release) == boot.release)
        and (pattern.outcome is None or pattern.outcome is boot.outcome)
        and (pattern.entry is None or (boot.entry is not None and fnmatch.fnmatchcase(boot.entry, pattern.entry)))
        and (pattern.detail is None or re.search(pattern.detail, boot.detail) is not None)
    )


def _loader_order(run: Run, wanted: Sequence[str]) -> list[str]:
    """Return what the loader would list; a node that runs is given time: a commit goes from one name to the next."""
    patience = Patience(_ENTRIES_CHANGE_S)
    while True:
        last = not run.machine.is_on or patience.is_over
        try:
            found = run.disk.loader_order()
        except (ValueError, EnvironmentFailure):
            # The folder is being rewritten at this moment.
            if last:
                raise
        else:
            if last or _listed(found, wanted):
                return found
        run.machine.pause(0.2)


def _listed(found: Sequence[str], wanted: Sequence[str]) -> bool:
    return len(found) == len(wanted) and all(map(fnmatch.fnmatchcase, found, wanted))


def _ask(run: Run, words: str) -> node.Did:
    if run.machine.is_on:
        return node.in_guest(run.machine, words, budget_s=90)
    return node.offline(run.disk.path, words, config=run.offline_config(), variables=run.disk.variables, timeout_s=120)


def _find(run: Run, what: str, pattern: str, text: str) -> None:
    run.check(what, pattern, text.strip()[-600:], re.search(pattern, text) is not None)


def _boot_words(boot: Boot) -> str:
    return f"{boot.slot or '-'}/{boot.release or '-'} {boot.outcome.value}"


def _pattern_words(pattern: SeenBoot, versions: dict[int, str]) -> str:
    release = versions.get(pattern.release, "?") if pattern.release else "*"
    return f"{pattern.slot or '*'}/{release} {pattern.outcome.value if pattern.outcome else '*'}"
