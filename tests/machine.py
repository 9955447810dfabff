"""A machine in memory: two slots, an ESP, a state partition, a loader that boots what its model says."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from tests.disks import MemoryBlocks
from tests.loaders import LOADERS
from tests.releases import Release
from tests.simulated import Power, SimulatedDirectory
from updater import verity
from updater.boot.choose import TableAccess, open_backend
from updater.boot.protocol import BootBackend
from updater.config import Config
from updater.efivars import EfiVariables, NoEfiVariables
from updater.errors import Refused, SlotDamaged
from updater.files import Below
from updater.gpt import Gpt
from updater.layouts import Layout, load_layout
from updater.new_disk import new_table
from updater.node.disk import LayoutDisk, OnLayoutDisk
from updater.node.protocol import Running
from updater.node.scratch import ScratchFolders
from updater.plan import boot_files
from updater.records import factory_ledger, release_record
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
    root_hash: str


class SimulatedNode(OnLayoutDisk):
    """What every simulated `Node` answers alike."""

    live = True
    image_id: str | None = "acl-reference"
    architecture = "x86-64"
    reboots: list[str]

    @contextlib.contextmanager
    def lock(self, *, wait_s: float = 0.0) -> Iterator[None]:
        yield

    def reboot(self, why: str) -> None:
        self.reboots.append(why)

    def notes(self) -> tuple[str, ...]:
        return ()


class SimulatedMachine(SimulatedNode):
    """A `Node` in memory; `reboot_now` asks the loader's model what boots, and counts as the loader does."""

    def __init__(
        self,
        factory: Release,
        *,
        mirror: Path,
        roots: Sequence[Path],
        power: Power | None = None,
        layout: str = "dps-root",
    ) -> None:
        """Ship `factory` in slot a; take the repository at `mirror`."""
        self.power = power or Power()
        self.layout: Layout = load_layout(layout)
        self.config = Config(mirrors=[str(mirror)], reboot="manual")
        self.clock = datetime.now(UTC)
        self._roots = list(roots)
        self._boots = 1
        self.partitions = {
            (slot, role): PoweredBlocks(SLOT_BYTES if role == "data" else HASH_BYTES, f"slot {slot} {role}", self.power)
            for slot in Slot
            for role in ("data", "hash")
        }
        self.table = _factory_table(self.layout, factory.manifest.root.root_hash)
        self._disk = LayoutDisk("the disk", self.layout, lambda: self.table, self._write_table)
        self.efi: EfiVariables = NoEfiVariables()
        ledger = factory_ledger(factory.manifest, factory.raw, Slot.A, "2026-11-01T00:00:00Z")
        self.command_line = ""
        self.kind = LOADERS[self.layout.boot.backend]()
        self.esp = SimulatedDirectory(power=self.power)
        files = self.kind.factory_files(self, factory)
        self.esp = SimulatedDirectory({**files, "EFI/acl/ledger-1.json": ledger}, power=self.power)
        self.state = SimulatedDirectory({"ledger.json": ledger}, power=self.power, ignore_case=False)
        self.trust = Below(self.state, "trust")
        root = factory.manifest.root
        self.partitions[Slot.A, "data"].content[: len(factory.image)] = factory.image
        image = verity.superblock(root) + factory.tree
        self.partitions[Slot.A, "hash"].content[: len(image)] = image
        self.booted = Booted(Slot.A, "the factory's", factory.version, root.root_hash)
        self.reboots: list[str] = []
        # Nothing warns of a folder that goes with its machine.
        self._host_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        weakref.finalize(self, self._host_folder.cleanup)
        self._scratch = ScratchFolders(Path(self._host_folder.name) / "scratch")

    # What the steps ask for.

    @property
    def boot(self) -> BootBackend:
        return open_backend(
            self.layout,
            esp=self.esp,
            efi=self.efi,
            table=TableAccess(lambda: self.table, self._write_table),
            part_uuid=self._disk.boot_partition().unique_guid,
            boot_id=self.boot_id() if self.layout.boot.backend == "efi-bootnext" else "",
            command_line=self.command_line,
        )

    def _write_table(self, table: Gpt) -> None:
        self.power.spend("write the table's primary copy")
        self.table = table
        self.power.spend("write the table's backup copy")
        self.table = dataclasses.replace(table, consistent=True)

    def running(self) -> Running:
        return Running(self.booted.slot, self.booted.root_hash, self.booted.version)

    def blocks(self, slot: Slot, role: Literal["data", "hash"], *, writable: bool = False) -> PoweredBlocks:
        if writable and slot is self.booted.slot:
            raise Refused("the running slot is never written", reason="running-slot")
        return self.partitions[slot, role]

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def now(self) -> datetime:
        return self.clock

    def bootstrap_roots(self) -> Sequence[Path]:
        return self._roots

    @property
    def partial(self) -> Path:
        return Path(self._host_folder.name) / "partial"

    def scratch_folder(self) -> AbstractContextManager[Path]:
        return self._scratch.lend()

    # What a test does to it.

    def session(self) -> Session:
        """Begin a run of the updater."""
        return open_session(self)

    def reboot_now(self) -> Booted:
        """Boot as the loader's model says, with its count; the slot's bytes must be what the entry's release needs."""
        slot, entry = self.kind.power_on(self)
        self._boots += 1
        version = next(entry.version for entry in self.boot.read().order if entry.slot is slot)
        self.booted = Booted(slot, entry, version, self._proven_root_hash(slot))
        return self.booted

    def _proven_root_hash(self, slot: Slot) -> str:
        """Return the root hash that a slot's boot files pass to the kernel."""
        from updater.uki import parse, words

        names = ["uki.efi", *(f"slot-{slot}.addon.efi" for _ in [0] if self.layout.swaps == "usr")]
        key = "usrhash=" if self.layout.swaps == "usr" else "roothash="
        found = []
        for name in names:
            raw = b"".join(self.boot.artifact_chunks(slot, name))
            found += [word.removeprefix(key) for word in words(parse(raw, name).command_line) if word.startswith(key)]
        assert len(found) == 1, f"slot {slot} was booted with {len(found)} root hashes"
        return found[0]

    def holds(self, slot: Slot, release: Release) -> bool:
        """Tell whether a slot holds a release whole, boot files and PARTUUIDs included."""
        root = release.manifest.root
        try:
            verity.prove(self.partitions[slot, "data"], self.partitions[slot, "hash"], root)
        except SlotDamaged:
            return False
        return not self.boot.verify(slot, boot_files(release_record(release.manifest, release.raw), slot)) and (
            self.root_hash_in(slot) in (None, root.root_hash)
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


def _factory_table(layout: Layout, root_hash: str) -> Gpt:
    """Return the table of a factory disk whose slot a holds `root_hash`."""
    partuuids = {partition.label: UUID(int=number) for number, partition in enumerate(layout.partitions, 0xFAC0)}
    for partition in layout.partitions:
        if partition.slot is Slot.A:
            partuuids[partition.label] = partition.partuuid_for(root_hash) or partuuids[partition.label]
    table = new_table(layout, disk_guid=UUID(int=0xFAC), partuuids=partuuids)
    return dataclasses.replace(table, primary_ok=True, backup_ok=True, consistent=True)


def replace_config(config: Config, **changes: object) -> Config:
    """Return a configuration with some settings changed."""
    return msgspec.structs.replace(config, **changes)
