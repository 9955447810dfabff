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

Role = Literal["esp", "boot", "bios-boot", "data", "hash", "signature", "state", "shared"]
Backend = Literal["systemd-boot", "efi-bootnext", "gpt-priority", "grub-env"]
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

FolderText = Annotated[
    str,
    limited(
        "write a path without a leading '/', such as var/lib/acl-updater",
        pattern=r"^[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*){0,7}$(?!\n)",
        max_length=100,
    ),
]
BLOCK_BYTES = 4096


class LayoutPartition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"type_guid": "type"}):
    """One partition, found on a disk by its label.

    `partuuid` is a fixed UUID, or the head (first 128 bits) or tail (last 128 bits) of the root hash that it holds.
    `hash_offset_bytes` says that the hash tree lies in the data partition itself, from that byte on. `number` is the
    partition's number on a new disk where the layout leaves some out; `optional` ones may be missing on a disk.
    """

    label: Label
    role: Role
    type_guid: UuidText
    length: LengthText
    slot: Slot | None = None
    partuuid: PartuuidRule | None = None
    number: Annotated[int, limited("write a number from 1 to 128", ge=1, le=128)] | None = None
    hash_offset_bytes: Annotated[int, limited("write a multiple of 4096 bytes", ge=BLOCK_BYTES, le=1 << 50)] | None = (
        None
    )
    optional: bool = False

    @property
    def fixed_partuuid(self) -> UUID | None:
        """Return the PARTUUID that this partition always bears, None when it has no rule or follows the root hash."""
        return UUID(self.partuuid) if self.partuuid and not self.partuuid.startswith("root-hash-") else None

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
        return self.fixed_partuuid


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a slot is booted: the loader's back end and the tries that a trial boot has.

    `entries` is for systemd-boot: Type #1 files that name a UKI each, or the UKIs themselves (Type #2, in /EFI/Linux).
    """

    backend: Backend
    entries: Literal["type1", "type2"] = "type1"
    tries: Annotated[int, limited("write a number of tries from 1 to 9", ge=1, le=9)] = 3


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk: its partitions in order, two slots of equal make, the loader.

    `swaps` is what a slot holds: the whole root, or only /usr over a shared root. `state_folder` is the updater's
    folder in the state partition's own file system: that of /var, or the root that /var is a folder of.
    """

    format: Literal[1]
    name: Name
    description: str
    architecture: Literal["x86-64", "arm64"]
    swaps: Literal["root", "usr"]
    boot: Boot
    partitions: Annotated[list[LayoutPartition], limited("list 4 to 128 partitions", min_length=4, max_length=128)]
    state_folder: FolderText = "lib/acl-updater"

    def __post_init__(self) -> None:
        _check_names(self.partitions)
        _check_roles(self.partitions)
        _check_slots(self.partitions)
        _check_loader(self)

    @property
    def boot_partition(self) -> LayoutPartition:
        """Return the FAT partition that holds the loader's files and the boot artifacts: the ESP, or the boot one."""
        return next(partition for partition in self.partitions if partition.role in ("esp", "boot"))

    @property
    def is_uefi(self) -> bool:
        """Tell a layout with an ESP from one for machines without UEFI."""
        return self.boot_partition.role == "esp"

    @property
    def writes_table(self) -> bool:
        """Tell whether updates change the partition table: its PARTUUIDs, or the bits that a loader reads."""
        rules = [partition.partuuid or "" for partition in self.partitions]
        return self.boot.backend == "gpt-priority" or any(rule.startswith("root-hash-") for rule in rules)

    @property
    def numbers(self) -> dict[str, int]:
        """Return each label's partition number on a new disk."""
        found: dict[str, int] = {}
        number = 0
        for partition in self.partitions:
            number = number + 1 if partition.number is None else partition.number
            found[partition.label] = number
        return found

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


def _check_names(partitions: list[LayoutPartition]) -> None:
    labels = [partition.label for partition in partitions]
    for label in labels:
        if labels.count(label) > 1:
            raise _invalid("partitions", f"two partitions bear the label {label!r}", "give each its own label")
    fixed = [partition.partuuid for partition in partitions if partition.fixed_partuuid]
    for partuuid in fixed:
        if fixed.count(partuuid) > 1:
            raise _invalid("partitions", f"two partitions bear the PARTUUID {partuuid}", "give each its own")
    before = 0
    for partition in partitions:
        number = before + 1 if partition.number is None else partition.number
        if number <= before or number > 128:
            raise _invalid(
                f"partitions.{partition.label}.number",
                f"partition {number} follows partition {before}",
                "list partitions in the order of their numbers, from 1 to 128",
            )
        before = number


