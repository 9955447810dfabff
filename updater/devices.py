"""Discovery of the running system's disk: what is mounted, agreed by sysfs, udev, verity and the partition table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from updater.errors import EnvironmentFailure, Refused, SlotDamaged
from updater.files import explained
from updater.gpt import Gpt, Partition, parse
from updater.layouts import Layout
from updater.mounts import Mount, mounted_at, parse_mountinfo
from updater.mounts import mounted_esp as mounted_esp
from updater.partition import WholeDisk
from updater.slots import Slot
from updater.verity import Superblock, parse_superblock

ESP_TYPE = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_SECTOR_BYTES = 512  # sysfs counts in these, whatever the disk's own are
_SETTLE = "run `udevadm trigger --settle`, or boot again"


@dataclass(frozen=True, slots=True)
class LiveRoot:
    """The disk that this system runs from, and which of its partitions back the running image.

    `mount_point` is what the verity device is mounted at: `/`, or `/usr` where only that swaps. `nodes` maps partition
    numbers to device nodes; `gpt` is the table as it was read then.
    """

    disk: Path
    gpt: Gpt
    mount_point: str
    root_hash: str
    data_partition: int
    hash_partition: int
    esp_partition: int | None
    nodes: Mapping[int, Path]

    def device(self, number: int) -> Path:
        """Return the device node of a partition; raise EnvironmentFailure when the kernel has none."""
        try:
            return self.nodes[number]
        except KeyError:
            raise EnvironmentFailure(
                f"the kernel knows no partition {number} of {self.disk}",
                mend="boot again, so that it reads the partition table anew",
                reason="no-partition",
            ) from None


class Udev(Protocol):
    """What udev recorded of block devices, as its properties."""

    def of(self, name: str) -> Mapping[str, str]:
        """Return the properties of a block device by its kernel name; empty when udev does not know it."""

    def partitions(self) -> Iterable[Mapping[str, str]]:
        """Return the properties of every partition of every disk."""


class PyUdev:
    """The running system's udev database."""

    def __init__(self) -> None:
        """Open the database."""
        import pyudev

        self._pyudev = pyudev
        self._context = pyudev.Context()

    def of(self, name: str) -> Mapping[str, str]:
        """Return the properties of a block device; empty when udev does not know it."""
        try:
            return dict(self._pyudev.Devices.from_name(self._context, "block", name).properties)
        except self._pyudev.DeviceNotFoundError:
            return {}

    def partitions(self) -> Iterable[Mapping[str, str]]:
        """Return the properties of every partition."""
        for device in self._context.list_devices(subsystem="block", DEVTYPE="partition"):
            yield dict(device.properties)


def discover_live_root(
    sysroot: Path = Path("/"), udev: Udev | None = None, *, layout: Layout | None = None
) -> LiveRoot:
    """Find the disk behind the running image, and refuse when any two witnesses disagree.

    The mount table names the device at `/` (or `/usr`); sysfs its verity device and the partitions below; the disk's
    own table, read here, where these lie and what they are called; udev the same; the verity superblock which device
    mapper target it was opened as; the kernel's command line the root hash; the loader's variable the ESP.

    `sysroot` holds proc, sys and dev. `layout` says whether there is an ESP, where a hash tree lies that has no
    partition of its own, and which labels no second disk may bear. Raises EnvironmentFailure (reason `no-live-root` and
    others) for what cannot be told, Refused (`ambiguous-disk`, `wrong-esp`) when an operator must untangle two disks.
    """
    udev = udev or PyUdev()
    sysfs = _Sysfs(sysroot)
    mount, verity = _verity_device(sysroot, sysfs)
    root_hash = _root_hash(sysroot, "usrhash" if mount.mount_point == "/usr" else "roothash")
    backing = sysfs.slaves(verity)
    split = layout.partition("data", Slot.A).hash_offset_bytes if layout else None
    disks = {sysfs.disk_of(name) for name in backing}
    if len(backing) != (2 if split is None else 1) or len(disks) != 1:
        wanted = "two partitions" if split is None else "one partition"
        raise _unclear(f"the verity device {verity} lies on {', '.join(backing) or 'nothing'}, not on {wanted}")
    disk_name = disks.pop()
    disk = sysfs.node(disk_name)
    with WholeDisk(disk) as opened:
        sector_bytes = int(sysfs.text(disk_name, "queue/logical_block_size") or _SECTOR_BYTES)
        table = parse(opened.read, opened.length_bytes, sector_bytes)
    names = sysfs.partitions_of(disk_name)
    for number, name in names.items():
        if name in backing:
            _agree(disk_name, name, table.partition(number), sysfs, udev)
    numbers = {name: number for number, name in names.items()}
    if split is None:
        data, tree = _roles(backing, numbers, table, root_hash, verity, sysfs)
    else:
        data = tree = _superblock_holder(backing, verity, sysfs, split)
    _refuse_twins(disk_name, table, sysfs, udev, layout)
    return LiveRoot(
        disk=disk,
        gpt=table,
        mount_point=mount.mount_point,
        root_hash=root_hash,
        data_partition=numbers[data],
        hash_partition=numbers[tree],
        esp_partition=_esp(sysroot, disk, table).number if layout is None or layout.is_uefi else None,
        nodes={number: sysfs.node(name) for number, name in names.items()},
    )


