"""Recover at every start: look at the disk, finish what was begun, put on record what ended."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

import msgspec

from updater.errors import EnvironmentFailure
from updater.facts import Facts
from updater.health_plugin import Cause, Evidence, FailedTrial, HealthPlugin, Stage
from updater.records import Aftermath, Journal, Ledger, Proven, Quarantined, ReleaseRecord, Update, VerdictRecord
from updater.situation import Situation, decide, stage_ended
from updater.slots import Slot
from updater.steps.commit import finish_commit, trial_update
from updater.steps.proofs import prove_boot_files, prove_image
from updater.steps.session import Session
from updater.store import utc_text

log = logging.getLogger(__name__)

LONGEST_RETRY_S = 7 * 86_400


def recover(session: Session, health: HealthPlugin | None) -> Situation:
    """Finish what was begun before; return where the machine stands then. Safe to repeat, and to cut at any point."""
    facts = session.facts()
    if facts.ledger_lost and not session.store.set_aside:
        log.warning("no ledger was found, neither on the state partition nor on the ESP")
    _complete_table(session, facts)
    for _ in range(len(Situation)):
        situation = decide(facts)
        if not _act(session, facts, situation, health):
            return situation
        facts = session.facts()
    return decide(facts)


def _complete_table(session: Session, facts: Facts) -> None:
    """Complete a write of the partition table that the journal says was ours; any other is left to an operator."""
    writes = session.node.layout.boot.backend == "gpt-priority" or facts.journal.phase == "staging"
    if facts.gpt_problem and writes and facts.journal.phase != "idle" and session.node.mend_gpt():
        log.warning("a half-written partition table was completed")


def _act(session: Session, facts: Facts, situation: Situation, health: HealthPlugin | None) -> bool:
    """Do what the situation asks for; tell whether it may have changed."""
    update = trial_update(facts)
    if situation is Situation.STAGED and facts.journal.phase == "armed" and facts.journal.update is not None:
        # The cut came between the intent to arm and the boot entry, or in the middle of a cancel.
        session.store.write_ledger(msgspec.structs.replace(facts.ledger, armed=None))
        phase = "staged" if _boot_files_are_whole(session, facts.journal.update) else "staging"
        session.store.write_journal(msgspec.structs.replace(facts.journal, phase=phase))
        return True
    if (
        situation is Situation.ARMED
        and update is not None
        and update.armed is None
        and facts.journal.update is not None
    ):
        told = msgspec.structs.replace(update, armed=session.stamp())
        session.store.write_journal(msgspec.structs.replace(facts.journal, update=told))
        return True
    if situation is Situation.TRIAL and update is not None:
        return _note_trial_boot(session, facts, update)
    if situation is Situation.COMMITTING and update is not None:
        return _finished_commit(session, facts, update)
    if situation is Situation.FELL_BACK and update is not None and facts.live:
        _end_of_trial(session, facts, update, health)
        return True
    if situation is Situation.REVERTED and facts.journal.update is not None:
        _end_of_revert(session, facts, facts.journal.update)
        return True
    if situation is Situation.REVERTING and facts.live and facts.journal.update is not None:
        return _revert_that_did_not_boot(session, facts, facts.journal.update)
    if situation is Situation.ROTTED and facts.live:
        _end_of_rot(session, facts, health)
        return True
    if stage_ended(facts):
        session.store.write_journal(Journal(healthy_boot_id=facts.journal.healthy_boot_id))
        return True
    if situation is Situation.IDLE and facts.live and _bears_a_failed_entry(facts, facts.running.slot.other):
        # A cut came between the quarantine and the removal of what was quarantined.
        session.node.boot.withdraw(facts.running.slot.other)
        return True
    return False


def _bears_a_failed_entry(facts: Facts, slot: Slot) -> bool:
    """Tell whether a slot that holds nothing proven still has its entry without tries, beside a good one."""
    entries = facts.boot.entries_of(slot)
    good = any(not entry.is_bad for entry in facts.boot.entries_of(slot.other))
    return facts.ledger.proven_in(slot) is None and bool(entries) and all(e.is_bad for e in entries) and good


def _boot_files_are_whole(session: Session, update: Update) -> bool:
    try:
        prove_boot_files(session, update.slot, update.release)
    except EnvironmentFailure:
        return False
    return True


def _finished_commit(session: Session, facts: Facts, update: Update) -> bool:
    """Finish a commit; what cannot be written now is left to the health service, which has until its deadline."""
    try:
        finish_commit(session, facts, update)
    except EnvironmentFailure as error:
        log.error("the commit of release %s cannot be finished yet: %s", update.release.version, error)
        return False
    return True


def _note_trial_boot(session: Session, facts: Facts, update: Update) -> bool:
    if facts.boot_id in update.trial_boots:
        return False
    told = msgspec.structs.replace(update, trial_boots=[*update.trial_boots, facts.boot_id])
    phase = facts.journal.phase if facts.journal.phase != "idle" else "armed"
    try:
        session.store.write_journal(msgspec.structs.replace(facts.journal, phase=phase, update=told))
    except EnvironmentFailure as error:
        log.error("the trial boot could not be noted: %s", error)
        return False
    entry = next((e for e in facts.boot.order if e.slot is update.slot), None)
    left = f", {entry.tries_left} more tries are left" if entry and entry.tries_left is not None else ""
    session.record(
        "trial-boot",
        f"try {len(told.trial_boots)} of release {update.release.version} in slot {update.slot}{left}",
        release=update.release,
        slot=update.slot,
    )
    return True


def _end_of_trial(session: Session, facts: Facts, update: Update, health: HealthPlugin | None) -> None:
    """Judge a trial that the loader or a verdict ended, quarantine the image if anything points at it."""
    end = _judge(session, facts, update, health)
    release = update.release
    ledger = session.store.ledger() or facts.ledger
    quarantined = _quarantine(ledger, release, end, session)
    session.store.write_ledger(
        msgspec.structs.replace(ledger.without_proven(update.slot).with_quarantined(quarantined), armed=None)
    )
    session.node.boot.withdraw(update.slot)
    aftermath = Aftermath(release.version, release.root.root_hash, list(end.checks)) if end.checks else None
    session.store.write_journal(Journal(aftermath=aftermath))
    session.record(
        "rolled-back",
        f"release {release.version} was tried in slot {update.slot} and is rolled back to release "
        f"{facts.running.version}: {end.sentence}"
        + ("" if quarantined.until is None else f"; it may be tried again from {quarantined.until} on"),
        release=release,
        slot=update.slot,
        reason=end.cause,
        evidence=end.folder,
    )


def _judge(session: Session, facts: Facts, update: Update, health: HealthPlugin | None) -> Evidence:
    # A verdict to commit that could never be written says nothing about what ended the trial.
    against = condemned(update)
    verdict = _as_evidence(against) if against is not None else None
    # A verdict says why already. Without one the slot is read whole: a disk that lost bytes is not the image's fault.
    damaged_uki, damaged_slot = _damage(session, update.slot, update.release) if verdict is None else ("", "")
    if health is None:
        nothing = Evidence(Stage.UNKNOWN, Cause.NONE, "the trial ended without a verdict; nothing says why")
        return verdict or _with_doubt(nothing, facts, update)
    entry = next(iter(facts.boot.entries_of(update.slot)), None)
    failed = FailedTrial(
        release=update.release.version,
        root_hash=update.release.root.root_hash,
        boot_id=facts.boot_id,
        armed_boot_id=update.armed_boot_id,
        trial_boots=tuple(update.trial_boots),
        tries_done=entry.tries_done if entry else None,
        baseline=update.baseline,
        verdict=verdict,
        damaged_uki=damaged_uki,
        damaged_slot=damaged_slot,
    )
    found = health.collect_evidence(failed, session.node.state, limit_bytes=session.node.config.evidence_bytes)
    return _with_doubt(found, facts, update)


def _with_doubt(evidence: Evidence, facts: Facts, update: Update) -> Evidence:
    """Add why a try that left no trace may never have begun: by the loader's back end, or for want of an entry."""
    if evidence.cause is not Cause.NONE or update.trial_boots:
        return evidence
    gone = "" if facts.boot.entries_of(update.slot) else f"the loader lists no entry of slot {update.slot}"
    doubt = facts.boot.doubt or gone
    return replace(evidence, sentence=f"{evidence.sentence}; {doubt}") if doubt else evidence


