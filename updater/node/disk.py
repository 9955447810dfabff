"""A disk read through its layout: which partition is which slot's, and what its PARTUUIDs say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from updater.errors import EnvironmentFailure
from updater.gpt import Gpt, Partition
from updater.layouts import Layout, LayoutPartition, Role
from updater.slots import Slot


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a partition: all of it, or a part."""

    partition: Partition
    offset_bytes: int
    length_bytes: int


class LayoutDisk:
    """The partitions of one disk, found by the labels of its layout.

    Raises EnvironmentFailure naming disk and label when a partition is missing, bears the wrong type, or stands twice.
    """

    def __init__(
        self, disk_name: str, layout: Layout, read_gpt: Callable[[], Gpt], write_gpt: Callable[[Gpt], None]
    ) -> None:
        """Match the table that `read_gpt` returns with the layout; `write_gpt` makes a changed one durable."""
        self._name = disk_name
        self._layout = layout
        self._read_gpt = read_gpt
        self._write_gpt = write_gpt
        table = read_gpt()
        self._numbers = {
            wanted.label: self._find(table, wanted).number
            for wanted in layout.partitions
            if not wanted.optional or table.named(wanted.label)
        }

    def boot_partition(self) -> Partition:
        """Return the FAT partition with the boot files as the disk's table describes it now."""
        return self._now(self._layout.boot_partition)

    def partition(self, role: Role, slot: Slot | None = None) -> Partition:
        """Return a partition as the disk's table describes it now; LookupError when the layout has none."""
        return self._now(self._layout.partition(role, slot))

    def _now(self, wanted: LayoutPartition) -> Partition:
        number = self._numbers[wanted.label]
        return next(found for found in self._read_gpt().partitions if found.number == number)

    def slot_of(self, number: int) -> Slot | None:
        """Return the slot that a partition belongs to."""
        for wanted in self._layout.partitions:
            if self._numbers.get(wanted.label) == number:
                return wanted.slot
        return None

    def slot_place(self, slot: Slot, role: Literal["data", "hash"]) -> Place:
        """Return where a slot's image or hash tree lies: a partition of its own, or a part of the data partition."""
        data = self._layout.partition("data", slot)
        split = data.hash_offset_bytes
        if split is None:
            partition = self.partition(role, slot)
            return Place(partition, 0, partition.length_bytes)
        partition = self._now(data)
        if partition.length_bytes <= split:
            raise EnvironmentFailure(
                f"partition {partition.number} ({data.label}) of {self._name} has {partition.length_bytes} bytes, the "
                f"layout {self._layout.name} keeps a hash tree from byte {split} on",
                mend="name the layout of this disk in the configuration (`layout:`)",
                reason="layout-mismatch",
            )
        return Place(partition, 0, split) if role == "data" else Place(partition, split, partition.length_bytes - split)

    def root_hash_in(self, slot: Slot) -> str | None:
        """Return the root hash that the slot's two PARTUUIDs spell, None where the layout does not make them so."""
        data = self._layout.partition("data", slot)
        if data.hash_offset_bytes is not None:
            return None
        tree = self._layout.partition("hash", slot)
        if (data.partuuid, tree.partuuid) != ("root-hash-head", "root-hash-tail"):
            return None
        return self.partition("data", slot).unique_guid.hex + self.partition("hash", slot).unique_guid.hex

    def label(self, slot: Slot, root_hash: str) -> None:
        """Give the slot's partitions the PARTUUIDs for `root_hash`, unless both copies of the table say so already."""
        table = self._read_gpt()
        changed = table
        for wanted in self._layout.partitions:
            uuid = wanted.partuuid_for(root_hash)
            if wanted.slot is slot and uuid is not None and self._current(changed, wanted) != uuid:
                changed = changed.with_partition(self._numbers[wanted.label], unique_guid=uuid)
        if changed != table or not table.consistent:
            self._write_gpt(changed)

    def problem(self) -> str:
        """Return one sentence on what is wrong with the table's two copies, empty when they agree."""
        table = self._read_gpt()
        if table.consistent:
            return ""
        if not table.primary_ok or not table.backup_ok:
            which = "backup" if table.primary_ok else "primary"
            return f"the {which} copy of the partition table of {self._name} is damaged or missing"
        return f"the two copies of the partition table of {self._name} differ: the backup is stale"

    def mend(self) -> bool:
        """Write both copies of the table as the one in use has it; tell whether there was anything to do."""
        table = self._read_gpt()
        if table.consistent:
            return False
        self._write_gpt(table)
        return True

    def _current(self, table: Gpt, wanted: LayoutPartition) -> UUID:
        number = self._numbers[wanted.label]
        return next(found.unique_guid for found in table.partitions if found.number == number)

    def _find(self, table: Gpt, wanted: LayoutPartition) -> Partition:
        found = [partition for partition in table.partitions if partition.name == wanted.label]
        if len(found) != 1:
            raise EnvironmentFailure(
                f"{self._name} has {len(found)} partitions labelled {wanted.label!r}, the layout {self._layout.name} "
                "has one",
                mend="name the layout of this disk in the configuration (`layout:`), or mend the label",
                reason="layout-mismatch",
            )
        (partition,) = found
        if partition.type_guid != UUID(wanted.type_guid):
            raise EnvironmentFailure(
                f"partition {partition.number} ({wanted.label}) of {self._name} has type {partition.type_guid}, the "
                f"layout {self._layout.name} says {wanted.type_guid}",
                mend="name the layout of this disk in the configuration (`layout:`)",
                reason="layout-mismatch",
            )
        if wanted.fixed_partuuid not in (None, partition.unique_guid):
            raise EnvironmentFailure(
                f"partition {partition.number} ({wanted.label}) of {self._name} has PARTUUID {partition.unique_guid}, "
                f"the layout {self._layout.name} says {wanted.fixed_partuuid}: what is booted would not find it",
                mend=f"give it that PARTUUID with `sgdisk -u {partition.number}:{wanted.fixed_partuuid}`, or name this "
                "disk's layout in the configuration (`layout:`)",
                reason="layout-mismatch",
            )
        return partition


class OnLayoutDisk:
    """What every `Node` answers alike whose slots lie on a `LayoutDisk`."""

    _disk: LayoutDisk

    def root_hash_in(self, slot: Slot) -> str | None:
        return self._disk.root_hash_in(slot)

    def label_slot(self, slot: Slot, root_hash: str) -> None:
        self._disk.label(slot, root_hash)

    def gpt_problem(self) -> str:
        return self._disk.problem()

    def mend_gpt(self) -> bool:
        return self._disk.mend()
