"""The commands that set what an operator wants: pin, hold, channel, quarantine."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from updater.cli.output import Report
from updater.errors import InvalidDocument, NothingToDo, UpdaterError
from updater.policy import quarantine_sentence
from updater.records import Policy
from updater.schema import convert
from updater.steps.session import Session
from updater.versions import Version


def pin(args: argparse.Namespace, session: Session) -> Report:
    """Pin the node to one release."""
    version = Version(args.release).text
    _set(session, "pinned", f"pinned to release {version}", pin=version)
    return Report({"format": 1, "pin": version}, [f"pinned to release {version}; `acl-updater update` goes there"])


def unpin(args: argparse.Namespace, session: Session) -> Report:
    """Follow the channel again."""
    if session.store.policy().pin is None:
        raise NothingToDo("this node is not pinned")
    _set(session, "unpinned", "follows its channel again", pin=None)
    return Report({"format": 1, "pin": None}, ["this node follows its channel again"])


def hold(args: argparse.Namespace, session: Session) -> Report:
    """Install nothing for a while."""
    until = f" until {args.until}" if args.until else ""
    _set(session, "held", f"on hold{until}", held=True, held_until=args.until, hold_why=args.why)
    return Report({"format": 1, "held": True, "held_until": args.until}, [f"on hold{until}: nothing is installed"])


def unhold(args: argparse.Namespace, session: Session) -> Report:
    """End a hold."""
    if not session.store.policy().held:
        raise NothingToDo("this node is not on hold")
    _set(session, "released", "no longer on hold", held=False, held_until=None, hold_why="")
    return Report({"format": 1, "held": False}, ["no longer on hold"])


def channel(args: argparse.Namespace, session: Session) -> Report:
    """Follow another channel."""
    _set(session, "channel", f"follows the channel {args.name}", channel=args.name)
    return Report({"format": 1, "channel": args.name}, [f"this node follows the channel {args.name}"])


def quarantine(args: argparse.Namespace, session: Session) -> Report:
    """List or clear what failed on this node."""
    ledger = session.store.ledger()
    items = ledger.quarantine if ledger else []
    if args.verb == "list":
        lines = [quarantine_sentence(item) + (f" [{item.evidence}]" if item.evidence else "") for item in items]
        return Report({"format": 1, "quarantine": msgspec.to_builtins(items)}, lines or ["nothing is quarantined"])
    version = Version(args.release)
    cleared = [item for item in items if Version(item.version) == version]
    if not cleared or ledger is None:
        raise NothingToDo(f"release {version} is not quarantined", mend="see `acl-updater quarantine list`")
    for item in cleared:
        ledger = ledger.without_quarantined(item.root_hash)
    session.store.write_ledger(ledger)
    session.record("quarantine-cleared", f"an operator allows another try of release {version}", version=version.text)
    return Report({"format": 1, "cleared": version.text}, [f"release {version} may be tried again"])


def _set(session: Session, event: str, sentence: str, **changes: Any) -> None:
    """Change the operator's policy; its values are checked as a document's are."""
    wanted = {**msgspec.to_builtins(session.store.policy()), **changes}
    try:
        policy = convert(wanted, Policy, "command line")
    except InvalidDocument as error:
        raise UpdaterError(f"{error.key}: {error.why}", mend=error.mend, reason="invalid-value") from error
    session.store.write_policy(policy)
    session.record(event, f"an operator: {sentence}")
