"""Commit a trial: the new release becomes the default."""

from __future__ import annotations

import msgspec

from updater.errors import Refused
from updater.facts import Facts
from updater.policy import floor_after_commit
from updater.records import Armed, Journal, Proven, Update, VerdictRecord
from updater.situation import Situation, decide, is_blessed, running_is_proven
from updater.steps.session import Session

BLESSED = "systemd-bless-boot, or somebody by hand, called this boot good before the health checks did"


def trial_update(facts: Facts) -> Update | None:
    """Return the update on trial, rebuilt from the ledger's ESP copy when the journal was lost."""
    update = facts.journal.update
    if update is not None and facts.journal.phase in ("armed", "committing", "rolling-back"):
        return update
    armed = facts.ledger.armed
    return _rebuilt(facts, armed) if armed is not None else None


def commit(session: Session, *, reason: str, sentence: str) -> None:
    """Make the release on trial the default; raise Refused when none is on trial."""
    facts = session.facts()
    situation = decide(facts)
    update = trial_update(facts)
    if situation not in (Situation.TRIAL, Situation.COMMITTING) or update is None:
        raise Refused(
            "no release is on trial, so there is nothing to commit",
            mend="see `acl-updater status`",
            reason="not-on-trial",
        )
    if update.verdict is not None and update.verdict.decision == "roll-back":
        # The reboot that was asked for may take a while: nothing may talk the trial back into life meanwhile.
        raise Refused(
            f"release {update.release.version} is being rolled back: {update.verdict.sentence}",
            mend="wait for the reboot",
            reason="rolling-back",
        )
    if situation is Situation.TRIAL:
        verdict = VerdictRecord("commit", reason, sentence, session.stamp(), facts.boot_id)
        update = msgspec.structs.replace(update, verdict=verdict)
        session.store.write_journal(Journal(phase="committing", update=update))
    finish_commit(session, facts, update)


def finish_commit(session: Session, facts: Facts, update: Update) -> None:
    """Carry out a commit whose verdict is on record, or that somebody else made; every part may run twice."""
    if update.verdict is None and is_blessed(facts, update):
        # Its bless is the commit: the loader would not fall back any more, and the records follow.
        verdict = VerdictRecord("commit", "blessed", BLESSED, session.stamp(), facts.boot_id)
        update = msgspec.structs.replace(update, verdict=verdict)
        session.store.write_journal(Journal(phase="committing", update=update))
    release, slot = update.release, update.slot
    ledger = session.store.ledger() or facts.ledger
    # Two proven releases exist from here on, so the running one's entry may be counted again: a release that rots
    # later still falls back.
    old_is_proven = ledger.proven_in(slot.other) is not None
    session.node.boot.commit(slot, tries=session.node.layout.boot.tries if old_is_proven else None)
    ledger = ledger.with_proven(Proven(slot, release, "committed", session.stamp()))
    ledger = ledger.without_quarantined(release.root.root_hash)
    ledger = msgspec.structs.replace(ledger, armed=None, floor=floor_after_commit(ledger.floor, release.security_epoch))
    session.store.write_ledger(ledger)
    session.store.write_journal(Journal(healthy_boot_id=facts.boot_id))
    why = update.verdict.sentence if update.verdict else "found running"
    session.record(
        "committed",
        f"release {release.version} in slot {slot} is the default now: {why}",
        release=release,
        slot=slot,
        reason=update.verdict.reason if update.verdict else "",
    )


def healthy_boot(session: Session) -> None:
    """Renew the protection of a committed release after a boot without complaint; adopt it if records were lost."""
    facts = session.facts()
    situation = decide(facts)
    if situation is Situation.UNPROVEN:
        from updater.steps.adopt import adopt

        adopt(session, facts)
        return
    if situation not in (Situation.IDLE, Situation.STAGING, Situation.STAGED) or not running_is_proven(facts):
        return
    slot = facts.running.slot
    guarded = situation is Situation.IDLE and facts.ledger.proven_in(slot.other) is not None
    if guarded and any(not entry.is_bad for entry in facts.boot.entries_of(slot.other)):
        session.node.boot.commit(slot, tries=session.node.layout.boot.tries)
    else:
        session.node.boot.settle(slot)


def _rebuilt(facts: Facts, armed: Armed) -> Update:
    fallback = facts.ledger.proven_in(armed.slot.other)
    return Update(
        id="rebuilt",
        release=armed.release,
        slot=armed.slot,
        from_version=fallback.release.version if fallback else "",
        from_slot=armed.slot.other,
        started="1970-01-01T00:00:00Z",
    )
