"""Walks a recording from flush to flush and judges every state that a cut may have left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from integration.crash.epochs import END, Cut, Depth, Epoch, Kind, cuts, kept, split, whole
from integration.crash.judge import Image, Judge, Judged
from integration.crash.medium import Medium, Region, Undo, split_disk
from integration.crash.recording import Recorded
from integration.crash.writelog import Record, WriteLog
from updater import gpt
from updater.errors import EnvironmentFailure
from updater.layouts import load_layout

log = logging.getLogger(__name__)

Content = Callable[[Record], bytes]


@dataclass(frozen=True, slots=True)
class Point:
    """A state that was judged: the epoch, the cut in it, and the verdict."""

    epoch: int
    cut: Cut
    judged: Judged

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.cut}"


@dataclass(slots=True)
class Walk:
    """What a walk over a recording has found.

    `loaders` has one point for each state that the loader can tell apart. `names` counts what lay among the entries,
    behind what lay there at the flush before.
    """

    points: int = 0
    epochs: int = 0
    writes: int = 0
    store_writes: int = 0
    forced: int = 0
    looked_at: dict[str, int] = field(default_factory=dict)
    distinct: set[tuple[int, ...]] = field(default_factory=set)
    disks: set[tuple[int, ...]] = field(default_factory=set)
    variable_changes: int = 0
    failures: list[Point] = field(default_factory=list)
    failed: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    touched: Counter[str] = field(default_factory=Counter)
    names: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=Counter)
    loaders: dict[str, Point] = field(default_factory=dict)
    phases: dict[str, Point] = field(default_factory=dict)
    stores: list[Point] = field(default_factory=list)
    ends: list[Point] = field(default_factory=list)
    seeds: list[Point] = field(default_factory=list)


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


def each_cut(medium: Medium, epoch: Epoch, depth: Depth, content: Content) -> Iterator[Cut]:
    """Yield every cut of an epoch with the medium as it would be left; at the end it holds all of the epoch.

    What differs between two cuts is written, not the whole epoch for each.
    """
    wanted = set(cuts(epoch, depth))
    for cut in cuts(epoch, depth):
        if cut.kind in (Kind.SEED, Kind.VARIABLES_ALONE):
            undo = medium.keep(kept(epoch, cut), content)
            yield cut
            medium.take_back(undo)
    undos: dict[int, Undo] = {}
    for record in epoch.records:
        undos[record.number] = medium.keep((whole(record),), content)
        for kind in (Kind.UP_TO, Kind.VARIABLES):
            if (cut := Cut(kind, record.number)) in wanted:
                yield cut
    for index, record in enumerate(epoch.records):
        if (cut := Cut(Kind.WITHOUT, record.number)) in wanted:
            undo = _leave_out(medium, undos[record.number], record, epoch.records[index + 1 :], content)
            yield cut
            medium.take_back(undo)
    yield END


def _leave_out(medium: Medium, old: Undo, left_out: Record, later: tuple[Record, ...], content: Content) -> Undo:
    """Take one write out of a medium that holds its whole epoch; return what puts it back."""
    undo: Undo = []
    for offset, data in old:
        undo += medium.put(offset, data)
    for record in later:
        low = max(record.offset, left_out.offset)
        high = min(record.offset + record.length_bytes, left_out.offset + left_out.length_bytes)
        if low < high:
            undo += medium.put(low, content(record)[low - record.offset : high - record.offset])
    return undo


def walk(
    recorded: Recorded,
    releases: dict[str, Image],
    folder: Path,
    depth: Depth,
    *,
    lying: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> Walk:
    """Judge every state that a cut during the recorded update may have left; `folder` is used as scratch.

    A `lying` disk has flushed nothing that it said it had: a judge that finds nothing wrong there would prove nothing.
    The first state that does not hold ends that walk.
    """
    parts, hash_offset = regions(recorded)
    split_disk(recorded.base, folder / "medium", parts)
    found = Walk()
    with WriteLog(recorded.log) as writes, Medium(folder / "medium", parts) as medium:
        firmware = load_layout(recorded.layout).boot.backend == "efi-bootnext"
        judge = Judge(medium, releases, recorded.disk_bytes, hash_offset, folder, firmware)
        records = (replace(record, flushes=False) if lying else record for record in writes.records())
        epochs = list(split(records, recorded.disk_bytes))
        found.epochs = len(epochs)
        variables = judge.variables().states
        for epoch in epochs:
            _count(found, epoch, parts)
            for cut in each_cut(medium, epoch, depth, writes.content):
                _note(found, Point(epoch.number, cut, judge.judge()), medium)
                if lying and found.failed:
                    return found
                if cut.kind in (Kind.VARIABLES, Kind.END):
                    before, variables = variables, judge.variables().states
                    found.variable_changes += before != variables
            if progress is not None:
                progress(epoch.number + 1, len(epochs), found.points)
        found.looked_at = judge.looked_at()
    return found


def states(recorded: Recorded, wanted: Iterable[tuple[int, Cut]], folder: Path) -> Iterator[Medium]:
    """Yield the medium as each wanted cut (an epoch's number, and the cut in it) leaves it, in the order of epochs."""
    parts, _ = regions(recorded)
    split_disk(recorded.base, folder / "medium", parts)
    left = sorted(wanted, key=lambda item: item[0])
    with WriteLog(recorded.log) as writes, Medium(folder / "medium", parts) as medium:
        for epoch in split(writes.records(), recorded.disk_bytes):
            while left and left[0][0] == epoch.number:
                undo = medium.keep(kept(epoch, left.pop(0)[1]), writes.content)
                yield medium
                medium.take_back(undo)
            if not left:
                return
            medium.keep(map(whole, epoch.records), writes.content)


def freeze(recorded: Recorded, epoch: int, cut: Cut, scratch: Path, out: Path) -> tuple[Path, Path]:
    """Write the disk and the variable store that a cut leaves into a folder; return both files."""
    for medium in states(recorded, [(epoch, cut)], scratch):
        return medium.freeze(out, recorded.disk_bytes, recorded.store_bytes)
    raise EnvironmentFailure(
        f"{recorded.log} has no epoch {epoch}", mend="see the report for those it has", reason="lab-log"
    )


def _note(found: Walk, point: Point, medium: Medium) -> None:
    judged, kind = point.judged, point.cut.kind
    found.points += 1
    found.kinds[kind] += 1
    found.distinct.add(tuple(medium.prints.values()))
    found.disks.add(tuple(value for name, value in medium.prints.items() if name != "store"))
    found.remarks.update(judged.remarks)
    found.names[found.ends[-1].judged.names if found.ends else judged.names, judged.names] += 1
    if judged.complaints:
        found.failed += 1
        if len(found.failures) < 200:
            found.failures.append(point)
            log.error("%s: %s", point, "; ".join(judged.complaints))
    found.loaders.setdefault(judged.loader, point)
    found.phases.setdefault(f"{judged.loader}, {judged.phase}", point)
    if kind is Kind.END:
        found.ends.append(point)
    elif kind is Kind.SEED:
        found.seeds.append(point)
    elif kind in (Kind.VARIABLES, Kind.VARIABLES_ALONE):
        found.stores.append(point)


def _count(found: Walk, epoch: Epoch, parts: tuple[Region, ...]) -> None:
    found.writes += len(epoch.writes)
    found.store_writes += len(epoch.store_writes)
    found.forced += sum(record.forced for record in epoch.records)
    for write in epoch.records:
        for region in parts:
            if region.offset <= write.offset < region.end:
                found.touched[region.name] += 1
