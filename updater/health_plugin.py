"""What the engine asks of the health checks, which are a package of their own above it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from updater.config import Health
from updater.files import Directory
from updater.records import VerdictRecord

if TYPE_CHECKING:
    from updater.steps.session import Session

ENTRY_POINT_GROUP = "acl_updater.health"


@dataclass(frozen=True, slots=True)
class TrialEnd:
    """Why a trial ended, as far as the evidence tells.

    `stage` and `cause` take the words of `records.Quarantined`; `checks` are the failed checks, `folder` is where the
    evidence is kept, relative to the state folder.
    """

    stage: str
    cause: str
    sentence: str
    checks: list[str]
    folder: str | None

    @property
    def blames_the_image(self) -> bool:
        """Tell whether anything points at the image: a power cut, or a disk that rots, does not."""
        return self.cause not in ("none", "damaged-slot", "damaged-uki")


class HealthPlugin(Protocol):
    """Health checks, baselines and evidence, found through the entry-point group `acl_updater.health`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommands of `acl-updater health` (run, show, service)."""

    def run(self, args: argparse.Namespace, session: Session) -> int:
        """Carry out `acl-updater health …`; return the exit code."""

    def capture_baseline(self, settings: Health) -> dict[str, Any]:
        """Run the checks on the release that runs now; return a JSON-able record of what already fails."""

    def baseline_sentence(self, baseline: dict[str, Any]) -> str:
        """Return one phrase on a baseline, such as `12 checks, 1 fails already: dns`."""

    def judge_end(
        self,
        *,
        release: str,
        root_hash: str,
        armed_at: str | None,
        armed_boot_id: str | None,
        trial_boots: tuple[str, ...],
        boot_id: str,
        verdict: VerdictRecord | None,
        damage: tuple[tuple[str, str], ...],
        state: Directory,
        limit_bytes: int,
    ) -> TrialEnd:
        """Gather the evidence of an ended trial into `evidence/…` below `state` and say why it ended.

        Times are UTC texts of `updater.store`; `damage` lists (cause, sentence) of what no longer matches its hashes.
        Never raises: what cannot be read is said in the sentence.
        """


def load_health_plugin() -> HealthPlugin | None:
    """Return the installed health checks, None when the package that has them is not installed."""
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINT_GROUP):
        plugin: HealthPlugin = point.load()()
        return plugin
    return None