class _Sysfs:
    """Block devices by their kernel names."""

    def __init__(self, sysroot: Path) -> None:
        self._sysroot = sysroot
        self._class = sysroot / "sys/class/block"

    def name(self, mount: Mount) -> str | None:
        """Return the kernel's name of the device behind a mount."""
        path = self._sysroot / f"sys/dev/block/{mount.device[0]}:{mount.device[1]}"
        if path.exists():
            return path.resolve().name
        # btrfs gives its mounts numbers of no device; the source names the one that it was mounted from.
        source = (self._sysroot / mount.source.lstrip("/")).resolve().name
        return source if mount.source.startswith("/dev/") and (self._class / source).exists() else None

    def text(self, name: str, attribute: str) -> str:
        """Return an attribute's text, empty when it is absent."""
        try:
            return (self._class / name / attribute).read_text().strip()
        except OSError:
            return ""

    def slaves(self, name: str) -> list[str]:
        """Return the devices that a device is made of."""
        folder = self._class / name / "slaves"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def disk_of(self, name: str) -> str:
        """Return the disk of a partition; raise EnvironmentFailure for what is no partition."""
        path = (self._class / name).resolve()
        if not (path / "partition").is_file():
            raise _unclear(f"{name}, which backs the running image, is no partition of a disk")
        return path.parent.name

    def partitions_of(self, disk: str) -> dict[int, str]:
        """Return the kernel's partitions of a disk by number."""
        found = {}
        for path in (self._class / disk).resolve().iterdir():
            number = self.text(path.name, "partition")
            if number.isdigit() and (path / "partition").is_file():
                found[int(number)] = path.name
        return dict(sorted(found.items()))

    def node(self, name: str) -> Path:
        """Return the device node: its name may differ from the kernel's (`cciss!c0d0`)."""
        node = re.search(r"^DEVNAME=(.+)$", self.text(name, "uevent"), re.MULTILINE)
        return self._sysroot / "dev" / (node.group(1) if node else name)


def _verity_device(sysroot: Path, sysfs: _Sysfs) -> tuple[Mount, str]:
    """Return the mount that is backed by dm-verity, and the kernel's name of that device."""
    with explained("cannot read the mount table", "mount /proc"):
        mounts = parse_mountinfo((sysroot / "proc/self/mountinfo").read_text())
    for mount_point in ("/", "/usr"):
        mount = mounted_at(mounts, mount_point)
        name = sysfs.name(mount) if mount else None
        if mount and name and sysfs.text(name, "dm/uuid").startswith("CRYPT-VERITY-"):
            return mount, name
    raise _unclear("neither / nor /usr is a dm-verity device")


def _root_hash(sysroot: Path, key: str) -> str:
    with explained("cannot read the kernel's command line", "mount /proc"):
        words = (sysroot / "proc/cmdline").read_text().split()
    found = {word.partition("=")[2] for word in words if word.startswith(f"{key}=")}
    if len(found) != 1 or not re.fullmatch(r"[0-9a-f]{64}", next(iter(found))):
        raise _unclear(f"the kernel's command line has {len(found)} usable values of {key}=")
    return found.pop()


