"""Which writes a disk may have kept when its power failed between two flushes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from integration.crash.writelog import Record

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Epoch:
    """The writes between two flushes, in the order in which they completed.

    What was written before is durable; of these a cut may keep any. `ends_with_flush` is False for the last one only.
    """

    number: int
    writes: tuple[Record, ...]
    ends_with_flush: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A write of which these byte ranges (offset in the write, length) reached the disk."""

    write: Record
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """One state that a cut may leave: what is kept of an epoch, and how that was chosen."""

    how: str
    kept: tuple[Kept, ...]


def split(records: Iterable[Record]) -> Iterator[Epoch]:
    """Yield the epochs of a log; a flush without writes before it makes none."""
    writes: list[Record] = []
    number = 0
    for record in records:
        # A flush that carries bytes covers what completed before it; its own bytes come after, and are kept at once
        # only where they are forced.
        if record.flushes and writes:
            yield Epoch(number, tuple(writes), ends_with_flush=True)
            number += 1
            writes = []
        if record.length_bytes:
            writes.append(record)
            if record.forced:
                yield Epoch(number, tuple(writes), ends_with_flush=True)
                number += 1
                writes = []
    if writes:
        yield Epoch(number, tuple(writes), ends_with_flush=False)


def cuts(epoch: Epoch, *, subsets: int, most_dropped: int | None = None) -> Iterator[Cut]:
    """Yield what a cut within an epoch may leave, other than all and nothing: those are the epochs' ends.

    Each single write dropped (`most_dropped` of them, spread evenly, where that is fewer), each prefix of the order of
    completion at the same writes, and `subsets` seeded choices in which each write is kept, dropped or torn.
    """
    writes = epoch.writes
    if len(writes) > 1:
        for index in _spread(len(writes), most_dropped):
            kept = tuple(whole(write) for at, write in enumerate(writes) if at != index)
            yield Cut(f"without write {writes[index].number}", kept)
        for index in _spread(len(writes) - 1, most_dropped):
            yield Cut(f"up to write {writes[index].number}", tuple(map(whole, writes[: index + 1])))
    for seed in range(subsets):
        chosen = random.Random(f"{epoch.number}/{seed}")
        yield Cut(f"seed {seed}", tuple(_torn(writes, chosen)))


def whole(write: Record) -> Kept:
    """Return a write that reached the disk from end to end."""
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
