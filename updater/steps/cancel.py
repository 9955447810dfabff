"""Cancel an update that has not booted yet: the other slot's release is dropped."""

from __future__ import annotations

import msgspec

from updater.errors import NothingToDo, Refused
from updater.records import Journal
from updater.situation import Situation, decide
from updater.steps.session import Session
from updater.steps.stage import forget_partial


def cancel(session: Session, *, why: str = "an operator asked for it") -> str:
    """Take away what was staged or armed; return one sentence on what was dropped."""
    facts = session.facts()
    situation = decide(facts)
    update = facts.journal.update
    if situation is Situation.TRIAL:
        raise Refused(
            f"release {facts.running.version} is on trial and cannot be cancelled",
            mend="`acl-updater rollback` ends the trial now",
            reason="on-trial",
        )
    if situation not in (Situation.STAGING, Situation.STAGED, Situation.ARMED, Situation.REVERTING) or update is None:
        raise NothingToDo("no update is under way", reason="no-update")
    version, slot = update.release.version, update.slot
    if situation is Situation.REVERTING:
        # The running release sorts first again; the other one stays proven, and bootable by hand.
        session.node.boot.prefer(facts.running.slot, facts.running.version)
        ledger = facts.ledger.without_quarantined(facts.running.root_hash)
    else:
        session.node.boot.withdraw(slot)
        ledger = facts.ledger.without_proven(slot)
    session.store.write_ledger(msgspec.structs.replace(ledger, armed=None))
    session.store.write_journal(Journal(healthy_boot_id=facts.journal.healthy_boot_id))
    forget_partial(session.node)
    sentence = f"the update to release {version} was cancelled: {why}"
    session.record("cancelled", sentence, release=update.release, slot=slot)
    return sentence
