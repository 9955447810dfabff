"""The steps of an update's life on a simulated machine."""

from __future__ import annotations

from tests.machine import SimulatedMachine
from updater.repository import open_repository
from updater.situation import Situation, decide
from updater.steps.finalize import finalize
from updater.steps.recover import recover
from updater.steps.session import Session
from updater.steps.stage import stage
from updater.steps.trial import TrialEngine


def staged(machine: SimulatedMachine, to: str | None = None) -> Session:
    """Write release `to`, or what the channel offers, to the other slot."""
    session = machine.session()
    recover(session, None)
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        stage(session, repository, to=to)
    return session


def armed(machine: SimulatedMachine, to: str | None = None) -> Session:
    """Stage a release and arm it."""
    session = staged(machine, to)
    with open_repository(machine, built=None) as repository:
        finalize(session, repository=repository, health=None)
    return session


def booted(machine: SimulatedMachine) -> Situation:
    """Reboot, and do what the service does at every boot."""
    machine.reboot_now()
    return recover(machine.session(), None)


def committed(machine: SimulatedMachine, to: str | None = None) -> Session:
    """Take a release through its whole life to a commit."""
    armed(machine, to)
    assert booted(machine) is Situation.TRIAL
    session = machine.session()
    TrialEngine(session).commit("healthy", "all checks hold")
    assert decide(session.facts()) is Situation.IDLE
    assert to is None or machine.booted.version == to
    return session
