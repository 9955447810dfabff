"""The engine as the health service sees it, on trial boots and on all others."""

from __future__ import annotations

import contextlib
import logging
from typing import Literal

import msgspec

from updater.config import Health
from updater.errors import EnvironmentFailure, UpdaterError
from updater.files import Directory
from updater.health_plugin import Aftermath, Evidence, Trial
from updater.records import VerdictRecord
from updater.situation import Situation, decide, is_blessed
from updater.steps.commit import commit, finish_commit, healthy_boot, trial_update
from updater.steps.recover import condemned
from updater.steps.roll_back import end_trial
from updater.steps.session import Session

log = logging.getLogger(__name__)

# Another updater holds the lock for as long as it stages; the health service asks again after this.
_PATIENCE_S = 20.0


class TrialEngine:
    """A `health_plugin.HealthEngine` on one machine; every act takes the node's lock and may be repeated."""

    def __init__(self, session: Session) -> None:
        """Work on one session."""
        self._session = session

    @property
    def settings(self) -> Health:
        """Return how a trial is judged."""
        return self._session.node.config.health

    @property
    def state(self) -> Directory:
        """Return the updater's state folder."""
        return self._session.node.state

    @property
    def evidence_bytes(self) -> int:
        """Return how much evidence may be kept."""
        return self._session.node.config.evidence_bytes

    def trial(self) -> Trial | None:
        """Return the trial that this boot is, None on any other boot.

        A trial whose verdict was to roll back, but which boots again because its entry could not be written, is
        rolled back at once. One whose commit could not be written yet is a trial still: nothing else would try again
        in this boot.
        """
        facts = self._session.facts()
        update = trial_update(facts)
        situation = decide(facts)
        if update is not None and situation is Situation.COMMITTING and is_blessed(facts, update):
            with self._session.node.lock(wait_s=_PATIENCE_S):
                finish_commit(self._session, facts, update)
            return None
        if situation not in (Situation.TRIAL, Situation.COMMITTING) or update is None:
            return None
        verdict = condemned(update)
        if verdict is not None:
            self._end(verdict)
        return Trial(
            release=update.release.version,
            root_hash=update.release.root.root_hash,
            slot=update.slot,
            try_number=max(1, len(update.trial_boots)),
            tries=update.tries,
            baseline=update.baseline,
        )

    def commit(self, reason: str, sentence: str) -> None:
        """Make the release on trial the default."""
        with self._session.node.lock(wait_s=_PATIENCE_S):
            commit(self._session, reason=reason, sentence=sentence)

    def roll_back(self, reason: str, sentence: str, evidence: Evidence) -> None:
        """Record the verdict, condemn the entry, ask for a reboot, even if nothing is writable."""
        verdict = VerdictRecord(
            "roll-back",
            reason,
            sentence,
            self._session.stamp(),
            self._session.node.boot_id(),
            checks=list(evidence.checks),
            stage=evidence.stage.value,
            cause=evidence.cause.value,
            evidence=evidence.folder,
        )
        self._end(verdict)

    def healthy_boot(self) -> None:
        """Renew the protection of the running, committed release."""
        with self._session.node.lock(wait_s=_PATIENCE_S):
            healthy_boot(self._session)

    def unhealthy_boot(self, sentence: str, checks: tuple[str, ...]) -> Literal["reboot", "stay"]:
        """Record that a proven release is unhealthy; reboot where the loader then comes nearer to the other one.

        That is so only where the running entry is counted: its tries run out, and the other, proven slot boots.
        """
        facts = self._session.facts()
        slot = facts.running.slot
        counted = any(entry.tries_left is not None for entry in facts.boot.entries_of(slot))
        other_boots = facts.ledger.proven_in(slot.other) is not None and any(
            not entry.is_bad for entry in facts.boot.entries_of(slot.other)
        )
        decision: Literal["reboot", "stay"] = "reboot" if counted and other_boots else "stay"
        self._session.record(
            "unhealthy",
            f"release {facts.running.version} is not healthy: {sentence}; "
            + ("it reboots for another try" if decision == "reboot" else "nothing else proven could boot, so it stays"),
            version=facts.running.version,
            slot=slot,
        )
        if decision == "reboot":
            self._session.node.reboot(f"release {facts.running.version} is not healthy: {sentence}")
        return decision

    def aftermath(self) -> Aftermath | None:
        """Return the rolled-back trial whose checks the old release has not run yet."""
        found = self._session.store.journal().aftermath
        return Aftermath(found.version, found.root_hash, tuple(found.checks)) if found is not None else None

    def clear_blame(self, aftermath: Aftermath, sentence: str) -> None:
        """Clear the image of blame: the old release fails the same checks, so it may be tried again at once."""
        with self._session.node.lock(wait_s=_PATIENCE_S):
            ledger = self._session.store.ledger()
            found = ledger.quarantined(aftermath.root_hash) if ledger else None
            if ledger is not None and found is not None:
                cleared = msgspec.structs.replace(
                    found,
                    cause="none",
                    until=self._session.stamp(),
                    sentence=f"{found.sentence}; cleared of blame: {sentence}",
                )
                self._session.store.write_ledger(ledger.with_quarantined(cleared))
            self._close(aftermath, "cleared", f"release {aftermath.release} is cleared of blame: {sentence}")

    def keep_blame(self, aftermath: Aftermath, sentence: str) -> None:
        """Close the aftermath: the old release passes checks that the image failed."""
        with self._session.node.lock(wait_s=_PATIENCE_S):
            self._close(aftermath, "blamed", f"release {aftermath.release} stays quarantined: {sentence}")

    def report(self, event: str, sentence: str, checks: tuple[str, ...]) -> None:
        """Write a line of history about health; a full disk is told in the log."""
        try:
            running = self._session.node.running()
            self._session.record(event, sentence, version=running.version, slot=running.slot)
        except EnvironmentFailure as error:
            log.error("%s: %s (not recorded: %s)", event, sentence, error)

    def _end(self, verdict: VerdictRecord) -> None:
        """End the trial whatever is broken: a lock that is never given, records that cannot be read or written."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._session.node.lock(wait_s=_PATIENCE_S))
            except UpdaterError as error:
                log.error("the trial is ended without the lock: %s", error)
            try:
                end_trial(self._session, verdict)
            except UpdaterError as error:
                log.error("the verdict could not be carried out, the loader's count ends the trial: %s", error)
                self._session.node.reboot(verdict.sentence)

    def _close(self, aftermath: Aftermath, event: str, sentence: str) -> None:
        journal = self._session.store.journal()
        self._session.store.write_journal(msgspec.structs.replace(journal, aftermath=None))
        self._session.record(event, sentence, version=aftermath.release)
