"""Finalize a staged release: prove everything once more, then arm its trial boot."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from updater.errors import EnvironmentFailure, NetworkFailure, Refused
from updater.facts import Facts
from updater.health_plugin import HealthPlugin
from updater.plan import FINALIZE_STEPS
from updater.policy import holding, may_retry, quarantine_sentence
from updater.progress import step
from updater.records import Armed, Journal, Update
from updater.repository import Repository
from updater.situation import Situation, decide
from updater.steps.proofs import prove_boot_files, prove_fallback, prove_image
from updater.steps.session import Session


def finalize(
    session: Session,
    *,
    repository: Repository | None,
    health: HealthPlugin | None,
    slot_was_just_proven: bool = False,
) -> Update:
    """Arm the staged release for its trial boot; return the update. The reboot is the caller's.

    `repository` (None: offline) is asked once more whether the release was withdrawn. `slot_was_just_proven` spares
    a second reading of the staged slot in the same run.
    """
    facts = session.facts()
    update = _staged_update(facts)
    _refuse_unwanted(facts, update, repository)
    node, reporter = session.node, session.reporter
    release, slot = update.release, update.slot
    sentences = dict(FINALIZE_STEPS)

    with step(reporter, "prove-fallback", sentences["prove-fallback"]):
        fallback = prove_fallback(session, facts)

    with step(reporter, "prove-slot", sentences["prove-slot"]):
        try:
            if not slot_was_just_proven:
                prove_image(session, slot, release)
            prove_boot_files(session, slot, release)
            _prove_partuuids(session, update)
        except EnvironmentFailure:
            # What is not whole is not staged: the next stage goes on from what is. No full disk may hide the damage.
            with contextlib.suppress(EnvironmentFailure):
                session.store.write_journal(msgspec.structs.replace(facts.journal, phase="staging"))
            raise

    with step(reporter, "check-loader", sentences["check-loader"]):
        obstacles = node.boot.read().obstacles
        if obstacles:
            raise EnvironmentFailure(
                f"release {release.version} cannot be tried safely: {'; '.join(obstacles)}",
                mend="mend that, then `acl-updater finalize`",
                reason="loader-obstacle",
            )
        node.boot.settle(facts.running.slot)

    baseline: dict[str, Any] | None = None
    with step(reporter, "capture-baseline", sentences["capture-baseline"]) as said:
        if health is not None and node.live:
            baseline = health.capture_baseline(node.config.health)
            said.append(health.baseline_sentence(baseline))
        else:
            said.append("not on a disk image")

    with step(reporter, "record-arming", sentences["record-arming"]):
        armed = msgspec.structs.replace(
            update,
            baseline=baseline,
            tries=node.layout.boot.tries,
            armed=None,
            armed_boot_id=node.boot_id(),
            trial_boots=[],
            verdict=None,
        )
        journal = Journal(phase="armed", update=armed, healthy_boot_id=facts.journal.healthy_boot_id)
        ledger = session.store.ledger() or facts.ledger
        session.store.write_ledger(msgspec.structs.replace(ledger, armed=Armed(slot, release)))
        session.store.write_journal(journal)

    with step(reporter, "arm", sentences["arm"]) as said:
        entry = node.boot.arm(slot, release.version, tries=node.layout.boot.tries)
        said.append(f"{entry.name} sorts before release {fallback.version}'s entry")

    with step(reporter, "record-armed", sentences["record-armed"]):
        armed = msgspec.structs.replace(armed, armed=session.stamp())
        session.store.write_journal(msgspec.structs.replace(journal, update=armed))
        session.record(
            "armed",
            f"the next boot tries release {release.version} in slot {slot}, at most {armed.tries} times; "
            f"release {fallback.version} in slot {facts.running.slot} is the fallback",
            release=release,
            slot=slot,
        )
    return armed


def _staged_update(facts: Facts) -> Update:
    situation = decide(facts)
    update = facts.journal.update
    if situation is Situation.STAGED and update is not None:
        return update
    if situation is Situation.ARMED and update is not None:
        raise Refused(
            f"release {update.release.version} is armed already: the next boot tries it",
            mend="reboot, or `acl-updater cancel`",
            reason="armed",
        )
    if situation is Situation.TRIAL:
        raise Refused(f"release {facts.running.version} is on trial", mend="wait for its verdict", reason="on-trial")
    if situation is Situation.STAGING:
        raise Refused(
            "a stage was interrupted and is not complete", mend="`acl-updater stage` resumes it", reason="not-staged"
        )
    raise Refused("no release is staged", mend="`acl-updater stage` stages one", reason="not-staged")


def _refuse_unwanted(facts: Facts, update: Update, repository: Repository | None) -> None:
    version = update.release.version
    if holding(facts.policy, facts.now):
        raise Refused("this node is on hold", mend="`acl-updater unhold` ends the hold", reason="held")
    pin = facts.policy.pin
    if pin is not None and pin != version and not update.deliberate:
        raise Refused(
            f"release {version} is staged, but this node is now pinned to {pin}",
            mend=f"`acl-updater update` goes to {pin}; `acl-updater unpin` ends the pin",
            reason="pinned",
        )
    found = facts.ledger.quarantined(update.release.root.root_hash)
    if found is not None and not may_retry(found, now=facts.now, deliberate=update.deliberate):
        raise Refused(
            quarantine_sentence(found), mend=f"`acl-updater quarantine clear {version}`", reason="quarantined"
        )
    if repository is None:
        return
    try:
        withdrawn = repository.withdrawn()
    except NetworkFailure:
        return
    for item in withdrawn.releases:
        if item.version == version:
            raise Refused(
                f"release {version} was withdrawn on {item.withdrawn}: {item.why}",
                mend="`acl-updater cancel` drops it",
                reason="withdrawn",
            )


def _prove_partuuids(session: Session, update: Update) -> None:
    found = session.node.root_hash_in(update.slot)
    if found is not None and found != update.release.root.root_hash:
        raise EnvironmentFailure(
            f"slot {update.slot}'s PARTUUIDs name root hash {found[:12]}…, "
            f"release {update.release.version} has {update.release.root.root_hash[:12]}…",
            mend="stage the release again",
            reason="partuuid-mismatch",
        )
