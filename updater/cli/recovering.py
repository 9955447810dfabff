"""The command that every boot runs: recover."""

from __future__ import annotations

import argparse

from updater.cli.output import Report
from updater.cli.standing import status_data
from updater.health_plugin import HealthPlugin, find_health_plugin
from updater.steps import recover as recovering
from updater.steps.session import Session


def recover(args: argparse.Namespace, session: Session) -> Report:
    """Finish what was interrupted."""
    situation = recovering.recover(session, installed_health(session))
    return Report(status_data(session.facts()), [f"this node is {situation.value}"])


def installed_health(session: Session) -> HealthPlugin | None:
    """Return the judge of health of a running machine; None for a disk image."""
    return find_health_plugin() if session.node.live else None
