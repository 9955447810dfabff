"""Where a machine stands in the life of an update, decided from what was observed."""

from __future__ import annotations

from enum import Enum

from updater.facts import Facts
from updater.records import Update
from updater.slots import Slot


class Situation(Enum):
    """The states of docs/state-machine.md."""

    IDLE = "idle"
    STAGING = "staging"
    STAGED = "staged"
    ARMED = "armed"
    TRIAL = "trial"
    COMMITTING = "committing"
    FELL_BACK = "fell-back"
    REVERTING = "reverting"
    REVERTED = "reverted"
    ROTTED = "rotted"
    UNPROVEN = "unproven"


# The edges of the state machine: (from, what happens, to). docs/state-machine.md draws them; a test compares.
EDGES: frozenset[tuple[Situation, str, Situation]] = frozenset(
    {
        (Situation.IDLE, "stage", Situation.STAGING),
        (Situation.STAGING, "stage", Situation.STAGED),
        (Situation.STAGING, "cancel", Situation.IDLE),
        (Situation.STAGED, "stage", Situation.STAGING),
        (Situation.STAGED, "cancel", Situation.IDLE),
        (Situation.STAGED, "finalize", Situation.ARMED),
        (Situation.ARMED, "cancel", Situation.IDLE),
        (Situation.ARMED, "reboot", Situation.TRIAL),
        (Situation.TRIAL, "commit", Situation.COMMITTING),
        (Situation.COMMITTING, "recover", Situation.IDLE),
        (Situation.COMMITTING, "roll back", Situation.FELL_BACK),
        (Situation.TRIAL, "roll back", Situation.FELL_BACK),
        (Situation.TRIAL, "reboot", Situation.TRIAL),
        (Situation.TRIAL, "tries used up", Situation.FELL_BACK),
        (Situation.FELL_BACK, "recover", Situation.IDLE),
        (Situation.IDLE, "rollback", Situation.REVERTING),
        (Situation.REVERTING, "reboot", Situation.REVERTED),
        (Situation.REVERTING, "cancel", Situation.IDLE),
        (Situation.REVERTED, "recover", Situation.IDLE),
        (Situation.IDLE, "tries used up", Situation.ROTTED),
        (Situation.ROTTED, "recover", Situation.IDLE),
        (Situation.UNPROVEN, "adopt", Situation.IDLE),
    }
)


def decide(facts: Facts) -> Situation:
    """Return where the machine stands: the disk and the loader decide, the journal only says what was meant."""
    update = facts.journal.update
    phase = facts.journal.phase
    if update is not None and phase != "idle" and not stage_ended(facts):
        if phase == "reverting":
            return Situation.REVERTED if facts.running.slot is update.slot else Situation.REVERTING
        if phase == "staging":
            return Situation.STAGING
        if phase == "staged":
            return Situation.STAGED
        return _after_arming(facts, update)
    return _without_update(facts)


def stage_ended(facts: Facts) -> bool:
    """Tell whether the slot that the journal wants to fill runs: its old release booted before it was taken away."""
    update = facts.journal.update
    return facts.journal.phase in ("staging", "staged") and update is not None and facts.running.slot is update.slot


def trial_is_bootable(facts: Facts, slot: Slot) -> bool:
    """Tell whether the loader still has a try of `slot` left (or a good entry)."""
    return any(not entry.is_bad for entry in facts.boot.entries_of(slot))


def running_is_proven(facts: Facts) -> bool:
    """Tell whether the running slot holds the release that the ledger has proven there."""
    proven = facts.ledger.proven_in(facts.running.slot)
    return proven is not None and proven.release.root.root_hash == facts.running.root_hash


def is_blessed(facts: Facts, update: Update) -> bool:
    """Tell whether somebody else has called the trial good, and no verdict of ours speaks against it."""
    return facts.live and facts.boot.blessed is update.slot and update.verdict is None


def _after_arming(facts: Facts, update: Update) -> Situation:
    runs_it = facts.running.slot is update.slot and facts.running.root_hash == update.release.root.root_hash
    if update.verdict is not None and update.verdict.decision == "commit" and (runs_it or not facts.live):
        return Situation.COMMITTING
    if runs_it and is_blessed(facts, update):
        return Situation.COMMITTING
    if not facts.live:
        # What the loader would boot is all that a disk image can tell; its next real boot is the trial.
        return Situation.ARMED if trial_is_bootable(facts, update.slot) else Situation.FELL_BACK
    if runs_it:
        return Situation.TRIAL
    if trial_is_bootable(facts, update.slot):
        return Situation.ARMED
    if update.armed is None and not facts.boot.entries_of(update.slot):
        # The cut came after the intent was recorded and before an entry was published.
        return Situation.STAGED
    return Situation.FELL_BACK


def _without_update(facts: Facts) -> Situation:
    armed = facts.ledger.armed
    if armed is not None:
        # The journal was lost while a trial was on: the ESP's copy of the ledger still knows.
        if armed.release.root.root_hash == facts.running.root_hash and facts.live:
            return Situation.TRIAL
        return Situation.ARMED if trial_is_bootable(facts, armed.slot) else Situation.FELL_BACK
    if not running_is_proven(facts):
        return Situation.UNPROVEN
    other = facts.running.slot.other
    entries = facts.boot.entries_of(other)
    if facts.ledger.proven_in(other) is not None and entries and all(entry.is_bad for entry in entries):
        return Situation.ROTTED
    return Situation.IDLE
