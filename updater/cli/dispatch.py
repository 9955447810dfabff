"""From parsed arguments to the command that carries them out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from updater.cli.output import ConsoleReporter, Report, show
from updater.config import load_config
from updater.layouts import load_layout
from updater.node.protocol import Node
from updater.steps.session import Session, open_session

Command = Callable[[argparse.Namespace, Session], Report]

# Commands that only look: they take no lock and leave corrupt documents where they lie. `plan` and `explain` are not
# among them: they renew the trusted metadata.
_LOOKING = frozenset({"status", "history"})


def dispatch(args: argparse.Namespace) -> int:
    """Carry out one command; return its exit code."""
    if args.command == "layout":
        from updater.cli.layout import layout

        return show(layout(args), as_json=args.json)
    looking = args.command in _LOOKING or (args.command == "quarantine" and args.verb == "list")
    with open_node(args, writable=not looking) as node:
        if args.command == "health":
            from updater.cli.health import run_health

            return run_health(args, open_session(node, ConsoleReporter(quiet=True)))
        reporter = ConsoleReporter(quiet=bool(args.json))
        session = open_session(node, reporter, read_only=looking)
        command = _find(args.command)
        if looking:
            return show(command(args, session), as_json=args.json)
        with node.lock():
            report = command(args, session)
        return show(report, as_json=args.json)


@contextmanager
def open_node(args: argparse.Namespace, *, writable: bool) -> Iterator[Node]:
    """Open the machine that the arguments name: this one, or a disk image."""
    config = load_config(args.config)
    layout = load_layout(config.layout)
    if args.disk is not None:
        from updater.node.image import ImageNode

        with ImageNode(args.disk, layout, config, efi_vars=args.efi_vars, writable=writable) as image:
            yield image
    else:
        from updater.node.live import LiveNode

        with LiveNode(layout, config) as live:
            yield live


def _find(name: str) -> Command:
    if name in ("status", "history", "explain", "check", "plan"):
        from updater.cli import looking

        return getattr(looking, name)  # type: ignore[no-any-return]
    if name == "recover":
        # Apart from the others: every boot runs it, and theirs bring in all that fetches and writes a release.
        from updater.cli.recovering import recover

        return recover
    if name in ("stage", "finalize", "update", "commit", "rollback", "cancel"):
        from updater.cli import updating

        return getattr(updating, name)  # type: ignore[no-any-return]
    from updater.cli import deciding

    return getattr(deciding, name)  # type: ignore[no-any-return]
