"""A disk's partition table compared with a layout: what differs, what that means, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal
from uuid import UUID

from updater.gpt import Gpt, Partition
from updater.layouts import Layout, LayoutPartition
from updater.slots import Slot

_LAYOUT_MEND = "name this disk's layout in the configuration (`layout:`)"


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference; a `problem` keeps updates from working, a `note` does not."""

    kind: Literal["problem", "note"]
    label: str
    sentence: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A partition of the layout and what stands for it on the disk; one of them may be None."""

    wanted: LayoutPartition | None
    partition: Partition | None


def matched(layout: Layout, table: Gpt) -> tuple[Found, ...]:
    """Return the disk's partitions in disk order, each with its part in the layout, then those that are missing."""
    wanted = {partition.label: partition for partition in layout.partitions}
    on_disk = sorted(table.partitions, key=lambda partition: partition.first_lba)
    names = {partition.name for partition in on_disk}
    present = tuple(Found(wanted.get(partition.name), partition) for partition in on_disk)
    return present + tuple(Found(item, None) for label, item in wanted.items() if label not in names)


def compare(layout: Layout, table: Gpt) -> tuple[Finding, ...]:
    """Return all that differs, problems first."""
    found = [*_table(table), *_missing(layout, table), *_present(layout, table), *_slots(layout, table)]
    found += _places(layout, table)
    return tuple(sorted(found, key=lambda finding: finding.kind != "problem"))


def root_hash_told(layout: Layout, table: Gpt, slot: Slot) -> str | None:
    """Return the root hash that a slot's PARTUUIDs spell, None where the layout's or the disk's do not tell."""
    rules = [p for p in layout.partitions if p.slot is slot and (p.partuuid or "").startswith("root-hash-")]
    pieces: dict[str, str] = {}
    for rule in rules:
        partition = _only(table, rule.label)
        if partition is not None and rule.partuuid is not None:
            pieces[rule.partuuid] = partition.unique_guid.hex
    head, tail = pieces.get("root-hash-head"), pieces.get("root-hash-tail")
    return head + tail if head and tail else None


def _only(table: Gpt, label: str) -> Partition | None:
    found = [partition for partition in table.partitions if partition.name == label]
    return found[0] if len(found) == 1 else None


def _table(table: Gpt) -> Iterator[Finding]:
    if table.consistent:
        return
    if table.primary_ok and table.backup_ok:
        why = "the two copies of the partition table differ: the backup is stale"
    else:
        why = f"the {'backup' if table.primary_ok else 'primary'} copy of the partition table is damaged or missing"
    yield Finding("problem", "", why, "`acl-updater layout check --repair` writes both copies as the one in use has it")


def _missing(layout: Layout, table: Gpt) -> Iterator[Finding]:
    for wanted in layout.partitions:
        if any(partition.name == wanted.label for partition in table.partitions):
            continue
        if wanted.optional:
            yield Finding(
                "note", wanted.label, f"there is no partition {wanted.label}, which the layout can do without"
            )
            continue
        other = _renamed(layout, table, wanted)
        if other is None:
            yield Finding("problem", wanted.label, f"there is no partition labelled {wanted.label}", _LAYOUT_MEND)
        else:
            yield Finding(
                "problem",
                wanted.label,
                f"there is no partition labelled {wanted.label}; partition {other.number}, labelled {other.name!r}, is "
                "like it: it may have been renamed",
                f"`sgdisk -c {other.number}:{wanted.label} DISK` gives it the label, if it is the one",
            )


def _renamed(layout: Layout, table: Gpt, wanted: LayoutPartition) -> Partition | None:
    """Return the one stranger that has the PARTUUID, or else the type, of the partition that is missing."""
    labels = {partition.label for partition in layout.partitions}
    strangers = [partition for partition in table.partitions if partition.name not in labels]
    for like in (
        [partition for partition in strangers if partition.unique_guid == wanted.fixed_partuuid],
        [partition for partition in strangers if partition.type_guid == UUID(wanted.type_guid)],
    ):
        if len(like) == 1:
            return like[0]
    return None


def _present(layout: Layout, table: Gpt) -> Iterator[Finding]:
    for wanted in layout.partitions:
        same = [partition for partition in table.partitions if partition.name == wanted.label]
        if len(same) > 1:
            numbers = " and ".join(str(partition.number) for partition in same)
            yield Finding(
                "problem",
                wanted.label,
                f"partitions {numbers} are both labelled {wanted.label}",
                f"rename the one that is not it: `sgdisk -c NUMBER:old-{wanted.label} DISK`",
            )
        elif same:
            yield from _one(wanted, same[0])
    known = {partition.label for partition in layout.partitions}
    for partition in table.partitions:
        if partition.name not in known:
            yield Finding(
                "note", partition.name, f"partition {partition.number} ({partition.name!r}) is not in the layout"
            )


def _one(wanted: LayoutPartition, partition: Partition) -> Iterator[Finding]:
    name = f"partition {partition.number} ({wanted.label})"
    if partition.type_guid != UUID(wanted.type_guid):
        yield Finding(
            "problem",
            wanted.label,
            f"{name} has type {partition.type_guid}, the layout says {wanted.type_guid}",
            f"{_LAYOUT_MEND}, or mend the type: `sgdisk -t {partition.number}:{wanted.type_guid} DISK`",
        )
    if wanted.fixed_partuuid not in (None, partition.unique_guid):
        yield Finding(
            "problem",
            wanted.label,
            f"{name} has PARTUUID {partition.unique_guid}, the layout says {wanted.fixed_partuuid}: what is booted "
            "would not find it",
            f"`sgdisk -u {partition.number}:{wanted.fixed_partuuid} DISK`",
        )
    if partition.length_bytes < wanted.length_bytes:
        yield Finding(
            "problem",
            wanted.label,
            f"{name} has {partition.length_bytes} bytes, the layout {wanted.length_bytes} "
            f"({wanted.length}): releases that fit the layout need not fit this disk",
            "reimage the node, or write a layout with this disk's lengths",
        )


def _slots(layout: Layout, table: Gpt) -> Iterator[Finding]:
    for role in ("data", "hash"):
        pair = [_only(table, p.label) for slot in Slot for p in layout.partitions if (p.role, p.slot) == (role, slot)]
        if len(pair) == 2 and pair[0] and pair[1] and pair[0].length_bytes != pair[1].length_bytes:
            small, large = sorted((pair[0], pair[1]), key=lambda partition: partition.length_bytes)
            yield Finding(
                "problem",
                small.name,
                f"{small.name} has {small.length_bytes} bytes and {large.name} {large.length_bytes}: a release must "
                "fit both, so that the smaller one counts",
                "reimage the node with slots of one length",
            )


def _places(layout: Layout, table: Gpt) -> Iterator[Finding]:
    numbers = layout.numbers
    for label, number in numbers.items():
        partition = _only(table, label)
        if partition is not None and partition.number != number:
            yield Finding("note", label, f"{label} is partition {partition.number}, on a new disk it would be {number}")
    order = [found for label in numbers if (found := _only(table, label))]
    for earlier, later in pairwise(order):
        if later.first_lba < earlier.first_lba:
            yield Finding(
                "note",
                later.name,
                f"{later.name} was moved before {earlier.name}: partitions are found by their labels",
            )
