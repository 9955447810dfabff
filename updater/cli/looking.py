"""The commands that look: status, history, explain, check, plan."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from updater.cli.output import Report
from updater.cli.planned import plan_report
from updater.cli.standing import status_data
from updater.errors import NetworkFailure, NothingToDo, UpdaterError
from updater.explain import Outlook
from updater.explain import explain as explained
from updater.facts import Facts
from updater.policy import holding, quarantine_sentence
from updater.repository import Repository, open_repository
from updater.situation import Situation, decide, running_is_proven
from updater.slots import Slot
from updater.steps.session import Session
from updater.steps.stage import plan_stage, refuse_in_situation
from updater.steps.ways import worked_out
from updater.store import utc_text

if TYPE_CHECKING:
    from updater.trust import EpochReset


def status(args: argparse.Namespace, session: Session) -> Report:
    """Show where the machine stands."""
    facts = session.facts()
    data = status_data(facts)
    situation = decide(facts)
    running, other = facts.running, facts.running.slot.other
    proven = facts.ledger.proven_in(other)
    lines = [
        f"running   slot {running.slot}: release {running.version}  {running.root_hash[:16]}…",
        f"other     slot {other}: " + (f"release {proven.release.version}, proven" if proven else "nothing proven"),
        f"state     {situation.value}: {_sentence(facts, situation)}",
    ]
    if facts.policy.pin:
        lines.append(f"pinned    to release {facts.policy.pin}")
    if holding(facts.policy, facts.now):
        lines.append(f"on hold   until {facts.policy.held_until or 'unhold'}  {facts.policy.hold_why}".rstrip())
    for item in facts.ledger.quarantine:
        lines.append(f"bad here  {quarantine_sentence(item)}")
    marks = [f"{entry.name}{' (next)' if entry.name == facts.boot.next_name else ''}" for entry in facts.boot.order]
    lines.append(f"loader    {facts.boot.loader or 'systemd-boot'}: {' · '.join(marks) or 'no entries'}")
    lines += [f"obstacle  {obstacle}" for obstacle in facts.boot.obstacles]
    lines += [f"note      {note}" for note in (*facts.boot.notes, *facts.notes)]
    return Report(data, lines)


def history(args: argparse.Namespace, session: Session) -> Report:
    """List what happened."""
    events = session.store.history()[-max(args.last, 0) :]
    lines = [f"{event.at}  {event.event:<15} {event.sentence}" for event in events]
    return Report({"format": 1, "events": msgspec.to_builtins(events)}, lines or ["nothing has happened yet"])


def check(args: argparse.Namespace, session: Session) -> Report:
    """Renew the metadata and tell what is to be installed."""
    facts = session.facts()
    refuse_in_situation(facts)
    with open_repository(session.node, built=built(facts)) as repository:
        renew(session, repository, facts)
        plan, _ = plan_stage(session, repository, session.facts(), to=None)
    version = plan.release.version
    return Report(
        {"format": 1, "available": version, "running": facts.running.version, "why": plan.target.why},
        [f"release {version} is to be installed: {plan.target.why}; release {facts.running.version} runs"],
    )


def plan(args: argparse.Namespace, session: Session) -> Report:
    """Show the plan of a stage."""
    facts = session.facts()
    refuse_in_situation(facts)
    with open_repository(session.node, built=built(facts)) as repository:
        renew(session, repository, facts)
        facts = session.facts()
        made, manifest = plan_stage(session, repository, facts, to=args.to)
        with worked_out(session, repository, facts, manifest, made.release, thorough=True) as ways:
            made = ways.planned(made)
    return plan_report(made)


def explain(args: argparse.Namespace, session: Session) -> Report:
    """Tell why this node is not on the newest release."""
    facts = session.facts()
    told = explained(facts, _outlook(args, session, facts))
    return Report(
        {
            "format": 1,
            "sentence": told.sentence,
            "reason": told.reason,
            "details": list(told.details),
            "running": facts.running.version,
        },
        [told.sentence, *(f"  - {line}" for line in told.details)],
    )


def built(facts: Facts) -> str | None:
    """Return the running image's build time, the earliest that a clock can truly show."""
    proven = facts.ledger.proven_in(facts.running.slot)
    return proven.release.built if proven else None