def condemned(update: Update) -> VerdictRecord | None:
    """Return the verdict to roll back that is on record for a trial, if there is one."""
    verdict = update.verdict
    return verdict if verdict is not None and verdict.decision == "roll-back" else None


def _as_evidence(verdict: VerdictRecord) -> Evidence:
    return Evidence(
        Stage(verdict.stage), Cause(verdict.cause), verdict.sentence, tuple(verdict.checks), verdict.evidence
    )


def blames_the_image(evidence: Evidence) -> bool:
    """Tell whether the image failed: a disk that lost what was proven on it says nothing against the image."""
    return evidence.points_at_release and evidence.cause not in (Cause.DAMAGED_SLOT, Cause.DAMAGED_UKI)


def _damage(session: Session, slot: Slot, release: ReleaseRecord) -> tuple[str, str]:
    """Return what no longer matches its hashes, of the boot files and of the image; empty where all does."""
    boot_files = image = ""
    try:
        prove_boot_files(session, slot, release)
    except EnvironmentFailure as error:
        boot_files = error.message
    try:
        prove_image(session, slot, release)
    except EnvironmentFailure as error:
        image = error.message
    return boot_files, image


def _quarantine(ledger: Ledger, release: ReleaseRecord, end: Evidence, session: Session) -> Quarantined:
    before = ledger.quarantined(release.root.root_hash)
    rounds = before.rounds + 1 if before else 1
    until = None
    if not blames_the_image(end):
        delay_s = min(session.node.config.retry_after_s * 2 ** min(rounds - 1, 20), LONGEST_RETRY_S)
        until = utc_text(session.now() + timedelta(seconds=delay_s))
    return Quarantined(
        version=release.version,
        root_hash=release.root.root_hash,
        stage=end.stage,
        cause=end.cause,
        sentence=end.sentence,
        at=session.stamp(),
        until=until,
        rounds=rounds,
        checks=list(end.checks),
        evidence=end.folder,
    )


