"""Why this node is not on the newest release, in one sentence and then in detail."""

from __future__ import annotations

from dataclasses import dataclass

from updater.errors import UpdaterError
from updater.facts import Facts
from updater.policy import holding, quarantine_sentence
from updater.records import Update
from updater.situation import Situation, decide


@dataclass(frozen=True, slots=True)
class Explanation:
    """One sentence, a stable reason code, and the facts behind it, one sentence each."""

    sentence: str
    reason: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the repository and policy said: the release offered, or the error that choosing it raised.

    `accepted` tells of the trusted metadata in one sentence; `trouble` why it could not be renewed.
    """

    offered: str | None
    target: str | None
    refusal: UpdaterError | None
    accepted: str
    trouble: UpdaterError | None


def explain(facts: Facts, outlook: Outlook) -> Explanation:
    """Put the node's situation and the outlook into one sentence, the most pressing first."""
    sentence, reason = _sentence(facts, outlook)
    return Explanation(sentence, reason, tuple(_details(facts, outlook)))


def _sentence(facts: Facts, outlook: Outlook) -> tuple[str, str]:
    situation = decide(facts)
    update = facts.journal.update
    running = facts.running.version
    if situation is Situation.TRIAL:
        return f"Release {running} is on trial right now and waits for its verdict.", "on-trial"
    if situation is Situation.ARMED and update is not None:
        return _armed_sentence(facts, update)
    if situation is Situation.STAGED and update is not None and facts.boot.obstacles:
        return (
            f"Release {update.release.version} is staged and cannot be armed: {facts.boot.obstacles[0]}.",
            "loader-obstacle",
        )
    if situation is Situation.STAGED and update is not None:
        return (
            f"Release {update.release.version} is staged; `acl-updater finalize` and a reboot try it.",
            "staged",
        )
    if situation is Situation.REVERTING and update is not None:
        return f"A roll back to release {update.release.version} waits for a reboot.", "reverting"
    if situation is Situation.UNPROVEN:
        return (
            f"Release {running} runs, but no record says that it is proven, so nothing can be installed beside it.",
            "running-not-proven",
        )
    if holding(facts.policy, facts.now):
        until = f" until {facts.policy.held_until}" if facts.policy.held_until else ""
        return f"This node is on hold{until}.", "held"
    if outlook.refusal is not None:
        if outlook.refusal.reason == "already-at-target":
            return f"This node is on the release that it should run: {outlook.refusal.message}.", "already-at-target"
        return f"{_capital(outlook.refusal.message)}.", outlook.refusal.reason
    if outlook.trouble is not None:
        return f"The repository cannot be used: {outlook.trouble.message}.", outlook.trouble.reason
    if facts.boot.obstacles:
        return f"Release {outlook.target} cannot be armed: {facts.boot.obstacles[0]}.", "loader-obstacle"
    if outlook.target is not None:
        return f"Nothing stands in the way: `acl-updater update` installs release {outlook.target}.", "update-available"
    return f"Release {running} runs, and nothing newer is offered.", "nothing-offered"


def _armed_sentence(facts: Facts, update: Update) -> tuple[str, str]:
    version = update.release.version
    following = facts.boot.next_entry
    if following is not None and following.slot is update.slot:
        return f"Release {version} is armed: the next boot tries it.", "armed"
    # Somebody changed the loader's mind after arming: a default, a one-shot, another order.
    name = following.name if following is not None else "nothing that is known"
    why = f": {facts.boot.obstacles[0]}" if facts.boot.obstacles else ""
    return f"Release {version} is armed, but the next boot takes {name} instead{why}.", "trial-masked"


def _details(facts: Facts, outlook: Outlook) -> list[str]:
    running = facts.running
    lines = [f"slot {running.slot} runs release {running.version} (root hash {running.root_hash[:16]}…)"]
    other = facts.ledger.proven_in(running.slot.other)
    if other is not None:
        lines.append(f"slot {other.slot} holds the proven release {other.release.version} ({other.how} {other.at})")
    else:
        lines.append(f"slot {running.slot.other} holds nothing proven")
    if facts.policy.pin:
        lines.append(f"pinned to release {facts.policy.pin}")
    if outlook.offered is not None:
        lines.append(f"the channel offers release {outlook.offered}")
    if outlook.accepted:
        lines.append(outlook.accepted)
    if outlook.trouble is not None:
        lines.append(f"the metadata could not be renewed: {outlook.trouble}")
    if outlook.refusal is not None and outlook.refusal.mend:
        lines.append(f"what to do: {outlook.refusal.mend}")
    update = facts.journal.update
    if update is not None:
        version = update.release.version
        lines += [
            f"the {item.way} way is barred for the {item.file} of release {version} since {item.at}: {item.sentence} "
            f"({item.reason})"
            for item in update.barred
        ]
    for item in facts.ledger.quarantine:
        lines.append(quarantine_sentence(item))
        if item.evidence:
            lines.append(f"its evidence is kept in {item.evidence}")
    lines += [f"the loader: {obstacle}" for obstacle in facts.boot.obstacles]
    lines += [f"note: {note}" for note in (*facts.boot.notes, *facts.notes)]
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