def _check_roles(partitions: list[LayoutPartition]) -> None:
    for roles, name in ((("esp", "boot"), "esp or boot"), (("state",), "state")):
        count = len([partition for partition in partitions if partition.role in roles])
        if count != 1:
            raise _invalid("partitions", f"{count} partitions have the role {name}", "give that role to exactly one")
    for partition in partitions:
        key = f"partitions.{partition.label}"
        in_slot = partition.role in ("data", "hash", "signature")
        if in_slot and partition.slot is None:
            raise _invalid(key, f"the role {partition.role} belongs to a slot", "add `slot: a` or b")
        if not in_slot and partition.slot is not None:
            raise _invalid(key, f"the role {partition.role} is shared by both slots", "remove `slot`")
        if not in_slot and (partition.partuuid or "").startswith("root-hash-"):
            raise _invalid(
                f"{key}.partuuid", f"the role {partition.role} holds no root hash", "write a UUID, or remove it"
            )
        if partition.optional and partition.role != "shared":
            raise _invalid(f"{key}.optional", f"no update works without the role {partition.role}", "remove `optional`")
        offset = partition.hash_offset_bytes
        if offset is not None and (
            partition.role != "data" or offset % BLOCK_BYTES or offset + BLOCK_BYTES > partition.length_bytes
        ):
            raise _invalid(
                f"{key}.hash_offset_bytes",
                f"no hash tree starts at byte {offset} of a {partition.role} partition of {partition.length}",
                "write a multiple of 4096 inside a data partition, or give the slot a hash partition",
            )


def _check_slots(partitions: list[LayoutPartition]) -> None:
    by_role = {
        role: [[p for p in partitions if p.role == role and p.slot is slot] for slot in Slot]
        for role in ("data", "hash", "signature")
    }
    inline = [p for p in partitions if p.hash_offset_bytes is not None]
    wanted = {"data": (1, 1), "hash": (0, 0) if inline else (1, 1)}
    for role, counts in wanted.items():
        if tuple(len(found) for found in by_role[role]) != counts:
            why = (
                f"each slot needs exactly one {role} partition"
                if counts[0]
                else "hash_offset_bytes puts the tree into the data partitions, yet there are hash partitions"
            )
            raise _invalid("partitions", why, "list one for a, one for b" if counts[0] else "remove one of the two")
    if tuple(len(found) for found in by_role["signature"]) not in ((0, 0), (1, 1)):
        raise _invalid(
            "partitions", "the slots differ in their signature partitions", "list one for each slot, or none"
        )
    for role in by_role:
        for one, two in zip(*by_role[role], strict=True):
            _check_pair(one, two)


def _check_pair(one: LayoutPartition, two: LayoutPartition) -> None:
    if one.length_bytes != two.length_bytes:
        raise _invalid(
            f"partitions.{two.label}.length",
            f"{two.length} differs from {one.label}'s {one.length}: a release must fit both slots",
            "make them equal",
        )
    for key in ("type_guid", "hash_offset_bytes"):
        if getattr(one, key) != getattr(two, key):
            raise _invalid(
                f"partitions.{two.label}.{'type' if key == 'type_guid' else key}",
                f"it differs from {one.label}'s: a release must fit both slots",
                "make them equal",
            )
    if (one.fixed_partuuid is None) != (two.fixed_partuuid is None) or (
        one.fixed_partuuid is None and one.partuuid != two.partuuid
    ):
        raise _invalid(
            f"partitions.{two.label}.partuuid", f"it follows another rule than {one.label}'s", "use one rule for both"
        )


def _check_loader(layout: Layout) -> None:
    boot = layout.boot
    if boot.backend in ("systemd-boot", "efi-bootnext") and not layout.is_uefi:
        raise _invalid(
            "boot.backend", f"{boot.backend} needs UEFI, and this layout has no ESP", "give one partition the role esp"
        )
    if boot.backend == "efi-bootnext" and boot.tries != 1:
        raise _invalid("boot.tries", f"firmware gives a trial one try, not {boot.tries}", "write `tries: 1`")
    if boot.entries == "type2" and boot.backend != "systemd-boot":
        raise _invalid("boot.entries", f"{boot.backend} has no Type #2 entries", "remove `entries`")


def _invalid(key: str, why: str, mend: str) -> InvalidDocument:
    return InvalidDocument("layout", key, why, mend)
