"""The arguments of `acl-updater`, with the help that teaches them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from updater import __version__

DESCRIPTION = """\
Update this node as a whole: a signed release is staged into the slot that is not running, tried once
under guard, and committed by its health checks, or the node rolls back by itself and remembers why.
"""

EXAMPLES = """\
examples:
  acl-updater status                 where this node stands
  acl-updater explain                why it is not on the newest release
  acl-updater update                 stage, finalize and reboot into what the channel offers
  acl-updater update --to 2.0.0      the same for one release, older or newer
  acl-updater pin 2.0.0              stay on, or go to, exactly this release
  acl-updater --disk node.raw plan   look at a disk image instead of this machine

exit codes: 0 done · 1 failed · 2 wrong usage · 3 nothing to do · 4 refused by policy · 5 invalid document
            6 not trusted · 7 machine or network failure · 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    top = argparse.ArgumentParser(
        prog="acl-updater",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"acl-updater {__version__}")
    _shared(top)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _add(commands, "status", "show slots, releases, the update under way, quarantine and loader order")
    _add(commands, "check", "renew the signed metadata and tell whether a release is to be installed")
    plan = _add(commands, "plan", "show what staging would do and whether it can, without doing it")
    stage = _add(commands, "stage", "fetch a release, prove it, write it to the other slot, read it back")
    _add(commands, "finalize", "arm the staged release: the next boot tries it")
    update = _add(commands, "update", "stage, finalize and reboot, whatever of it is still to be done")
    for sub in (plan, stage, update):
        sub.add_argument("--to", metavar="VERSION", help="this release instead of what pin or channel say")
    update.add_argument(
        "--automatic",
        action="store_true",
        help="as the timer runs it: having nothing to do, or being refused by policy, is a success",
    )
    update.add_argument("--no-reboot", action="store_true", help="stop when the trial is armed")
    commit = _add(commands, "commit", "commit the release on trial by hand, if its health checks pass")
    commit.add_argument("--force", action="store_true", help="commit although checks fail, or adopt what runs")
    rollback = _add(commands, "rollback", "end the trial, or go back to the proven release in the other slot")
    rollback.add_argument("--reason", default="no reason was given", metavar="TEXT", help="kept in the history")
    rollback.add_argument("--no-reboot", action="store_true", help="let somebody else reboot")
    _add(commands, "cancel", "drop what is staged or armed")
    history = _add(commands, "history", "list what happened, oldest first")
    history.add_argument("--last", type=int, default=50, metavar="N", help="only the last N events (default 50)")
    explain = _add(commands, "explain", "tell in one sentence why this node is not on the newest release")
    explain.add_argument("--offline", action="store_true", help="do not ask the mirrors")
    pin = _add(commands, "pin", "stay on, or go to, exactly this release")
    pin.add_argument("release", metavar="VERSION")
    _add(commands, "unpin", "follow the channel again")
    hold = _add(commands, "hold", "install nothing until `unhold`, or until a time")
    hold.add_argument("--until", metavar="TIME", type=_utc, help="a time in UTC, such as 2026-12-24T18:00:00Z")
    hold.add_argument("--why", default="", metavar="TEXT", help="shown by status and explain")
    _add(commands, "unhold", "end the hold")
    channel = _add(commands, "channel", "follow another channel")
    channel.add_argument("name", metavar="NAME")
    quarantine = _add(commands, "quarantine", "list or clear releases that failed on this node")
    verbs = quarantine.add_subparsers(dest="verb", metavar="VERB", required=True)
    _shared(verbs.add_parser("list", help="list them, with cause and evidence"), again=True)
    clear = verbs.add_parser("clear", help="allow another try of a release")
    _shared(clear, again=True)
    clear.add_argument("release", metavar="VERSION")
    layout = _add(commands, "layout", "draw the disk, or compare it with its layout")
    verbs = layout.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = verbs.add_parser(
        "show", help="draw the partitions of this machine's disk, of --disk FILE or --disk /dev/NAME"
    )
    check = verbs.add_parser("check", help="draw them and tell what differs from the layout, with what to do")
    for sub in (show, check):
        _shared(sub, again=True)
        sub.add_argument("--layout", metavar="NAME", help="this layout instead of the configured one")
    check.add_argument(
        "--repair",
        action="store_true",
        help="write both copies of the partition table anew where they differ, as the one in use has it",
    )
    _add(commands, "recover", "finish what a power cut or a reboot interrupted (runs at every boot)")
    health = _add(commands, "health", "run or show the health checks", parse_rest=True)
    health.add_argument("rest", nargs=argparse.REMAINDER, help="run, show or service; see `acl-updater health --help`")
    return top


def _utc(text: str) -> str:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no time in UTC such as 2026-12-24T18:00:00Z")
    return text


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, *, parse_rest: bool = False
) -> argparse.ArgumentParser:
    sub = commands.add_parser(
        name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.", add_help=not parse_rest
    )
    if not parse_rest:
        _shared(sub, again=True)
    return sub


def _shared(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options that may stand before or after the command; the later ones must not reset the earlier."""
    default = argparse.SUPPRESS if again else None
    group = parser.add_argument_group("options for every command")
    group.add_argument("--json", action="store_true", default=default or False, help="print a JSON document")
    group.add_argument(
        "--disk",
        type=Path,
        default=default,
        metavar="FILE",
        help="a disk image instead of this machine (no root needed)",
    )
    group.add_argument(
        "--efi-vars", type=Path, default=default, metavar="FILE", help="the variable store that goes with --disk"
    )
    group.add_argument("--config", type=Path, default=default, metavar="FILE", help="settings over all others")
    group.add_argument("-v", "--verbose", action="store_true", default=default or False, help="log every command")
