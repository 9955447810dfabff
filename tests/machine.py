"""A machine in memory: two slots, an ESP, a state partition, a loader that boots what its model says."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from tests.disks import MemoryBlocks
from tests.releases import Release
from tests.simulated import Power, SimulatedDirectory
from updater import verity
from updater.boot import entries, loader_model
from updater.boot.esp import look
from updater.boot.systemd_boot import SystemdBoot
from updater.config import Config
from updater.efivars import NoEfiVariables
from updater.errors import Refused, SlotDamaged
from updater.files import Below
from updater.layouts import Layout, load_layout
from updater.node.protocol import Running
from updater.records import factory_ledger
from updater.slots import Slot
from updater.steps.session import Session, open_session

SLOT_BYTES = 4096 * 256
HASH_BYTES = 4096 * 8


class PoweredBlocks(MemoryBlocks):
    """A partition whose every write spends power."""

    def __init__(self, length_bytes: int, name: str, power: Power) -> None:
        """Make a partition of zeros."""
        super().__init__(length_bytes, name)
        self.power = power

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write, unless the power fails first."""
        self.power.spend(f"write {self.name} at {offset}")
        super().write(offset, data)

    def close(self) -> None:
        """Stay usable: the partition outlives its users."""


@dataclass(frozen=True)
class Booted:
    """What the loader and the kernel made of one boot."""

    slot: Slot
    entry: str
    version: str


class SimulatedMachine:
    """A `Node` in memory; `reboot_now` asks the loader's model what boots, and counts as the loader does."""

    live = True
    image_id: str | None = "acl-reference"
    architecture = "x86-64"

    def __init__(self, factory: Release, *, mirror: Path, roots: Sequence[Path], power: Power | None = None) -> None:
        """Ship `factory` in slot a; take the repository at `mirror`."""
        self.power = power or Power()
        self.layout: Layout = load_layout("dps-root")
        self.config = Config(mirrors=[str(mirror)], reboot="manual")
        self.clock = datetime.now(UTC)
        self._roots = list(roots)
        self._boots = 1
        self.partitions = {
            (slot, role): PoweredBlocks(SLOT_BYTES if role == "data" else HASH_BYTES, f"slot {slot} {role}", self.power)
            for slot in Slot
            for role in ("data", "hash")
        }
        self.labels: dict[Slot, str] = {Slot.A: factory.manifest.root.root_hash, Slot.B: "00" * 32}
        ledger = factory_ledger(factory.manifest, factory.raw, Slot.A, "2026-11-01T00:00:00Z")
        self.esp = SimulatedDirectory(
            {
                **entries.factory_files(factory.version),
                "EFI/acl/a.efi": factory.uki,
                "EFI/acl/ledger-1.json": ledger,
            },
            power=self.power,
        )
        self.state = SimulatedDirectory({"ledger.json": ledger}, power=self.power, ignore_case=False)
        self.trust = Below(self.state, "trust")
        root = factory.manifest.root
        self.partitions[Slot.A, "data"].content[: len(factory.image)] = factory.image
        image = verity.superblock(root) + factory.tree
        self.partitions[Slot.A, "hash"].content[: len(image)] = image
        self.booted = Booted(Slot.A, "a.conf", factory.version)
        self.reboots: list[str] = []
        # Nothing warns of a folder that goes with its machine.
        self._disk = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        weakref.finalize(self, self._disk.cleanup)

    # What the steps ask for.

    @property
    def boot(self) -> SystemdBoot:
        return SystemdBoot(self.esp, NoEfiVariables())

    def running(self) -> Running:
        return Running(self.booted.slot, self.labels[self.booted.slot], self.booted.version)

    def root_hash_in(self, slot: Slot) -> str | None:
        return self.labels[slot]

    def blocks(self, slot: Slot, role: Literal["data", "hash"], *, writable: bool = False) -> PoweredBlocks:
        if writable and slot is self.booted.slot:
            raise Refused("the running slot is never written", reason="running-slot")
        return self.partitions[slot, role]

    def label_slot(self, slot: Slot, root_hash: str) -> None:
        self.power.spend(f"label slot {slot}")
        self.labels[slot] = root_hash

    def mend_gpt(self) -> bool:
        return False

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def now(self) -> datetime:
        return self.clock

    def bootstrap_roots(self) -> Sequence[Path]:
        return self._roots

    @property
    def partial(self) -> Path:
        return Path(self._disk.name) / "partial"

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def lock(self, *, wait_s: float = 0.0) -> Iterator[None]:
        yield

    def reboot(self, why: str) -> None:
        self.reboots.append(why)

    def notes(self) -> tuple[str, ...]:
        return ()

    # What a test does to it.

    def session(self) -> Session:
        """Begin a run of the updater."""
        return open_session(self)

    def reboot_now(self) -> Booted:
        """Boot as the loader's model says, with its count; the slot's bytes must be what the entry's release needs."""
        state = look(self.esp, NoEfiVariables()).state
        listed = loader_model.choose(state)
        chosen, _ = loader_model.boot(state)
        assert listed is not None, "the loader has nothing to boot: the machine is lost"
        assert chosen is not None
        old, new = f"loader/entries/{listed.file}", f"loader/entries/{chosen.file}"
        # The firmware's rename fails where a twin bears the new name; the loader then starts the entry uncounted.
        if new not in self.esp.files:
            self.esp.rename_as_firmware(old, new)
        slot = chosen.slot
        assert slot is not None, f"the loader chose a foreign entry: {chosen.file}"
        self._boots += 1
        version = next(entry.version for entry in self.boot.read().order if entry.slot is slot)
        self.booted = Booted(slot, chosen.file, version)
        return self.booted

    def holds(self, slot: Slot, release: Release) -> bool:
        """Tell whether a slot holds a release whole, boot files and PARTUUIDs included."""
        root = release.manifest.root
        try:
            verity.prove(self.partitions[slot, "data"], self.partitions[slot, "hash"], root)
        except SlotDamaged:
            return False
        uki = self.esp.files.get(f"EFI/acl/{slot}.efi")
        return (
            uki is not None
            and hashlib.sha256(uki).hexdigest() == release.manifest.uki.sha256
            and (self.labels[slot] == root.root_hash)
        )

    def restored(self, power: Power) -> None:
        """Let power come back after a cut, for another while."""
        self.power = power
        self.esp.power = power
        self.state.power = power
        for blocks in self.partitions.values():
            blocks.power = power

    def with_mirror(self, mirror: Path) -> None:
        """Point the machine at another mirror."""
        self.config = replace_config(self.config, mirrors=[str(mirror)])


def replace_config(config: Config, **changes: object) -> Config:
    """Return a configuration with some settings changed."""
    return msgspec.structs.replace(config, **changes)
