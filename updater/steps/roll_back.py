"""Roll back: end a trial at once, or go back to the other slot's proven release on purpose."""

from __future__ import annotations

import logging
import uuid

import msgspec

from updater.errors import EnvironmentFailure, Refused
from updater.facts import Facts
from updater.policy import quarantine_sentence
from updater.records import Journal, Quarantined, Update, VerdictRecord
from updater.situation import Situation, decide
from updater.steps.commit import trial_update
from updater.steps.proofs import prove_boot_files, prove_image
from updater.steps.session import Session

log = logging.getLogger(__name__)


def end_trial(session: Session, verdict: VerdictRecord, *, reboot: bool = True) -> None:
    """Record the verdict, take all tries from the trial's entry, ask for a reboot.

    Neither a full state partition nor an unwritable ESP keeps the node on the failed release: the reboot comes in
    any case, and the loader's own count ends the trial.
    """
    facts = session.facts()
    update = trial_update(facts)
    if update is None:
        raise Refused("no release is on trial", mend="see `acl-updater status`", reason="not-on-trial")
    try:
        told = msgspec.structs.replace(update, verdict=verdict)
        session.store.write_journal(Journal(phase="rolling-back", update=told))
        session.record(
            "verdict",
            f"release {update.release.version} is rolled back: {verdict.sentence}",
            release=update.release,
            slot=update.slot,
            reason=verdict.reason,
            evidence=verdict.evidence,
        )
    except EnvironmentFailure as error:
        log.error("the verdict could not be recorded: %s", error)
    try:
        session.node.boot.condemn(update.slot)
    except EnvironmentFailure as error:
        log.error("the trial's boot entry could not be condemned, its tries will run out instead: %s", error)
    if reboot:
        session.node.reboot(f"release {update.release.version} is rolled back: {verdict.sentence}")


def revert(session: Session, *, why: str) -> Update:
    """Go back to the proven release in the other slot; the one that is left is quarantined.

    Raises Refused when the other slot holds nothing proven, or what is quarantined: who orders this twice must not land
    on the release that they left. Raises SlotDamaged when it does not verify.
    """
    facts = session.facts()
    _refuse_revert(facts)
    slot = facts.running.slot.other
    proven = facts.ledger.proven_in(slot)
    if proven is None:
        raise Refused(
            f"slot {slot} holds no proven release to roll back to",
            mend="install the release that you want: `acl-updater update --to VERSION`",
            reason="nothing-proven",
        )
    release = proven.release
    left = facts.ledger.quarantined(release.root.root_hash)
    if left is not None and left.until is None:
        raise Refused(
            f"the other slot holds no release to go back to: {quarantine_sentence(left)}",
            mend=f"if that is the one that you want: `acl-updater quarantine clear {release.version}`, then this again",
            reason="quarantined",
        )
    session.reporter.begin("prove-slot", f"read slot {slot} against the hashes of release {release.version}")
    prove_image(session, slot, release)
    prove_boot_files(session, slot, release)
    session.reporter.end("prove-slot", f"slot {slot} holds release {release.version}, whole")
    update = Update(
        id=str(uuid.uuid4()),
        release=release,
        slot=slot,
        from_version=facts.running.version,
        from_slot=facts.running.slot,
        started=session.stamp(),
        deliberate=True,
        armed_boot_id=facts.boot_id,
    )
    session.store.write_journal(Journal(phase="reverting", update=update))
    session.store.write_ledger(
        facts.ledger.with_quarantined(
            Quarantined(
                version=facts.running.version,
                root_hash=facts.running.root_hash,
                stage="operator",
                cause="operator",
                sentence=f"an operator rolled it back: {why}",
                at=session.stamp(),
            )
        )
    )
    session.node.boot.prefer(slot, release.version)
    session.record(
        "roll-back-asked",
        f"an operator rolls back from release {facts.running.version} to {release.version}: {why}",
        release=release,
        slot=slot,
        reason="operator",
    )
    return update


def _refuse_revert(facts: Facts) -> None:
    situation = decide(facts)
    if situation is Situation.IDLE:
        return
    if situation in (Situation.STAGING, Situation.STAGED, Situation.ARMED):
        raise Refused(
            "another release is being installed; the running one is untouched",
            mend="`acl-updater cancel` drops it",
            reason="update-under-way",
        )
    raise Refused(
        f"this node cannot be rolled back in the state {situation.value}",
        mend="see `acl-updater explain`",
        reason=situation.value,
    )
