"""Factory disks: a GPT disk image whose slot a holds a release and whose records call it proven.

Plain files from the first byte to the last: no root, no loop device, no mount.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import uuid
from pathlib import Path

from integration.images.loaders import artifact_path, install_loader, loader_files, with_first_slot
from integration.images.reference import with_tools
from integration.images.tooltree import ToolTree
from updater.layouts import Layout, load_layout
from updater.manifest import BLOCK_BYTES
from updater.new_disk import disk_bytes, new_disk_image, new_table
from updater.records import Kept, Ledger, Proven, encode_state, release_record
from updater.release.build import BuiltRelease
from updater.run import find_tool, run
from updater.slots import Slot
from updater.store import ESP_LEDGERS, FACTORY_LEDGER
from updater.verity import superblock

log = logging.getLogger(__name__)

_NAMESPACE = uuid.UUID("0d8f6bd0-2f1f-5c62-8f7e-5b8e9a1d7c44")
_SECTOR = 512


def make_factory_disk(
    release: BuiltRelease, disk: Path, tools: ToolTree, *, seed: str = "factory", layout: Layout | None = None
) -> None:
    """Write a disk to `disk`; all its UUIDs follow from the seed and the release.

    `layout` stands for the release's first one, for images that do not fit into its partitions.
    """
    with_tools(tools)
    layout = layout or load_layout(release.manifest.layouts[0])
    log.info("disk: %s after layout %s", disk.name, layout.name)
    offsets = _partition(layout, release, disk, seed)
    data, hashes = layout.partition("data", Slot.A), layout.partition("hash", Slot.A)
    _write(disk, offsets[data.label], release.image)
    with disk.open("r+b") as file:
        file.seek(offsets[hashes.label])
        file.write(superblock(release.manifest.root))
    _write(disk, offsets[hashes.label] + BLOCK_BYTES, release.tree)
    _fill_esp(layout, offsets, release, disk, tools)
    install_loader(layout, disk, offsets, tools)
    _fill_state(layout, offsets, release, disk, seed)


def factory_ledger(release: BuiltRelease) -> bytes:
    """Return the record that calls the release in slot a proven, as the node reads it on its first boot."""
    record = release_record(release.manifest, (release.folder / "manifest.json").read_bytes())
    proven = Proven(slot=Slot.A, release=record, how="factory", at=release.manifest.built)
    ledger = Ledger(serial=1, floor=release.manifest.security_epoch, proven=[proven]).with_seen(record)
    return encode_state(Kept(ledger))


def _partition(layout: Layout, release: BuiltRelease, disk: Path, seed: str) -> dict[str, int]:
    root_hash = release.manifest.root.root_hash
    partuuids = {
        partition.label: (partition.partuuid_for(root_hash) if partition.slot is Slot.A else None)
        or _uuid(seed, partition.label)
        for partition in layout.partitions
    }
    table = with_first_slot(layout, new_table(layout, disk_guid=_uuid(seed, "disk"), partuuids=partuuids))
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(disk_bytes(layout))
        for at, content in new_disk_image(table):
            file.seek(at)
            file.write(content)
    return {partition.name: partition.offset_bytes for partition in table.partitions}


def _fill_esp(layout: Layout, offsets: dict[str, int], release: BuiltRelease, disk: Path, tools: ToolTree) -> None:
    esp, artifact = layout.boot_partition, artifact_path(layout)
    image = f"{disk}@@{offsets[esp.label]}"
    sectors = esp.length_bytes // 1024
    run(
        [
            find_tool("mkfs.vfat", package="dosfstools"),
            "--invariant",
            "-F32",
            # Below 65,525 clusters firmware takes a FAT for FAT16, whatever its boot sector says.
            "-s4",
            "-nESP",
            f"--offset={offsets[esp.label] // _SECTOR}",
            disk,
            str(sectors),
        ]
    )
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        files = Path(folder)
        content: dict[str, bytes | Path] = {
            artifact: release.uki,
            **{
                f"{artifact}.extra.d/{addon.name}": release.addon(addon.name)
                for addon in release.manifest.addons
                if addon.slot in (None, Slot.A)
            },
            **loader_files(layout, release.uki, release.manifest.version, tools),
            ESP_LEDGERS[0]: factory_ledger(release),
        }
        for name, source in content.items():
            target = files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        tops = sorted(path.name for path in files.iterdir())
        run([find_tool("mcopy", package="mtools"), "-s", "-i", image, *(files / top for top in tops), "::"])


def _fill_state(layout: Layout, offsets: dict[str, int], release: BuiltRelease, disk: Path, seed: str) -> None:
    state = layout.partition("state")
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        records = Path(folder) / layout.state_folder
        (records / "manifests").mkdir(parents=True)
        (records / FACTORY_LEDGER).write_bytes(factory_ledger(release))
        shutil.copyfile(release.folder / "manifest.json", records / "manifests" / f"{release.manifest.version}.json")
        run(
            [
                find_tool("mke2fs", package="e2fsprogs"),
                "-q",
                "-F",
                "-t",
                "ext4",
                "-L",
                state.label,
                "-U",
                str(_uuid(seed, "state-file-system")),
                "-E",
                f"offset={offsets[state.label]},hash_seed={_uuid(seed, 'hash')},root_owner=0:0,lazy_itable_init=1",
                "-d",
                folder,
                disk,
                f"{state.length_bytes // 1024}k",
            ],
            env={"SOURCE_DATE_EPOCH": "1767225600"},
        )


def _write(disk: Path, offset: int, source: Path) -> None:
    with source.open("rb") as reader, disk.open("r+b") as writer:
        writer.seek(offset)
        while chunk := reader.read(1 << 20):
            if chunk.count(0) == len(chunk):
                writer.seek(len(chunk), 1)
            else:
                writer.write(chunk)


def _uuid(seed: str, what: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, json.dumps([seed, what]))
