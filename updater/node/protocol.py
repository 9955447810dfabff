"""What the steps of an update ask of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from updater.blocks import Blocks
from updater.boot.protocol import BootBackend
from updater.config import Config
from updater.files import Directory
from updater.layouts import Layout
from updater.slots import Slot


@dataclass(frozen=True, slots=True)
class Running:
    """The running slot, told by what is mounted (live) or by what the loader would boot (disk image)."""

    slot: Slot
    root_hash: str
    version: str


class Node(Protocol):
    """A machine with two slots."""

    @property
    def live(self) -> bool:
        """Tell a running machine from a disk image."""

    @property
    def layout(self) -> Layout:
        """Return the layout of the disk."""

    @property
    def config(self) -> Config:
        """Return the settings."""

    @property
    def boot(self) -> BootBackend:
        """Return the loader's back end."""

    @property
    def state(self) -> Directory:
        """Return the updater's folder on the state partition."""

    @property
    def trust(self) -> Directory:
        """Return the folder of trusted metadata."""

    @property
    def esp(self) -> Directory:
        """Return the ESP."""

    @property
    def architecture(self) -> str:
        """Return the architecture in a manifest's words."""

    @property
    def image_id(self) -> str | None:
        """Return os-release's IMAGE_ID, None when it cannot be told."""

    def running(self) -> Running:
        """Return the running slot; raise EnvironmentFailure when it cannot be told for certain."""

    def root_hash_in(self, slot: Slot) -> str | None:
        """Return the root hash that the GPT says `slot` holds, None where the layout's PARTUUIDs do not tell.

        There the records say what a slot holds: see `updater.facts.recorded_root_hash`.
        """

    def blocks(self, slot: Slot, role: Literal["data", "hash"], *, writable: bool = False) -> Blocks:
        """Open a slot's partition; refuse to open the running slot for writing."""

    def label_slot(self, slot: Slot, root_hash: str) -> None:
        """Give the slot's partitions the PARTUUIDs that the layout asks for, one GPT copy after the other."""

    def gpt_problem(self) -> str:
        """Return one sentence on what is wrong with the GPT's two copies, empty when they agree."""

    def mend_gpt(self) -> bool:
        """Write both copies of the GPT as the one in use has it; tell whether there was anything to do.

        Callers know that a write of ours was cut, or were told to by an operator.
        """

    def boot_id(self) -> str:
        """Return the kernel's id of this boot; empty for a disk image."""

    def now(self) -> datetime:
        """Return the clock's time in UTC."""

    def bootstrap_roots(self) -> Sequence[Path]:
        """Return the trusted roots that came with the running image, oldest first."""

    @property
    def partial(self) -> Path | None:
        """Return the folder for what was fetched and must outlive a kill, None where there is no disk for it."""

    def scratch_folder(self) -> AbstractContextManager[Path]:
        """Lend an empty folder for one download."""

    def lock(self, *, wait_s: float = 0.0) -> AbstractContextManager[None]:
        """Hold the one lock of all that changes something.

        Raises Refused (reason `busy`) when another still holds it after `wait_s`.
        """

    def reboot(self, why: str) -> None:
        """Ask for a reboot; a disk image has nothing to do."""

    def notes(self) -> tuple[str, ...]:
        """Return what an operator should know: a degraded state partition, an uncovered watchdog class."""
