"""New disks after any layout: a partition table, and the file systems of its boot and state partitions.

Plain files from the first byte to the last: no root, no loop device, no mount.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from integration.images.loaders import with_first_slot
from updater.errors import EnvironmentFailure, InvalidDocument
from updater.gpt import Gpt, Partition
from updater.layouts import Layout
from updater.new_disk import disk_bytes, new_disk_image, new_table
from updater.run import find_tool, run
from updater.slots import Slot

_NAMESPACE = uuid.UUID("0d8f6bd0-2f1f-5c62-8f7e-5b8e9a1d7c44")
SECTORS = (512, 4096)
# Below this many clusters firmware takes a FAT for FAT16, whatever its boot sector says.
_FAT32_CLUSTERS = 65_525
_CLUSTER_BYTES = 2048


def make_empty_disk(layout: Layout, disk: Path, *, seed: str = "empty", sector_bytes: int = 512) -> Gpt:
    """Write a disk without a release: slots of zeros, an empty boot partition, an empty state partition."""
    refuse_sectors(layout, sector_bytes)
    table = write_new_table(layout, disk, root_hash=None, seed=seed, sector_bytes=sector_bytes)
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        fill_boot(table.named(layout.boot_partition.label), disk, {}, Path(folder))
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        (Path(folder) / layout.state_folder).mkdir(parents=True)
        fill_state(table.named(layout.partition("state").label), disk, Path(folder), seed)
    return table


def refuse_sectors(layout: Layout, sector_bytes: int) -> None:
    """Raise InvalidDocument for a disk that no machine of the layout could boot from."""
    if sector_bytes != 512 and not layout.is_uefi:
        raise InvalidDocument(
            "disk", "sector", f"a BIOS boots from no disk with sectors of {sector_bytes} bytes", "leave --sector away"
        )


def write_new_table(layout: Layout, disk: Path, *, root_hash: str | None, seed: str, sector_bytes: int = 512) -> Gpt:
    """Write an empty disk that bears the layout's table; slot a's PARTUUIDs follow `root_hash` where there is one."""
    partuuids = {
        partition.label: (partition.partuuid_for(root_hash) if root_hash and partition.slot is Slot.A else None)
        or seeded(seed, partition.label)
        for partition in layout.partitions
    }
    table = new_table(layout, disk_guid=seeded(seed, "disk"), partuuids=partuuids, sector_bytes=sector_bytes)
    if root_hash:
        table = with_first_slot(layout, table)
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(disk_bytes(layout))
        for at, content in new_disk_image(table):
            file.seek(at)
            file.write(content)
    return table


def fill_boot(partition: Partition | None, disk: Path, content: Mapping[str, bytes | Path], folder: Path) -> None:
    """Make the FAT file system of a boot partition with files by path; `folder` is empty scratch space."""
    if partition is None:
        raise EnvironmentFailure(f"{disk} has no boot partition", reason="no-partition")
    sector = partition.sector_bytes
    cluster = max(_CLUSTER_BYTES, sector)
    large = partition.length_bytes // cluster > _FAT32_CLUSTERS + 1000
    run(
        [
            find_tool("mkfs.vfat", package="dosfstools"),
            "--invariant",
            "-F32" if large else "-F16",
            f"-S{sector}",
            f"-s{cluster // sector}",
            "-nESP",
            f"--offset={partition.offset_bytes // sector}",
            disk,
            str(partition.length_bytes // 1024),
        ]
    )
    for name, source in content.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copyfile(source, target)
    tops = sorted(path.name for path in folder.iterdir())
    if tops:
        image = f"{disk}@@{partition.offset_bytes}"
        run([find_tool("mcopy", package="mtools"), "-s", "-i", image, *(folder / top for top in tops), "::"])


def fill_state(partition: Partition | None, disk: Path, folder: Path, seed: str) -> None:
    """Make the ext4 file system of a state partition with the content of `folder`."""
    if partition is None:
        raise EnvironmentFailure(f"{disk} has no state partition", reason="no-partition")
    options = f"offset={partition.offset_bytes},hash_seed={seeded(seed, 'hash')},root_owner=0:0,lazy_itable_init=1"
    run(
        [
            find_tool("mke2fs", package="e2fsprogs"),
            *("-q", "-F", "-t", "ext4", "-b", "4096"),
            *("-L", partition.name, "-U", str(seeded(seed, "state-file-system")), "-E", options),
            *("-d", folder, disk, f"{partition.length_bytes // 1024}k"),
        ],
        env={"SOURCE_DATE_EPOCH": "1767225600"},
    )


def seeded(seed: str, what: str) -> uuid.UUID:
    """Return the UUID that follows from a seed."""
    return uuid.uuid5(_NAMESPACE, json.dumps([seed, what]))
