"""Evidence on a failed trial: gathered by the trial itself when it is condemned, and by the release that boots next."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

from rollback.baseline import pstore_names
from rollback.bootlog import BootLogs
from rollback.classify import Signs, classify
from rollback.evidence_store import EvidenceStore
from rollback.execute import execute
from rollback.pstore import read_dumps
from rollback.results import Result
from rollback.verdict import Verdict
from updater.files import Directory
from updater.health_plugin import Cause, Evidence, FailedTrial, Stage, Trial
from updater.schema import encode_json

log = logging.getLogger(__name__)

# The last boots of a trial tell the most; a try more or less says the same again.
MAX_BOOTS = 3

# linux/watchdog.h: the last reboot was this card's doing.
_WDIOF_CARDRESET = 0x20


def collect_evidence(
    failed: FailedTrial, state: Directory, *, limit_bytes: int, root: Path = Path("/"), budget_s: float = 45.0
) -> Evidence:
    """Look for what ended a trial, keep the files that tell, and judge; never fails, takes `budget_s` at most.

    Meant for the first boot after the trial: a watchdog remembers only the last reset.
    """
    logs = BootLogs(budget_s)
    boots = logs.boots_of(
        failed.root_hash, after=failed.armed_boot_id, before=failed.boot_id, known=failed.trial_boots
    )[-MAX_BOOTS:]
    dumps = read_dumps(root, pstore_names(failed.baseline))
    signs = Signs(
        verdict=failed.verdict,
        damaged_uki=failed.damaged_uki,
        damaged_slot=failed.damaged_slot,
        dumps=tuple(dumps),
        boots=tuple(logs.signs_of(boot) for boot in boots),
        watchdog=watchdog_has_reset(root),
        tries_done=failed.tries_done,
    )
    evidence = classify(signs)
    files = {"evidence.json": _summary(failed, signs, evidence)}
    for number, dump in enumerate(dumps[-MAX_BOOTS:], start=1):
        files[f"panic-{number}.txt"] = dump.text.encode("utf-8", "replace")
    for number, boot in enumerate(boots, start=1):
        files[f"journal-{number}.txt"] = logs.text_of(boot)
        files[f"kernel-{number}.txt"] = logs.text_of(boot, kernel_only=True)
    return _kept(evidence, EvidenceStore(state, limit_bytes), failed.release, files)


def evidence_of_verdict(
    trial: Trial,
    verdict: Verdict,
    results: Iterable[Result],
    state: Directory,
    *,
    limit_bytes: int,
    budget_s: float = 20.0,
) -> Evidence:
    """Turn a verdict into evidence before the reboot: the checks' results, and this boot's journal."""
    results = tuple(results)
    cause = Cause.CHECK if verdict.checks else Cause.DEADLINE
    evidence = Evidence(Stage.HEALTH, cause, verdict.sentence, verdict.checks)
    try:
        # What the reboot would lose: journald writes to the disk minutes later.
        execute(["journalctl", "--sync"], timeout_s=min(10.0, budget_s))
    except OSError as error:
        log.warning("the journal could not be flushed: %s", error)
    files = {
        "health.json": encode_json(
            {
                "release": trial.release,
                "try": trial.try_number,
                "decision": verdict.decision.value,
                "reason": verdict.reason,
                "sentence": verdict.sentence,
                "checks": list(verdict.checks),
                "results": [result.as_json() for result in results],
            }
        ),
        "journal-verdict.txt": BootLogs(budget_s).text_of("0"),
    }
    return _kept(evidence, EvidenceStore(state, limit_bytes), trial.release, files)


def watchdog_has_reset(root: Path) -> bool:
    """Tell whether a watchdog says that it reset the machine into this boot."""
    for path in sorted((root / "sys/class/watchdog").glob("*/bootstatus")):
        try:
            if int(path.read_text().strip() or "0", 0) & _WDIOF_CARDRESET:
                return True
        except (OSError, ValueError):
            continue
    return False


def _kept(evidence: Evidence, store: EvidenceStore, release: str, files: dict[str, bytes]) -> Evidence:
    kept = store.save(release, files, evidence.folder)
    if not kept:
        return evidence
    folder = kept[0].rpartition("/")[0]
    return dataclasses.replace(evidence, folder=folder, files=tuple(sorted({*evidence.files, *kept})))


def _summary(failed: FailedTrial, signs: Signs, evidence: Evidence) -> bytes:
    return encode_json(
        {
            "release": failed.release,
            "root_hash": failed.root_hash,
            "stage": evidence.stage.value,
            "cause": evidence.cause.value,
            "sentence": evidence.sentence,
            "checks": list(evidence.checks),
            "tries_done": signs.tries_done,
            "watchdog_reset": signs.watchdog,
            "panic_dumps": [name for dump in signs.dumps for name in dump.files],
            "boots": [dataclasses.asdict(boot) for boot in signs.boots],
            "armed_boot_id": failed.armed_boot_id,
            "boot_id": failed.boot_id,
        }
    )
