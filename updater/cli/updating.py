"""The commands that change what boots: stage, finalize, update, commit, rollback, cancel."""

from __future__ import annotations

import argparse

from updater.cli.looking import built, renew
from updater.cli.output import Report
from updater.cli.planned import plan_report
from updater.cli.recovering import installed_health
from updater.errors import NetworkFailure, NothingToDo, Refused, UpdaterError
from updater.plan import Plan, sizes
from updater.policy import holding
from updater.records import Update, VerdictRecord
from updater.repository import Repository, open_repository
from updater.situation import Situation, decide
from updater.steps import adopt as adopting
from updater.steps import cancel as cancelling
from updater.steps import commit as committing
from updater.steps import finalize as finalizing
from updater.steps import recover as recovering
from updater.steps import roll_back
from updater.steps import stage as staging
from updater.steps.session import Session
from updater.versions import Version


def stage(args: argparse.Namespace, session: Session) -> Report:
    """Stage a release."""
    recovering.recover(session, installed_health(session))
    with open_repository(session.node, built=built(session.facts())) as repository:
        renew(session, repository, session.facts())
        made = staging.stage(session, repository, to=args.to)
    report = plan_report(made)
    return Report(
        {**report.data, "staged": True},
        [
            *_brought_lines(made),
            f"release {made.release.version} is staged in slot {made.slot}; `acl-updater finalize` arms it",
        ],
    )


def _brought_lines(made: Plan) -> list[str]:
    done = made.brought
    if done is None:
        return []
    return [
        f"image by {', then '.join(done.image) or 'what the slot held'}, "
        + ", ".join(f"{file} by {way}" for file, way in done.files.items()),
        f"fetched {sizes(done.fetched_bytes)} in {done.requests} requests ({done.retries} of them again), wrote "
        f"{sizes(done.written_bytes)}, kept {sizes(done.kept_bytes)}; read back by {done.read_back}",
    ]


def finalize(args: argparse.Namespace, session: Session) -> Report:
    """Arm the staged release."""
    recovering.recover(session, installed_health(session))
    update = _finalize(session, just_proven=False)
    return Report(_armed(update), [_armed_line(session, update)])


def update(args: argparse.Namespace, session: Session) -> Report:
    """Do all that is still to be done, the reboot included."""
    try:
        return _update(args, session)
    except (NothingToDo, Refused) as error:
        if not args.automatic:
            raise
        return Report({"format": 1, "done": False, "reason": error.reason, "sentence": error.message}, [str(error)])


def commit(args: argparse.Namespace, session: Session) -> Report:
    """Commit the release on trial by hand."""
    _refuse_on_image(session, "commit")
    health = installed_health(session)
    recovering.recover(session, health)
    facts = session.facts()
    if decide(facts) is Situation.UNPROVEN and args.force:
        adopting.adopt(session, facts, force=True)
        return Report({"format": 1, "adopted": facts.running.version}, [f"release {facts.running.version} is adopted"])
    if decide(facts) is Situation.TRIAL and not args.force and health is not None:
        failing = health.failing_checks(session.node.config.health)
        if failing:
            raise Refused(
                f"release {facts.running.version} is not healthy: {', '.join(failing)}",
                mend="see `acl-updater health run`; `--force` commits all the same",
                reason="unhealthy",
            )
    committing.commit(session, reason="operator", sentence="an operator committed it")
    return Report(
        {"format": 1, "committed": facts.running.version}, [f"release {facts.running.version} is the default now"]
    )


def rollback(args: argparse.Namespace, session: Session) -> Report:
    """End the trial, or go back to the other slot's proven release."""
    recovering.recover(session, installed_health(session))
    facts = session.facts()
    if decide(facts) is Situation.TRIAL:
        verdict = VerdictRecord(
            "roll-back",
            "operator",
            f"an operator ended the trial: {args.reason}",
            session.stamp(),
            facts.boot_id,
            stage="operator",
            cause="operator",
        )
        roll_back.end_trial(session, verdict, reboot=not args.no_reboot)
        return Report({"format": 1, "ended_trial_of": facts.running.version}, ["the trial is ended"])
    going = roll_back.revert(session, why=args.reason)
    sentence = f"the next boot goes back to release {going.release.version} in slot {going.slot}"
    if session.node.live and not args.no_reboot:
        session.node.reboot(f"an operator rolls back: {args.reason}")
    return Report({"format": 1, "to": going.release.version, "slot": going.slot.value}, [sentence])


