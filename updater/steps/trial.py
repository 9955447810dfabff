"""What the health service asks of the engine, on trial boots and on all others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import msgspec

from updater.config import Health
from updater.records import Aftermath, Journal, VerdictRecord
from updater.situation import Situation, decide
from updater.slots import Slot
from updater.steps.commit import commit, healthy_boot, trial_update
from updater.steps.roll_back import end_trial
from updater.steps.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial boot that waits for its verdict."""

    release: str
    slot: Slot
    try_number: int
    baseline: dict[str, Any] | None
    settings: Health
    condemned: VerdictRecord | None


class TrialEngine:
    """Acts on verdicts; every method may be called again after a cut."""

    def __init__(self, session: Session) -> None:
        """Work on one session, under the node's lock for each act."""
        self._session = session

    def trial(self) -> Trial | None:
        """Return the trial that this boot is, None on any other boot."""
        facts = self._session.facts()
        update = trial_update(facts)
        if decide(facts) is not Situation.TRIAL or update is None:
            return None
        return Trial(
            release=update.release.version,
            slot=update.slot,
            try_number=max(1, len(update.trial_boots)),
            baseline=update.baseline,
            settings=self._session.node.config.health,
            condemned=update.verdict if update.verdict and update.verdict.decision == "roll-back" else None,
        )

    def commit(self, reason: str, sentence: str) -> None:
        """Make the release on trial the default."""
        with self._session.node.lock():
            commit(self._session, reason=reason, sentence=sentence)

    def roll_back(
        self, reason: str, sentence: str, *, checks: list[str], cause: str = "check", evidence: str | None = None
    ) -> None:
        """Record the verdict, end the trial, reboot."""
        verdict = VerdictRecord(
            "roll-back",
            reason,
            sentence,
            self._session.stamp(),
            self._session.node.boot_id(),
            checks=checks,
            cause=cause,
            evidence=evidence,
        )
        with self._session.node.lock():
            end_trial(self._session, verdict)

    def healthy_boot(self) -> None:
        """Renew the protection of the running, committed release."""
        with self._session.node.lock():
            healthy_boot(self._session)

    def unhealthy_boot(self, checks: list[str]) -> str:
        """Say what to do about an unhealthy boot that is no trial: `reboot` or `stay`.

        A reboot helps only where the running entry is counted, so that the loader ends up at the other, proven slot.
        """
        facts = self._session.facts()
        slot = facts.running.slot
        counted = any(entry.tries_left is not None for entry in facts.boot.entries_of(slot))
        other_boots = facts.ledger.proven_in(slot.other) is not None and any(
            not entry.is_bad for entry in facts.boot.entries_of(slot.other)
        )
        decision = "reboot" if counted and other_boots else "stay"
        self._session.record(
            "unhealthy",
            f"release {facts.running.version} did not become healthy ({', '.join(checks)}); "
            + (
                "it reboots for another try" if decision == "reboot" else "nothing proven is left to go to, so it stays"
            ),
            version=facts.running.version,
            slot=slot,
        )
        return decision

    def reboot(self, why: str) -> None:
        """Ask for a reboot."""
        self._session.node.reboot(why)

    def aftermath(self) -> Aftermath | None:
        """Return the rolled-back trial whose checks the old release has not run yet."""
        return self._session.store.journal().aftermath

    def close_aftermath(self, *, failing_here_too: list[str]) -> None:
        """Settle who was to blame: checks that fail on the old release as well clear the new one."""
        with self._session.node.lock():
            journal = self._session.store.journal()
            aftermath = journal.aftermath
            if aftermath is None:
                return
            ledger = self._session.store.ledger()
            if ledger is not None and set(aftermath.checks) <= set(failing_here_too):
                found = ledger.quarantined(aftermath.root_hash)
                if found is not None:
                    cleared = msgspec.structs.replace(
                        found,
                        cause="none",
                        until=self._session.stamp(),
                        sentence=f"{found.sentence}; cleared of blame: the old release fails the same "
                        f"({', '.join(failing_here_too)})",
                    )
                    self._session.store.write_ledger(ledger.with_quarantined(cleared))
                    self._session.record(
                        "cleared",
                        f"release {aftermath.version} is cleared of blame: the old release fails the same checks "
                        f"({', '.join(failing_here_too)})",
                        version=aftermath.version,
                    )
            self._session.store.write_journal(msgspec.structs.replace(journal, aftermath=None))

    def note_unhealthy_after_commit(self, sentence: str) -> None:
        """Put on record that a committed release turned unhealthy while it was still watched."""
        facts = self._session.facts()
        self._session.record("unhealthy-after-commit", sentence, version=facts.running.version, slot=facts.running.slot)


def idle_journal(journal: Journal) -> bool:
    """Tell whether nothing is under way."""
    return journal.phase == "idle" and journal.update is None
