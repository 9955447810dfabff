"""`acl-updater health`: handed on to the installed judge of health."""

from __future__ import annotations

import argparse

from updater.errors import Refused
from updater.health_plugin import HealthEngine, find_health_plugin
from updater.steps.session import Session
from updater.steps.trial import TrialEngine


def run_health(args: argparse.Namespace, session: Session) -> int:
    """Parse the rest of the command line with the plugin's own parser and run it."""
    plugin = find_health_plugin()
    parser = argparse.ArgumentParser(
        prog="acl-updater health", description="Run or show the checks that judge a trial boot."
    )
    plugin.add_arguments(parser.add_subparsers(dest="verb", metavar="VERB", required=True))
    rest = parser.parse_args(args.rest)
    rest.json = bool(args.json or getattr(rest, "json", False))
    if not session.node.live:
        raise Refused(
            "health is judged on a running machine, not on a disk image",
            mend="boot it: its own service judges the trial",
            reason="not-live",
        )

    def connect() -> HealthEngine:
        return TrialEngine(session)

    return plugin.run(rest, connect)
