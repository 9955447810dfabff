"""A machine whose media forget what was not flushed: a `Node` on which power can be cut at every effect."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from tests.machine import Booted, SimulatedMachine, SimulatedNode
from tests.releases import Publisher, Release
from tests.simulated_variables import SimulatedEfiVariables
from tests.volatile_calls import mounted
from tests.volatile_cuts import Disk, Instant
from tests.volatile_files import Manners, VolatileFiles
from tests.volatile_sectors import SECTOR_BYTES, VolatileBlocks, VolatileDisk
from updater.boot.choose import TableAccess, open_backend
from updater.boot.protocol import BootBackend, BootFile
from updater.config import Config
from updater.efivars import EfiVariables, NoEfiVariables
from updater.errors import Refused, SlotDamaged
from updater.files import Below, Directory
from updater.gpt import Gpt
from updater.layouts import Layout, load_layout
from updater.manifest import BLOCK_BYTES
from updater.new_disk import new_disk_image
from updater.node.disk import LayoutDisk
from updater.node.protocol import Running
from updater.partition import write_table
from updater.plan import boot_files
from updater.records import release_record
from updater.situation import Situation
from updater.slots import Slot
from updater.steps.recover import recover
from updater.steps.session import Session, open_session
from updater.verity import prove

Role = Literal["data", "hash"]
PARTS: tuple[tuple[Slot, Role], ...] = ((Slot.A, "data"), (Slot.A, "hash"), (Slot.B, "data"), (Slot.B, "hash"))
_TABLE_SECTORS = 128
# Files that say which release boots, and not what it is.
_RECORDS = re.compile("ledger|entries|env-|release-")


@dataclass
class World:
    """A layout, a repository, and all releases that there are.

    For proof that the tests can fail, `lies` are flushes that do nothing, and `changed_order` spoils a back end.
    """

    layout: Layout
    publisher: Publisher
    releases: tuple[Release, ...]
    scratch: Path
    lies: frozenset[str] = frozenset()
    flushed: set[str] = field(default_factory=set)
    updated: set[object] = field(default_factory=set)
    renewed: set[object] = field(default_factory=set)
    _verified: dict[tuple[object, ...], bool] = field(default_factory=dict)
    changed_order: Callable[[BootBackend], BootBackend] = lambda backend: backend
    _whole: dict[tuple[object, ...], bool] = field(default_factory=dict)

    @property
    def slot_bytes(self) -> Mapping[Role, int]:
        """Return the lengths of a slot's partitions."""
        return {
            "data": max(len(release.image) for release in self.releases) + 2 * BLOCK_BYTES,
            "hash": max(len(release.tree) for release in self.releases) + 2 * BLOCK_BYTES,
        }

    def factory(self) -> Disk:
        """Return the disk of a new machine that ships the first release."""
        shipped = SimulatedMachine(
            self.releases[0],
            mirror=self.publisher.mirror,
            roots=self.publisher.roots,
            layout=self.layout.name,
        )
        table = shipped.table
        ends = {0: bytearray(_TABLE_SECTORS * SECTOR_BYTES)}
        first = (table.disk_sectors - _TABLE_SECTORS) * SECTOR_BYTES
        ends[first] = bytearray(_TABLE_SECTORS * SECTOR_BYTES)
        for offset, raw in new_disk_image(table):
            base = first if offset >= first else 0
            ends[base][offset - base : offset - base + len(raw)] = raw
        efi = shipped.efi.values if isinstance(shipped.efi, SimulatedEfiVariables) else {}
        lengths = self.slot_bytes
        return Disk(
            shipped.esp.files,
            shipped.state.files,
            tuple(bytes(shipped.partitions[part].content[: lengths[part[1]]]) for part in PARTS),
            tuple(bytes(end) for end in ends.values()),
            dict(efi),
        )

    @cached_property
    def disk_bytes(self) -> int:
        """Return the disk's length."""
        from updater.new_disk import disk_bytes

        return disk_bytes(self.layout)

    def is_whole(self, data: VolatileBlocks, hashes: VolatileBlocks, release: Release) -> bool:
        """Tell whether partitions hold a release's image and tree; what was read once is known."""
        length, tree = len(release.image), len(release.tree) + BLOCK_BYTES
        key = (data.read(0, length), hashes.read(0, tree), release.version)
        if key not in self._whole:
            try:
                prove(data, hashes, release.manifest.root)
                self._whole[key] = True
            except SlotDamaged:
                self._whole[key] = False
        return self._whole[key]