def _end_of_revert(session: Session, facts: Facts, update: Update) -> None:
    session.store.write_journal(Journal())
    session.record(
        "reverted",
        f"release {update.release.version} in slot {update.slot} runs again instead of {update.from_version}, "
        "as an operator asked",
        release=update.release,
        slot=update.slot,
        reason="operator",
    )


def _revert_that_did_not_boot(session: Session, facts: Facts, update: Update) -> bool:
    """A boot has passed since the roll back was asked for, and the old release still runs."""
    if facts.boot_id == update.armed_boot_id:
        return False
    session.node.boot.prefer(facts.running.slot, facts.running.version)
    session.store.write_ledger(facts.ledger.without_quarantined(facts.running.root_hash))
    session.store.write_journal(Journal())
    session.record(
        "revert-failed",
        f"release {update.release.version} in slot {update.slot} did not boot, release {facts.running.version} stays",
        release=update.release,
        slot=update.slot,
    )
    return True


def _end_of_rot(session: Session, facts: Facts, health: HealthPlugin | None) -> None:
    """A committed release used up its tries boot after boot: the older proven one runs, and becomes the default."""
    slot = facts.running.slot.other
    proven = facts.ledger.proven_in(slot)
    assert proven is not None
    update = _as_update(proven, facts)
    end = _judge(session, facts, update, health)
    session.node.boot.settle(facts.running.slot)
    session.store.write_ledger(
        facts.ledger.without_proven(slot).with_quarantined(_quarantine(facts.ledger, proven.release, end, session))
    )
    session.node.boot.withdraw(slot)
    session.record(
        "rotted",
        f"release {proven.release.version} in slot {slot} was committed, but failed to become healthy at each of its "
        f"last boots: {end.sentence}; release {facts.running.version} is the default again",
        release=proven.release,
        slot=slot,
        reason=end.cause,
        evidence=end.folder,
    )


def _as_update(proven: Proven, facts: Facts) -> Update:
    return Update(
        id="rot",
        release=proven.release,
        slot=proven.slot,
        from_version=facts.running.version,
        from_slot=facts.running.slot,
        started=proven.at,
        armed=proven.at,
    )
