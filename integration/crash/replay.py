"""Walks a recording from flush to flush and judges every state that a cut may have left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from integration.crash.epochs import Epoch, cuts, split, whole
from integration.crash.judge import Image, Judge, Judged
from integration.crash.medium import Medium, Region, split_disk
from integration.crash.recording import Recorded
from integration.crash.writelog import Record, WriteLog
from updater import gpt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Depth:
    """How much of each epoch is tried: seeded subsets, single writes dropped, states replayed (None: all of them).

    The state partition's own journal is replayed at flush boundaries only, at most at so many of them.
    """

    subsets: int = 3
    most_dropped: int | None = None
    most_memories: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A state that was judged: the epoch, how the cut was chosen (None: its end), and the verdict."""

    epoch: int
    how: str | None
    judged: Judged


@dataclass(slots=True)
class Walk:
    """What a walk over a recording has found."""

    points: int = 0
    boundaries: int = 0
    writes: int = 0
    store_writes: int = 0
    looked_at: int = 0
    distinct: set[tuple[int, ...]] = field(default_factory=set)
    failures: list[Point] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    ends: list[Point] = field(default_factory=list)
    signatures: dict[str, Point] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    touched: Counter[str] = field(default_factory=Counter)


def regions(recorded: Recorded) -> tuple[tuple[Region, ...], int]:
    """Return the regions of a recorded disk, and where in a slot's region its hash partition begins."""
    with recorded.base.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        table = gpt.parse(read, recorded.disk_bytes, 512)
    place = {partition.name: partition for partition in table.partitions}
    first = min(partition.offset_bytes for partition in table.partitions)
    found = [Region("head", 0, first)]
    for name, low, high in (
        ("esp", "esp", "esp"),
        ("slot-a", "root-a", "root-a-verity"),
        ("slot-b", "root-b", "root-b-verity"),
        ("state", "state", "state"),
    ):
        start = place[low].offset_bytes
        end = place[high].offset_bytes + place[high].length_bytes
        if start != found[-1].end:
            found.append(Region(f"gap-{name}", found[-1].end, start - found[-1].end))
        found.append(Region(name, start, end - start))
    found.append(Region("tail", found[-1].end, recorded.disk_bytes - found[-1].end))
    found.append(Region("store", recorded.disk_bytes, recorded.store_bytes))
    return tuple(found), place["root-a-verity"].offset_bytes - place["root-a"].offset_bytes


def walk(
    recorded: Recorded,
    releases: dict[str, Image],
    folder: Path,
    depth: Depth,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Walk:
    """Judge every state that a cut during the recorded update may have left; `folder` is used as scratch."""
    parts, hash_offset = regions(recorded)
    split_disk(recorded.base, folder / "medium", parts)
    found = Walk()
    with WriteLog(recorded.log) as writes, Medium(folder / "medium", parts) as medium:
        judge = Judge(medium, releases, recorded.disk_bytes, hash_offset, folder)
        epochs = list(split(writes.records()))
        every = 1 if depth.most_memories is None else max(1, len(epochs) // depth.most_memories)
        for epoch in epochs:
            stores, disk = _parted(epoch, recorded.disk_bytes)
            found.writes += len(disk.writes)
            found.store_writes += len(stores)
            _count_touched(found, disk, parts)
            for cut in cuts(
                disk, subsets=depth.subsets if len(disk.writes) > 1 else 1, most_dropped=depth.most_dropped
            ):
                undo = medium.keep(cut.kept, writes.content)
                _note(found, Point(epoch.number, cut.how, judge.judge(with_state=False)), medium)
                medium.take_back(undo)
            # What the firmware's store was told is durable at once.
            medium.keep(map(whole, (*stores, *disk.writes)), writes.content)
            with_state = epoch.number % every == 0 or epoch is epochs[-1]
            _note(found, Point(epoch.number, None, judge.judge(with_state=with_state)), medium)
            found.boundaries += 1
            if progress is not None:
                progress(epoch.number + 1, len(epochs))
        found.looked_at = judge.count
    return found


def states(recorded: Recorded, wanted: list[int], folder: Path) -> Iterator[tuple[int, Medium]]:
    """Yield the medium as it is at the end of each wanted epoch, in order."""
    parts, _ = regions(recorded)
    split_disk(recorded.base, folder / "medium", parts)
    left = sorted(set(wanted))
    with WriteLog(recorded.log) as writes, Medium(folder / "medium", parts) as medium:
        for epoch in split(writes.records()):
            if not left:
                return
            medium.keep(map(whole, epoch.writes), writes.content)
            if epoch.number == left[0]:
                left.pop(0)
                yield epoch.number, medium


def _parted(epoch: Epoch, disk_bytes: int) -> tuple[tuple[Record, ...], Epoch]:
    stores = tuple(write for write in epoch.writes if write.offset >= disk_bytes)
    disk = tuple(write for write in epoch.writes if write.offset < disk_bytes)
    return stores, Epoch(epoch.number, disk, epoch.ends_with_flush)


def _note(found: Walk, point: Point, medium: Medium) -> None:
    found.points += 1
    found.kinds["a flush boundary" if point.how is None else point.how.split()[0]] += 1
    found.distinct.add(tuple(medium.prints.values()))
    found.remarks.update(point.judged.remarks)
    if point.judged.complaints:
        found.failures.append(point)
        log.error("epoch %d, %s: %s", point.epoch, point.how or "its end", "; ".join(point.judged.complaints))
    if point.how is None:
        found.ends.append(point)
        found.signatures.setdefault(point.judged.signature, point)


def _count_touched(found: Walk, epoch: Epoch, parts: tuple[Region, ...]) -> None:
    for write in epoch.writes:
        for region in parts:
            if region.offset <= write.offset < region.end:
                found.touched[region.name] += 1
