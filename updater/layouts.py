"""Partition layouts: which partitions make a slot, what both share, how a slot is booted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from updater.errors import InvalidDocument
from updater.schema import Name, UuidText, decode_yaml, limited
from updater.slots import Slot

_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

Role = Literal["esp", "data", "hash", "signature", "state", "shared"]
LengthText = Annotated[
    str, limited("write a length such as 512MiB or 2GiB", pattern=r"^[1-9][0-9]{0,6}(MiB|GiB|TiB)$(?!\n)")
]
Label = Annotated[
    str,
    limited(
        "use 1 to 36 letters, digits, '.', '_' or '-' (GPT names have 36)", pattern=r"^[A-Za-z0-9._-]{1,36}$(?!\n)"
    ),
]

PartuuidRule = Annotated[
    str,
    limited(
        "write root-hash-head, root-hash-tail or a UUID in lower case",
        pattern=r"^(root-hash-(head|tail)|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$(?!\n)",
    ),
]


class LayoutPartition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"type_guid": "type"}):
    """One partition, found on a disk by its label.

    `partuuid` is a fixed UUID, or the head (first 128 bits) or tail (last 128 bits) of the root hash that it holds.
    """

    label: Label
    role: Role
    type_guid: UuidText
    length: LengthText
    slot: Slot | None = None
    partuuid: PartuuidRule | None = None

    @property
    def length_bytes(self) -> int:
        """Return the length on a new disk."""
        number, unit = re.findall(r"[0-9]+|[A-Za-z]+", self.length)
        return int(number) * _UNITS[unit]

    def partuuid_for(self, root_hash: str) -> UUID | None:
        """Return the PARTUUID that this partition bears while it holds `root_hash`; None when it has no rule."""
        if self.partuuid == "root-hash-head":
            return UUID(root_hash[:32])
        if self.partuuid == "root-hash-tail":
            return UUID(root_hash[-32:])
        return UUID(self.partuuid) if self.partuuid else None


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a slot is booted: the loader's back end and the tries that a trial boot has."""

    backend: Literal["systemd-boot"]
    tries: Annotated[int, limited("write a number of tries from 1 to 9", ge=1, le=9)] = 3


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk: its partitions in order, two slots of equal make, the loader."""

    format: Literal[1]
    name: Name
    description: str
    architecture: Literal["x86-64", "arm64"]
    swaps: Literal["root"]
    boot: Boot
    partitions: Annotated[list[LayoutPartition], limited("list 5 to 128 partitions", min_length=5, max_length=128)]

    def __post_init__(self) -> None:
        labels = [partition.label for partition in self.partitions]
        for label in labels:
            if labels.count(label) > 1:
                raise _invalid("partitions", f"two partitions bear the label {label!r}", "give each its own label")
        for role in ("esp", "state"):
            count = len([partition for partition in self.partitions if partition.role == role])
            if count != 1:
                raise _invalid(
                    "partitions", f"{count} partitions have the role {role}", "give that role to exactly one"
                )
        for partition in self.partitions:
            in_slot = partition.role in ("data", "hash", "signature")
            if in_slot and partition.slot is None:
                raise _invalid(
                    f"partitions.{partition.label}",
                    f"the role {partition.role} belongs to a slot",
                    "add `slot: a` or b",
                )
            if not in_slot and partition.slot is not None:
                raise _invalid(
                    f"partitions.{partition.label}",
                    f"the role {partition.role} is shared by both slots",
                    "remove `slot`",
                )
        for role in ("data", "hash"):
            pair = [[p for p in self.partitions if p.role == role and p.slot is slot] for slot in Slot]
            if any(len(found) != 1 for found in pair):
                raise _invalid(
                    "partitions", f"each slot needs exactly one {role} partition", "list one for a, one for b"
                )
            (one,), (two,) = pair
            if one.length_bytes != two.length_bytes:
                raise _invalid(
                    f"partitions.{two.label}.length",
                    f"{two.length} differs from {one.label}'s {one.length}: a release must fit both slots",
                    "make them equal",
                )
        if len([p for p in self.partitions if p.role == "signature"]) not in (0, 2):
            raise _invalid("partitions", "one slot only has a signature partition", "list one for each slot, or none")

    def partition(self, role: Role, slot: Slot | None = None) -> LayoutPartition:
        """Return the partition of a role; LookupError when the layout has none."""
        for partition in self.partitions:
            if partition.role == role and partition.slot is slot:
                return partition
        raise LookupError(f"{self.name} has no {role} partition" + (f" in slot {slot}" if slot else ""))


def parse_layout(raw: bytes, source: str) -> Layout:
    """Parse a layout's YAML; raise InvalidDocument naming file, key, reason and mend."""
    return decode_yaml(raw, Layout, source)


def layout_folders() -> tuple[Path, ...]:
    """Return where layouts are looked for: the operator's, the vendor's, those that ship with the package."""
    here = Path(__file__).resolve().parent
    return (
        Path("/etc/acl-updater/partition-layouts"),
        Path("/usr/lib/acl-updater/partition-layouts"),
        here / "partition-layouts",
        here.parent / "partition-layouts",
    )


def load_layout(name: str) -> Layout:
    """Read a layout by its name, or by its path when the name has a slash; raise InvalidDocument."""
    candidates = [Path(name)] if "/" in name else [folder / f"{name}.yaml" for folder in layout_folders()]
    for path in candidates:
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        return parse_layout(raw, str(path))
    known = sorted({path.stem for folder in layout_folders() for path in folder.glob("*.yaml")})
    raise InvalidDocument(
        "configuration", "layout", f"there is no layout {name!r}", f"choose one of: {', '.join(known) or 'none found'}"
    )


def _invalid(key: str, why: str, mend: str) -> InvalidDocument:
    return InvalidDocument("layout", key, why, mend)
