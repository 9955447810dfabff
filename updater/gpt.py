"""GUID partition tables as values: parsed from hostile bytes, changed, and serialised again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Partition:
    """One used entry; `number` counts from 1, LBAs are inclusive."""

    number: int
    type_guid: UUID
    unique_guid: UUID
    first_lba: int
    last_lba: int
    name: str
    attributes: int
    sector_bytes: int

    @property
    def offset_bytes(self) -> int:
        """Return where the partition begins on its disk."""
        return self.first_lba * self.sector_bytes

    @property
    def length_bytes(self) -> int:
        """Return the partition's length."""
        return (self.last_lba - self.first_lba + 1) * self.sector_bytes


@dataclass(frozen=True, slots=True)
class Gpt:
    """A disk's partition table, as its readers see it."""

    disk_guid: UUID
    partitions: tuple[Partition, ...]
    primary_ok: bool
    backup_ok: bool

    def with_partition(
        self, number: int, *, unique_guid: UUID | None = None, name: str | None = None, attributes: int | None = None
    ) -> Gpt:
        """Return the table with one entry changed."""
        raise NotImplementedError


def parse(read: Callable[[int, int], bytes], disk_bytes: int, sector_bytes: int | None = None) -> Gpt:
    """Parse both copies of a disk's table as hostile input; raise EnvironmentFailure."""
    raise NotImplementedError