def _agree(disk: str, name: str, partition: Partition, sysfs: _Sysfs, udev: Udev) -> None:
    """Refuse a partition of which kernel, udev and the table on the disk tell different stories."""
    place = (int(sysfs.text(name, "start") or -1), int(sysfs.text(name, "size") or -1))
    said = (partition.offset_bytes // _SECTOR_BYTES, partition.length_bytes // _SECTOR_BYTES)
    if place != said:
        raise _unclear(
            f"the kernel has {name} at sectors {place}, the disk's table at {said}: it was changed without a reboot"
        )
    properties = udev.of(name)
    expected = {
        "ID_PART_ENTRY_SCHEME": "gpt",
        "ID_PART_ENTRY_UUID": str(partition.unique_guid),
        "ID_PART_ENTRY_NUMBER": str(partition.number),
        "ID_PART_ENTRY_DISK": sysfs.text(disk, "dev"),
    }
    for key, value in expected.items():
        if properties.get(key, "").lower() != value:
            raise EnvironmentFailure(
                f"udev says {key}={properties.get(key, '')!r} of {name}, the disk says {value!r}",
                mend=_SETTLE,
                reason="udev-disagrees",
            )


def _superblock_holder(backing: list[str], verity: str, sysfs: _Sysfs, offset_bytes: int = 0) -> str:
    """Return the device that carries the superblock which the verity device was opened by."""
    opened_as = sysfs.text(verity, "dm/uuid")
    superblocks: dict[str, Superblock] = {}
    for name in backing:
        with explained(f"cannot read {sysfs.node(name)}", "run as root"), sysfs.node(name).open("rb") as file:
            file.seek(offset_bytes)
            raw = file.read(4096)
        try:
            found = parse_superblock(raw)
        except SlotDamaged:
            continue
        if opened_as.startswith(f"CRYPT-VERITY-{found.uuid.replace('-', '')}-"):
            superblocks[name] = found
    if len(superblocks) != 1:
        raise _unclear(
            f"{len(superblocks)} of {' and '.join(backing)} carry the superblock that {verity} was opened by"
        )
    return next(iter(superblocks))


def _roles(
    backing: list[str], numbers: Mapping[str, int], table: Gpt, root_hash: str, verity: str, sysfs: _Sysfs
) -> tuple[str, str]:
    """Tell the data partition from the hash partition: by PARTUUIDs that spell the root hash, and the superblock."""
    tree = _superblock_holder(backing, verity, sysfs)
    data = next(name for name in backing if name != tree)
    spelt = [table.partition(numbers[name]).unique_guid.hex for name in (data, tree)]
    halves = [root_hash[:32], root_hash[32:]]
    # Layouts with fixed PARTUUIDs spell nothing; those that spell must spell the truth.
    if (spelt[0] == halves[0]) != (spelt[1] == halves[1]) or spelt == halves[::-1]:
        raise _unclear(f"only one PARTUUID of {data} and {tree} is the root hash's that this system was booted with")
    return data, tree


def _refuse_twins(disk: str, table: Gpt, sysfs: _Sysfs, udev: Udev, layout: Layout | None) -> None:
    """Refuse while another disk bears our PARTUUIDs or labels: whoever looks for them may find the wrong one."""
    ours = {("PARTUUID", str(partition.unique_guid)): partition for partition in table.partitions}
    wanted = {partition.label for partition in layout.partitions} if layout else set()
    ours |= {("label", partition.name): partition for partition in table.partitions if partition.name in wanted}
    own = sysfs.text(disk, "dev")
    names = sysfs.partitions_of(disk)
    for properties in udev.partitions():
        if properties.get("ID_PART_ENTRY_DISK") == own:
            continue
        marks = (
            ("PARTUUID", properties.get("ID_PART_ENTRY_UUID", "").lower()),
            ("label", _unescaped(properties.get("ID_PART_ENTRY_NAME", ""))),
        )
        for mark in marks:
            partition = ours.get(mark)
            if partition is None:
                continue
            other = properties.get("DEVNAME", "a partition of another disk")
            node = sysfs.node(names.get(partition.number, disk))
            what = f"the same {mark[0]} as {node}, {mark[1]} (partition {partition.number} of {sysfs.node(disk)})"
            raise Refused(
                f"{other} has {what}: what finds partitions by it may take either",
                mend="detach the other disk; or give a copy new identifiers with `sgdisk -G`, and new labels with "
                "`sgdisk -c`",
                reason="ambiguous-disk",
            )


def _unescaped(text: str) -> str:
    """Return a property's text with udev's escapes (a backslash, x and two hex digits) undone."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found.group(1), 16)), text)


def _esp(sysroot: Path, disk: Path, table: Gpt) -> Partition:
    from updater.efivars import LiveEfiVariables, read_text

    found = [partition for partition in table.partitions if partition.type_guid == ESP_TYPE]
    if len(found) != 1:
        raise _unclear(f"{disk} has {len(found)} EFI system partitions")
    (esp,) = found
    booted = read_text(LiveEfiVariables(sysroot / "sys/firmware/efi/efivars"), "LoaderDevicePartUUID")
    if booted and booted.lower() != str(esp.unique_guid):
        raise Refused(
            f"the loader was started from partition {booted.lower()}, but the ESP of {disk} is {esp.unique_guid}",
            mend="boot from the disk that the system runs from, or detach the other one",
            reason="wrong-esp",
        )
    return esp


def _unclear(why: str) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"cannot tell which disk and slot this system runs from: {why}",
        mend="this works on a node that was booted from a slot of its own disk; use --disk for an image file",
        reason="no-live-root",
    )