def renew(session: Session, repository: Repository, facts: Facts) -> None:
    """Renew the trusted metadata, and follow what its root says.

    A newer root that the running image ships counts only once that image is proven: one on trial brings no keys.
    """
    if running_is_proven(facts):
        repository.trust.adopt_root(session.node.bootstrap_roots())
    accepted = repository.refresh()
    for sentence in accepted.mended:
        session.record("trust-mended", sentence)
    _follow_floor_reset(session, facts, accepted.epoch_reset)


def _follow_floor_reset(session: Session, facts: Facts, reset: EpochReset | None) -> None:
    """Take over a floor that the trusted root resets, once for each root version that carries one."""
    if reset is None or reset.root_version <= facts.ledger.floor_root_version:
        return
    session.store.write_ledger(
        msgspec.structs.replace(facts.ledger, floor=reset.floor, floor_root_version=reset.root_version)
    )
    session.record(
        "floor-reset", f"trusted root {reset.root_version} sets the floor of security epochs to {reset.floor}"
    )


def _outlook(args: argparse.Namespace, session: Session, facts: Facts) -> Outlook:
    offered = target = None
    refusal: UpdaterError | None = None
    trouble: UpdaterError | None = None
    accepted = ""
    try:
        with open_repository(session.node, built=built(facts)) as repository:
            if not args.offline and decide(facts) is not Situation.TRIAL:
                try:
                    renew(session, repository, facts)
                except UpdaterError as error:
                    trouble = error
            try:
                accepted = _accepted_sentence(repository)
                offered = repository.offered(facts.policy.channel or session.node.config.channel)
                made, _ = plan_stage(session, repository, facts, to=None)
                made.refuse_unless_possible()
                target = made.release.version
            except UpdaterError as error:
                refusal = None if trouble is not None and isinstance(error, NetworkFailure) else error
    except UpdaterError as error:
        trouble = trouble or error
    if trouble is not None and refusal is not None and not isinstance(refusal, NothingToDo):
        # Without renewed metadata the cached offer is no reason to call the node up to date, nor to blame policy.
        refusal = refusal if refusal.reason in ("quarantined", "held", "withdrawn") else None
    return Outlook(offered, target, refusal, accepted, trouble)


def _accepted_sentence(repository: Repository) -> str:
    known = repository.trust.status()
    if known.accepted is None:
        return "no metadata was accepted yet"
    versions = ", ".join(f"{role} {version}" for role, version in known.accepted.versions.items())
    until = utc_text(known.accepted.expires)
    state = f"expired {until}" if known.expired else f"valid until {until}"
    return f"metadata accepted {utc_text(known.accepted.refreshed)} from {known.accepted.mirror} ({versions}), {state}"


def _sentence(facts: Facts, situation: Situation) -> str:
    update = facts.journal.update
    version = update.release.version if update else ""
    slot: Slot | None = update.slot if update else None
    return {
        Situation.IDLE: "nothing is under way",
        Situation.STAGING: f"staging release {version} was interrupted; `acl-updater stage` resumes it",
        Situation.STAGED: f"release {version} is staged in slot {slot}; `acl-updater finalize` arms it",
        Situation.ARMED: f"the next boot tries release {version} in slot {slot}",
        Situation.TRIAL: f"release {facts.running.version} is on trial and waits for its verdict",
        Situation.COMMITTING: f"the commit of release {version} is being finished",
        Situation.FELL_BACK: f"the trial of release {version} failed; the node's service puts that on record",
        Situation.REVERTING: f"the next boot goes back to release {version} in slot {slot}",
        Situation.REVERTED: f"release {version} runs again",
        Situation.ROTTED: "the committed release stopped booting; the older one runs",
        Situation.UNPROVEN: "no record says that the running release is proven",
    }[situation]