class VolatileMachine(SimulatedNode):
    """A `Node` on volatile media; `instants` collects the state after each effect."""

    partial: Path | None = None

    def __init__(self, world: World, disk: Disk, *, boots: int = 0) -> None:
        """Take the media as they lie; `power_on` comes next."""
        self.world = world
        self.layout = world.layout
        self.config = Config(mirrors=[str(world.publisher.mirror)], reboot="manual")
        self.boots = boots
        self.instants: list[Instant] = []
        self.reboots: list[str] = []
        self.command_line = ""
        self.booted: Booted | None = None
        self._records = False
        tell, lies = self._tell, world.lies
        self.esp_files = VolatileFiles("esp", Manners.FAT, disk.esp, tell=tell, lies=lies)
        self.state_files = VolatileFiles("state", Manners.EXT4, disk.state, tell=tell, lies=lies)
        self.partitions = {
            part: VolatileBlocks(f"slot {part[0]} {part[1]}", content, tell=tell, guard=self._guard(part[0]), lies=lies)
            for part, content in zip(PARTS, disk.slots, strict=True)
        }
        end = world.disk_bytes - len(disk.table[1])
        self.disk = VolatileDisk(world.disk_bytes, {0: disk.table[0], end: disk.table[1]}, tell=tell, lies=lies)
        self._disk = LayoutDisk("the disk", self.layout, self.disk.table, self._write_table)
        self.variables = SimulatedEfiVariables(volatile=True, tell=tell)
        self.variables.values = dict(disk.efi)
        self.efi: EfiVariables = (
            self.variables if self.layout.boot.backend == "efi-bootnext" else NoEfiVariables("none are needed here")
        )
        self.esp: Directory = mounted(self.esp_files)
        self.state: Directory = mounted(self.state_files)
        self.trust: Directory = Below(self.state, "trust")

    def _guard(self, slot: Slot) -> Callable[[], None]:
        def refuse() -> None:
            assert self.booted is None or self.booted.slot is not slot, f"the running slot {slot} was written"

        return refuse

    def _tell(self, effect: str) -> None:
        if self._records:
            self.instants.append(self._instant(effect))

    def _instant(self, effect: str) -> Instant:
        return Instant(
            effect,
            self.booted is not None,
            dict(self.esp_files.nodes),
            dict(self.state_files.nodes),
            tuple(self.partitions[part].sectors() for part in PARTS),
            self.disk.sectors(),
            # Which option was booted is told in memory only.
            {key: value for key, value in self.variables.values.items() if key[1] != "BootCurrent"},
        )

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[Instant]]:
        """Collect the instants of what is done inside, the one before its first effect included."""
        self.instants = [self._instant("nothing yet")]
        self._records = True
        try:
            yield self.instants
        finally:
            self._records = False
            self.world.flushed |= self.flushed

    @property
    def flushed(self) -> set[str]:
        """Return the labels of all flushes so far."""
        files = self.esp_files.flushed | self.state_files.flushed
        return files.union(self.disk.flushed, *(blocks.flushed for blocks in self.partitions.values()))

    def off(self) -> Disk:
        """Return the media of a machine that was shut down in peace."""
        now = self._instant("off")
        return Disk(
            self.esp_files.files,
            self.state_files.files,
            tuple(self.partitions[part].read(0, self.partitions[part].length_bytes) for part in PARTS),
            tuple(part.after_cut({at: len(values) for at, values in part.pending.items()}) for part in now.table),
            now.efi,
        )

    # What the steps ask for.

    @property
    def boot(self) -> BootBackend:
        backend = open_backend(
            self.layout,
            esp=self.esp,
            efi=self.efi,
            table=TableAccess(self.disk.table, self._write_table),
            part_uuid=self._disk.boot_partition().unique_guid,
            boot_id=self.boot_id() if self.layout.boot.backend == "efi-bootnext" else "",
            command_line=self.command_line,
        )
        return self.world.changed_order(backend)

    def _write_table(self, table: Gpt) -> None:
        write_table(self.disk, table)

    def running(self) -> Running:
        assert self.booted is not None
        return Running(self.booted.slot, self.booted.root_hash, self.booted.version)

    def blocks(self, slot: Slot, role: Role, *, writable: bool = False) -> VolatileBlocks:
        if writable and self.booted is not None and slot is self.booted.slot:
            raise Refused("the running slot is never written", reason="running-slot")
        return self.partitions[slot, role]

    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def now(self) -> datetime:
        return datetime(2026, 11, 20, 12, tzinfo=UTC)

    def bootstrap_roots(self) -> Sequence[Path]:
        return self.world.publisher.roots

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        self.world.scratch.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.world.scratch) as folder:
            yield Path(folder)

    # What a test does to it.

    def session(self) -> Session:
        """Begin a run of the updater."""
        return open_session(self)

    def recover(self) -> Situation:
        """Do what the service does at start-up."""
        return recover(self.session(), None)

    def power_on(self) -> Booted:
        """Boot what the loader's model says, with its count, whose cuts are recorded as well."""
        from tests.volatile_loaders import power_on

        self.booted = None
        slot, entry = power_on(self)
        self.boots += 1
        self.reboots.clear()
        release = self.release_in(slot)
        assert release is not None, f"the loader starts {entry}, and slot {slot} holds no release whole"
        self.booted = Booted(slot, entry, release.version, release.manifest.root.root_hash)
        return self.booted

    def release_in(self, slot: Slot) -> Release | None:
        """Return the release that a slot holds whole, boot files and PARTUUIDs included."""
        backend = self.boot
        labelled = self.root_hash_in(slot)
        for release in self.world.releases:
            root = release.manifest.root
            if labelled in (None, root.root_hash) and self.world.is_whole(
                self.partitions[slot, "data"], self.partitions[slot, "hash"], release
            ):
                return release if self._verifies(backend, slot, release) else None
        return None

    def _verifies(self, backend: BootBackend, slot: Slot, release: Release) -> bool:
        """Tell whether a slot's boot files are those of a release; the same files are read once."""
        decides = frozenset(item for item in self.esp_files.files.items() if not _RECORDS.search(item[0]))
        known, key = self.world._verified, (slot, release.version, decides)
        if key not in known:
            known[key] = not backend.verify(slot, self.files_of(release, slot))
        return known[key]

    def files_of(self, release: Release, slot: Slot) -> tuple[BootFile, ...]:
        """Return the boot files that a slot needs for a release."""
        return tuple(boot_files(release_record(release.manifest, release.raw), slot))


def make_world(layout: str, publisher: Publisher, releases: tuple[Release, ...], scratch: Path) -> World:
    """Return the world of a layout."""
    return World(load_layout(layout), publisher, releases, scratch)
