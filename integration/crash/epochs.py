"""Which writes a disk may have kept when its power failed between two flushes.

Disk and variable store share one log. What the store is told is durable at once, and in order; what the disk is told
is durable after the next flush, and until then any subset of it may be.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from integration.crash.writelog import Record

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Epoch:
    """The requests between two flushes, in the order in which they completed: the disk's writes, and the store's.

    What was written before is durable. `ends_with_flush` is False for the last one only.
    """

    number: int
    records: tuple[Record, ...]
    store_at: int
    ends_with_flush: bool

    @property
    def writes(self) -> tuple[Record, ...]:
        """Return the writes to the disk."""
        return tuple(record for record in self.records if record.offset < self.store_at)

    @property
    def store_writes(self) -> tuple[Record, ...]:
        """Return the writes to the variable store."""
        return tuple(record for record in self.records if record.offset >= self.store_at)


@dataclass(frozen=True, slots=True)
class Kept:
    """A write of which these byte ranges (offset in the write, length) reached the disk."""

    write: Record
    ranges: tuple[tuple[int, int], ...]


class Kind(Enum):
    """How a cut chooses among an epoch's writes."""

    END = "the end"
    UP_TO = "up to write"
    WITHOUT = "without write"
    SEED = "seed"
    VARIABLES = "variables up to write"
    VARIABLES_ALONE = "only variables up to write"


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """One state that a cut may leave: how its writes are chosen, and by which of them (or which seed)."""

    kind: Kind
    at: int = 0

    def __str__(self) -> str:
        return self.kind.value if self.kind is Kind.END else f"{self.kind.value} {self.at}"


END = Cut(Kind.END)


@dataclass(frozen=True, slots=True)
class Depth:
    """How much of each epoch is tried: seeded subsets, and single writes dropped or last (None: all of them)."""

    subsets: int = 3
    most_single: int | None = None


def split(records: Iterable[Record], store_at: int) -> Iterator[Epoch]:
    """Yield the epochs of a log whose disk ends at byte `store_at`; a flush without writes before it makes none."""
    held: list[Record] = []
    number = 0
    for record in records:
        # A flush that carries bytes covers what completed before it; its own bytes come after, and are kept at once
        # only where they are forced.
        if record.flushes and held:
            yield Epoch(number, tuple(held), store_at, ends_with_flush=True)
            number += 1
            held = []
        if record.length_bytes:
            held.append(record)
            if record.forced:
                yield Epoch(number, tuple(held), store_at, ends_with_flush=True)
                number += 1
                held = []
    if held:
        yield Epoch(number, tuple(held), store_at, ends_with_flush=False)


def cuts(epoch: Epoch, depth: Depth) -> Iterator[Cut]:
    """Yield every cut of an epoch that is tried, other than nothing, which is the end of the one before.

    Seeded choices in which each write is kept, dropped or torn at a sector; each prefix of the order of completion;
    each change of the variable store, with and without the disk's writes before it; each single write dropped.
    """
    writes, stores = epoch.writes, epoch.store_writes
    if writes:
        yield from (Cut(Kind.SEED, seed) for seed in range(depth.subsets if len(writes) > 1 else 1))
        yield from (Cut(Kind.VARIABLES_ALONE, write.number) for write in stores if write.number > writes[0].number)
    singles = {writes[index].number for index in _spread(len(writes), depth.most_single)}
    for record in epoch.records:
        if record is epoch.records[-1]:
            break
        if record.offset >= epoch.store_at:
            yield Cut(Kind.VARIABLES, record.number)
        elif record.number in singles:
            yield Cut(Kind.UP_TO, record.number)
    if len(writes) > 1:
        yield from (Cut(Kind.WITHOUT, number) for number in sorted(singles))
    yield END


def kept(epoch: Epoch, cut: Cut) -> tuple[Kept, ...]:
    """Return what a cut leaves of an epoch, in the order of the log."""
    up_to = [record for record in epoch.records if record.number <= cut.at]
    if cut.kind is Kind.END:
        return tuple(map(whole, epoch.records))
    if cut.kind in (Kind.UP_TO, Kind.VARIABLES):
        return tuple(map(whole, up_to))
    if cut.kind is Kind.VARIABLES_ALONE:
        return tuple(whole(record) for record in up_to if record.offset >= epoch.store_at)
    if cut.kind is Kind.WITHOUT:
        return tuple(whole(record) for record in epoch.records if record.number != cut.at)
    chosen = tuple(_torn(epoch.writes, random.Random(f"{epoch.number}/{cut.at}")))
    return (*map(whole, epoch.store_writes), *chosen)


def whole(write: Record) -> Kept:
    """Return a write that arrived from end to end."""
    return Kept(write, ((0, write.length_bytes),))


def _torn(writes: Sequence[Record], chosen: random.Random) -> Iterator[Kept]:
    for write in writes:
        sectors = write.length_bytes // SECTOR_BYTES
        fate = chosen.random()
        if fate < 0.4:
            yield whole(write)
        elif fate < 0.75 and sectors > 1:
            edge = chosen.randrange(1, sectors) * SECTOR_BYTES
            head, tail = (0, edge), (edge, write.length_bytes - edge)
            yield Kept(write, (head if chosen.random() < 0.7 else tail,))


def _spread(count: int, most: int | None) -> Iterable[int]:
    if most is None or most >= count:
        return range(count)
    return sorted({index * count // most for index in range(most)})
