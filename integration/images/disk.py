"""Factory disks: a GPT disk image whose slot a holds a release and whose records call it proven.

Plain files from the first byte to the last: no root, no loop device, no mount.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from integration.images.loaders import artifact_path, install_loader, loader_files
from integration.images.new_disk import fill_boot, fill_state, refuse_sectors, write_new_table
from integration.images.reference import with_tools
from integration.images.secure_boot import sign
from integration.images.tooltree import ToolTree
from updater.errors import EnvironmentFailure
from updater.layouts import Layout, load_layout
from updater.manifest import BLOCK_BYTES
from updater.plan import sizes
from updater.records import Kept, Ledger, Proven, encode_state, release_record
from updater.release.build import BuiltRelease
from updater.release.uki import SecureBoot
from updater.slots import Slot
from updater.store import ESP_LEDGERS, FACTORY_LEDGER
from updater.verity import superblock

log = logging.getLogger(__name__)


def make_factory_disk(
    release: BuiltRelease,
    disk: Path,
    tools: ToolTree,
    *,
    seed: str = "factory",
    layout: Layout | None = None,
    sector_bytes: int = 512,
    signing: SecureBoot | None = None,
) -> None:
    """Write a disk to `disk`; all its UUIDs follow from the seed and the release.

    `layout` stands for the release's first one, for images that do not fit into its partitions; `signing` signs the
    loader.
    """
    with_tools(tools)
    layout = layout or load_layout(release.manifest.layouts[0])
    refuse_sectors(layout, sector_bytes)
    _refuse_unfit(layout, release)
    log.info("disk: %s after layout %s", disk.name, layout.name)
    table = write_new_table(
        layout, disk, root_hash=release.manifest.root.root_hash, seed=seed, sector_bytes=sector_bytes
    )
    offsets = {partition.name: partition.offset_bytes for partition in table.partitions}
    data = layout.partition("data", Slot.A)
    tree_offset = (
        offsets[layout.partition("hash", Slot.A).label]
        if data.hash_offset_bytes is None
        else offsets[data.label] + data.hash_offset_bytes
    )
    _write(disk, offsets[data.label], release.image)
    with disk.open("r+b") as file:
        file.seek(tree_offset)
        file.write(superblock(release.manifest.root))
    _write(disk, tree_offset + BLOCK_BYTES, release.tree)
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        loader = tools.loader
        if signing is not None:
            loader = Path(folder) / "loader.efi"
            sign(tools.loader, loader, signing, tools)
        content = Path(folder) / "content"
        content.mkdir()
        fill_boot(table.named(layout.boot_partition.label), disk, _boot_files(layout, release, loader), content)
    install_loader(layout, disk, offsets, tools)
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        records = Path(folder) / layout.state_folder
        (records / "manifests").mkdir(parents=True)
        (records / FACTORY_LEDGER).write_bytes(factory_ledger(release))
        shutil.copyfile(release.folder / "manifest.json", records / "manifests" / f"{release.manifest.version}.json")
        fill_state(table.named(layout.partition("state").label), disk, Path(folder), seed)


def _refuse_unfit(layout: Layout, release: BuiltRelease) -> None:
    """Raise EnvironmentFailure with the sums for a release that would run over its slot's end."""
    root, data = release.manifest.root, layout.partition("data", Slot.A)
    split = data.hash_offset_bytes
    rooms = (
        ("image", root.length_bytes, data.length_bytes if split is None else split),
        (
            "hash tree",
            BLOCK_BYTES + root.tree_length_bytes,
            layout.partition("hash", Slot.A).length_bytes if split is None else data.length_bytes - split,
        ),
    )
    for what, needed, room in rooms:
        if needed > room:
            raise EnvironmentFailure(
                f"release {release.manifest.version} does not fit the layout {layout.name}: its {what} needs "
                f"{sizes(needed)}, {data.label}'s slot has {sizes(room)}",
                mend="choose a smaller image or a layout with larger slots",
                reason="no-room",
            )


def factory_ledger(release: BuiltRelease) -> bytes:
    """Return the record that calls the release in slot a proven, as the node reads it on its first boot."""
    record = release_record(release.manifest, (release.folder / "manifest.json").read_bytes())
    proven = Proven(slot=Slot.A, release=record, how="factory", at=release.manifest.built)
    ledger = Ledger(serial=1, floor=release.manifest.security_epoch, proven=[proven]).with_seen(record)
    return encode_state(Kept(ledger))


def _boot_files(layout: Layout, release: BuiltRelease, loader: Path) -> dict[str, bytes | Path]:
    artifact = artifact_path(layout)
    addons = {a.name: release.addon(a.name) for a in release.manifest.addons if a.slot in (None, Slot.A)}
    return {
        artifact: release.uki,
        **{f"{artifact}.extra.d/{name}": path for name, path in addons.items()},
        **loader_files(layout, release.uki, addons, release.manifest.version, loader),
        ESP_LEDGERS[0]: factory_ledger(release),
    }


def _write(disk: Path, offset: int, source: Path) -> None:
    with source.open("rb") as reader, disk.open("r+b") as writer:
        writer.seek(offset)
        while chunk := reader.read(1 << 20):
            if chunk.count(0) == len(chunk):
                writer.seek(len(chunk), 1)
            else:
                writer.write(chunk)
