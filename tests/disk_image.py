"""A tiny disk image with partitions labelled like dps-root's, made in a second by the tools of real ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.releases import Release
from updater import verity
from updater.boot.entries import factory_files
from updater.layouts import load_layout
from updater.records import factory_ledger
from updater.run import find_tool
from updater.slots import Slot
from updater.store import ESP_LEDGERS, FACTORY_LEDGER

MIB = 1 << 20
# In disk order: label -> MiB. FAT16 begins at some four thousand clusters.
SIZES = {"esp": 16, "root-a": 1, "root-a-verity": 1, "root-b": 1, "root-b-verity": 1, "state": 16}


def make_disk(release: Release, disk: Path, *, layout_name: str = "dps-root") -> Path:
    """Write a disk whose slot a holds `release` as its factory image; return it."""
    layout = load_layout(layout_name)
    offsets: dict[str, int] = {}
    lines = ["label: gpt", "first-lba: 2048"]
    at = MIB
    for wanted in layout.partitions:
        size = SIZES[wanted.label] * MIB
        uuid = wanted.partuuid_for(release.manifest.root.root_hash) if wanted.slot is Slot.A else None
        lines.append(
            f"start={at // 512}, size={size // 512}, type={wanted.type_guid}, name={wanted.label}"
            + (f", uuid={uuid}" if uuid else "")
        )
        offsets[wanted.label] = at
        at += size
    with disk.open("wb") as file:
        file.truncate(at + MIB)
    _run(["sfdisk", "-q", disk], "\n".join(lines).encode())
    root = release.manifest.root
    _put(disk, offsets["root-a"], release.image)
    _put(disk, offsets["root-a-verity"], verity.superblock(root) + release.tree)
    ledger = factory_ledger(release.manifest, release.raw, Slot.A, "2026-11-01T00:00:00Z")
    folder = disk.with_name(disk.name + ".parts")
    folder.mkdir()
    files = {**factory_files(release.version), "EFI/acl/a.efi": release.uki, ESP_LEDGERS[1]: ledger}
    _put(disk, offsets["esp"], _esp(folder, files).read_bytes())
    _put(disk, offsets["state"], _state(folder, {f"lib/acl-updater/{FACTORY_LEDGER}": ledger}).read_bytes())
    return disk


def _esp(folder: Path, files: dict[str, bytes]) -> Path:
    image = folder / "esp.img"
    with image.open("wb") as file:
        file.truncate(SIZES["esp"] * MIB)
    _run(["mkfs.vfat", "-F", "16", image])
    _lay(folder / "esp", files)
    _run(["mcopy", "-i", image, "-s", *sorted((folder / "esp").iterdir()), "::"])
    return image


def _state(folder: Path, files: dict[str, bytes]) -> Path:
    image = folder / "state.img"
    _lay(folder / "state", files)
    _run(["mke2fs", "-q", "-t", "ext4", "-d", folder / "state", image, f"{SIZES['state']}M"])
    return image


def _lay(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _put(disk: Path, offset: int, content: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _run(argv: list[str | Path], stdin: bytes = b"") -> None:
    subprocess.run([find_tool(str(argv[0])), *argv[1:]], input=stdin, check=True, capture_output=True)
