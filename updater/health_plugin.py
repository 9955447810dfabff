"""What the engine and the judge of health ask of each other, so that neither imports the other's inside.

The judge is found through the entry-point group `acl_updater.health`; a machine without one never commits a trial.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.slots import Slot

if TYPE_CHECKING:
    from updater.config import Health

ENTRY_POINTS = "acl_updater.health"


class Stage(StrEnum):
    """How far a failed trial boot had come."""

    LOADER = "loader"
    KERNEL = "kernel"
    INITRD = "initrd"
    USERSPACE = "userspace"
    HEALTH = "health"
    ARTIFACT = "artifact"
    OPERATOR = "operator"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """What ended a failed trial boot; `none` when nothing points at the release."""

    PANIC = "panic"
    WATCHDOG = "watchdog"
    DEADLINE = "deadline"
    CHECK = "check"
    DAMAGED_SLOT = "damaged-slot"
    DAMAGED_UKI = "damaged-uki"
    EMERGENCY = "emergency"
    OPERATOR = "operator"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a trial failed: one sentence, the failed checks, and the files that tell more.

    A check is named `check`, or `check/finding` where it looks at many things (`system-state/foo.service`). `folder`
    is relative to the updater's state folder.
    """

    stage: Stage
    cause: Cause
    sentence: str
    checks: tuple[str, ...] = ()
    folder: str | None = None
    files: tuple[str, ...] = ()

    @property
    def points_at_release(self) -> bool:
        """Tell whether the release failed; a power cut or an operator's reboot proves nothing against it."""
        return self.cause is not Cause.NONE


@dataclass(frozen=True, slots=True)
class Trial:
    """The trial that this boot is; `baseline` is what `capture_baseline` returned when it was armed."""

    release: str
    root_hash: str
    slot: Slot
    try_number: int
    tries: int
    baseline: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Aftermath:
    """A rolled-back trial whose condemning checks the old release has yet to run."""

    release: str
    root_hash: str
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial that ended without a commit, as known to the engine on the first boot after it.

    `armed_boot_id` is the boot that armed it, `trial_boots` those that the trial itself managed to record.
    `verdict` is what `roll_back` was given, if the trial got that far. `damaged_uki` and `damaged_slot` are one
    sentence each when its boot files or its slot no longer match their digests.
    """

    release: str
    root_hash: str
    boot_id: str
    armed_boot_id: str | None
    trial_boots: tuple[str, ...] = ()
    tries_done: int | None = None
    baseline: Mapping[str, Any] | None = None
    verdict: Evidence | None = None
    damaged_uki: str = ""
    damaged_slot: str = ""


class HealthEngine(Protocol):
    """What the health service asks of the engine on the live machine."""

    @property
    def settings(self) -> Health:
        """Return how a trial is judged."""

    @property
    def state(self) -> Directory:
        """Return the updater's state folder."""

    @property
    def evidence_bytes(self) -> int:
        """Return how many bytes all evidence may take there."""

    def trial(self) -> Trial | None:
        """Return the trial that this boot is, None for a boot of a proven release.

        Raise EnvironmentFailure when it cannot be told: the service asks again until the deadline, then gives up.
        """

    def commit(self, reason: str, sentence: str) -> None:
        """Make the release on trial the default; an EnvironmentFailure is tried again until the deadline."""

    def roll_back(self, reason: str, sentence: str, evidence: Evidence) -> None:
        """Record the verdict, condemn the entry, flush, ask for a reboot, even if nothing is writable."""

    def healthy_boot(self) -> None:
        """Renew the protection of a proven release after a boot without complaint."""

    def unhealthy_boot(self, sentence: str, checks: tuple[str, ...]) -> Literal["reboot", "stay"]:
        """Record that a proven release is unhealthy; say what is done about it.

        "reboot" (already asked for) only when another proven slot would be tried next, else "stay".
        """

    def aftermath(self) -> Aftermath | None:
        """Return the rolled-back trial that still awaits the old release's word, if there is one."""

    def clear_blame(self, aftermath: Aftermath, sentence: str) -> None:
        """Clear the image of blame: the old release fails the same checks."""

    def keep_blame(self, aftermath: Aftermath, sentence: str) -> None:
        """Close the aftermath: the old release passes checks that the image failed."""

    def report(self, event: str, sentence: str, checks: tuple[str, ...]) -> None:
        """Write a line of history about health after the verdict; must not fail for lack of space."""


class HealthPlugin(Protocol):
    """The judge of health."""

    def add_arguments(self, health: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the subcommands of `acl-updater health`: run, show, service."""

    def run(self, arguments: argparse.Namespace, connect: Callable[[], HealthEngine]) -> int:
        """Carry out the subcommand `arguments.verb`; return its exit code. Only `service` calls `connect`."""

    def capture_baseline(self, settings: Health) -> dict[str, Any]:
        """Run the checks on the running release and return what fails already, as plain JSON values.

        Raise InvalidDocument for an operator's file that cannot be read: arming would silently drop its checks.
        """

    def failing_checks(self, settings: Health) -> list[str]:
        """Run the checks once; return the names of the required ones that fail."""

    def baseline_sentence(self, baseline: Mapping[str, Any]) -> str:
        """Say in one sentence what a baseline holds."""

    def collect_evidence(self, failed: FailedTrial, state: Directory, *, limit_bytes: int) -> Evidence:
        """Look for what ended a trial, keep the files that tell, and judge; never fail, never take long."""


def find_health_plugin() -> HealthPlugin:
    """Return the installed judge of health; raise EnvironmentFailure when there is none."""
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINTS):
        plugin: HealthPlugin = entry_point.load()()
        return plugin
    raise EnvironmentFailure(
        "no health checks are installed, so no trial could ever be committed",
        mend="install the whole package acl-updater",
        reason="no-health-plugin",
    )
