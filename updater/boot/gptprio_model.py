"""A model of the loaders that choose a slot by the priority, tries and successful bits of its partition entry.

Source: `gptprio.next` of Flatcar's and CoreOS's GRUB (commands/gptprio.c, lib/gpt.c), whose bits are ChromeOS's. It
reads the primary copy of the table, or the backup where the primary is damaged. Before it boots a slot with tries it
takes one and writes the backup copy, then the primary, each header before its entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from updater.gpt import Gpt, Partition

HIGHEST = 15
_PRIORITY_BIT, _TRIES_BIT, _SUCCESSFUL_BIT = 48, 52, 56
_FOUR_BITS = 0xF
_OURS = (_FOUR_BITS << _PRIORITY_BIT) | (_FOUR_BITS << _TRIES_BIT) | (1 << _SUCCESSFUL_BIT)


@dataclass(frozen=True, slots=True)
class SlotBits:
    """What a partition's attributes say to the loader: `priority` and `tries` are 0 to 15."""

    priority: int = 0
    tries: int = 0
    successful: bool = False

    @property
    def is_bootable(self) -> bool:
        """Tell whether the loader may choose it."""
        return self.priority > 0 and (self.tries > 0 or self.successful)

    @property
    def is_good(self) -> bool:
        """Tell whether it is chosen without being counted, for ever."""
        return self.priority > 0 and self.successful and self.tries == 0

    def into(self, attributes: int) -> int:
        """Return partition attributes with these bits, and all others as they were."""
        if not (0 <= self.priority <= HIGHEST and 0 <= self.tries <= HIGHEST):
            raise ValueError(f"{self} does not fit four bits each")
        bits = self.priority << _PRIORITY_BIT | self.tries << _TRIES_BIT | self.successful << _SUCCESSFUL_BIT
        return attributes & ~_OURS | bits


def slot_bits(attributes: int) -> SlotBits:
    """Return what partition attributes say to the loader."""
    return SlotBits(
        attributes >> _PRIORITY_BIT & _FOUR_BITS,
        attributes >> _TRIES_BIT & _FOUR_BITS,
        bool(attributes >> _SUCCESSFUL_BIT & 1),
    )


def choose(table: Gpt, type_guid: UUID) -> Partition | None:
    """Return the partition of a type that would boot now; None when none is bootable.

    The highest priority wins, the first of equals.
    """
    found: Partition | None = None
    highest = 0
    for partition in table.partitions:
        bits = slot_bits(partition.attributes)
        if partition.type_guid == type_guid and bits.is_bootable and bits.priority > highest:
            found, highest = partition, bits.priority
    return found


def boot(table: Gpt, type_guid: UUID) -> tuple[Partition | None, Gpt]:
    """Return what boots, and the table that the loader leaves behind; an equal one where it writes nothing."""
    chosen = choose(table, type_guid)
    if chosen is None:
        return None, table
    bits = slot_bits(chosen.attributes)
    if not bits.tries:
        return chosen, table
    counted = replace(bits, tries=bits.tries - 1)
    return chosen, table.with_partition(chosen.number, attributes=counted.into(chosen.attributes))


def loader_writes(table: Gpt) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, bytes) in the order in which the loader writes a counted table.

    It changes the entries in place, and flushes nothing in between.
    """
    in_place = replace(table, spare_array_lba=None)
    yield from reversed(in_place.backup_image())
    yield from reversed(in_place.primary_image())