def cancel(args: argparse.Namespace, session: Session) -> Report:
    """Drop what is staged or armed."""
    recovering.recover(session, installed_health(session))
    sentence = cancelling.cancel(session)
    return Report({"format": 1, "cancelled": True, "sentence": sentence}, [sentence])


def _update(args: argparse.Namespace, session: Session) -> Report:
    situation = recovering.recover(session, installed_health(session))
    facts = session.facts()
    pending = facts.journal.update
    with open_repository(session.node, built=built(facts)) as repository:
        if (
            situation is Situation.ARMED
            and pending is not None
            and _is_still_wanted(args, session, repository, pending)
        ):
            return _reboot(args, session, pending)
        if situation is not Situation.ARMED:
            staging.refuse_in_situation(facts)
            renew(session, repository, facts)
        just_proven = False
        try:
            staging.stage(session, repository, to=args.to)
            just_proven = True
        except NothingToDo as error:
            if error.reason != "already-staged":
                raise
        done = _finalize(session, just_proven=just_proven, repository=repository)
    return _reboot(args, session, done)


def _reboot(args: argparse.Namespace, session: Session, update: Update) -> Report:
    line = _armed_line(session, update)
    if session.node.live and not args.no_reboot and session.node.config.reboot == "immediate":
        session.node.reboot(f"the trial of release {update.release.version}")
        line = f"release {update.release.version} is armed; this node reboots into its trial now"
    return Report(_armed(update), [line])


def _finalize(session: Session, *, just_proven: bool, repository: Repository | None = None) -> Update:
    if repository is not None:
        return finalizing.finalize(
            session, repository=repository, health=installed_health(session), slot_was_just_proven=just_proven
        )
    if not session.node.config.mirrors:
        return finalizing.finalize(session, repository=None, health=installed_health(session))
    with open_repository(session.node, built=built(session.facts())) as opened:
        try:
            renew(session, opened, session.facts())
        except NetworkFailure as error:
            # An unreachable mirror does not keep a proven release from its trial; what was accepted last decides.
            session.record("offline", f"the metadata could not be renewed: {error.message}")
        return finalizing.finalize(session, repository=opened, health=installed_health(session))


def _is_still_wanted(args: argparse.Namespace, session: Session, repository: Repository, update: Update) -> bool:
    """Tell whether the armed release is still the one to try; cancel it when it is not. Raises Refused under a hold."""
    facts = session.facts()
    version = update.release.version
    if holding(facts.policy, facts.now):
        raise Refused(
            f"release {version} is armed, and this node is on hold: it does not reboot by itself",
            mend="`acl-updater unhold`, or `acl-updater cancel`",
            reason="held",
        )
    _drop_if_withdrawn(session, repository, update)
    wanted = args.to or facts.policy.pin
    if wanted is None or Version(wanted) == Version(version):
        return True
    cancelling.cancel(session, why=f"release {wanted} is wanted instead")
    return False


def _drop_if_withdrawn(session: Session, repository: Repository, update: Update) -> None:
    try:
        renew(session, repository, session.facts())
        withdrawn = repository.withdrawn()
    except UpdaterError as error:
        session.record("offline", f"the metadata could not be renewed: {error.message}")
        return
    for item in withdrawn.releases:
        if item.version == update.release.version:
            sentence = cancelling.cancel(session, why=f"it was withdrawn: {item.why}")
            raise Refused(sentence, mend="wait for the next release", reason="withdrawn")


def _armed(update: Update) -> dict[str, object]:
    return {
        "format": 1,
        "done": True,
        "armed": update.release.version,
        "slot": update.slot.value,
        "tries": update.tries,
        "fallback": {"release": update.from_version, "slot": update.from_slot.value},
    }


def _armed_line(session: Session, update: Update) -> str:
    return (
        f"release {update.release.version} in slot {update.slot} is armed: the next boot tries it, at most "
        f"{update.tries} times; release {update.from_version} is the fallback"
    )


def _refuse_on_image(session: Session, verb: str) -> None:
    if not session.node.live:
        raise Refused(
            f"{verb} is for a running machine: a disk image cannot show that its release is healthy",
            mend="boot it: its own service judges the trial",
            reason="not-live",
        )
