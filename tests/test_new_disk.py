"""New disks of every layout and sector size, as independent tools and our own readers see them.

sfdisk and sgdisk take an image file for a disk with sectors of 512 bytes: they judge those only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from integration.images.new_disk import SECTORS, make_empty_disk
from integration.lab.cli import main as acl_lab
from updater.cli import main as acl_updater
from updater.config import Config
from updater.errors import EnvironmentFailure, InvalidDocument
from updater.ext4image import Ext4Image
from updater.fatimage import FatImage
from updater.gpt import Gpt
from updater.layouts import Layout, layout_folders, load_layout
from updater.node.image import ImageNode
from updater.run import run, search_path

LAYOUTS = sorted(path.stem for path in layout_folders()[-1].glob("*.yaml"))
DISKS = [
    (name, sector) for name in LAYOUTS for sector in SECTORS if sector == 512 or load_layout(name).is_uefi
]  # fmt: skip


def missing(*tools: str) -> list[str]:
    return [tool for tool in tools if shutil.which(tool, path=search_path()) is None]


pytestmark = pytest.mark.skipif(
    bool(missing("mkfs.vfat", "mke2fs")), reason=f"not installed: {missing('mkfs.vfat', 'mke2fs')}"
)


@pytest.fixture(scope="module", params=DISKS, ids=lambda disk: f"{disk[0]}-{disk[1]}")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout, Gpt]:
    name, sector = request.param
    disk = tmp_path_factory.mktemp("disk") / "node.raw"
    layout = load_layout(name)
    return disk, layout, make_empty_disk(layout, disk, sector_bytes=sector)


@pytest.mark.skipif(bool(missing("sfdisk")), reason="sfdisk (fdisk) is not installed")
@pytest.mark.parametrize("made", [(name, 512) for name in LAYOUTS], ids=LAYOUTS, indirect=True)
def test_sfdisk_reads_the_table_as_the_layout_says(made: tuple[Path, Layout, Gpt]) -> None:
    disk, layout, table = made
    told = json.loads(run(["sfdisk", "--json", disk]).stdout)["partitiontable"]
    rows = [(row["name"], row["type"].lower(), row["start"] * 512, row["size"] * 512) for row in told["partitions"]]
    assert rows == [
        (wanted.label, wanted.type_guid, found.offset_bytes, wanted.length_bytes)
        for wanted in layout.partitions
        if (found := table.named(wanted.label))
    ]
    numbers = [int(row["node"].removeprefix(str(disk))) for row in told["partitions"]]
    assert numbers == list(layout.numbers.values())


@pytest.mark.skipif(bool(missing("sgdisk")), reason="sgdisk (gdisk) is not installed")
@pytest.mark.parametrize("made", [(name, 512) for name in LAYOUTS], ids=LAYOUTS, indirect=True)
def test_sgdisk_finds_no_problem(made: tuple[Path, Layout, Gpt]) -> None:
    disk, _, _ = made
    assert "No problems found" in run(["sgdisk", "--verify", disk]).stdout.decode()


@pytest.mark.skipif(bool(missing("fsck.vfat", "e2fsck")), reason="fsck.vfat or e2fsck is not installed")
def test_the_file_systems_are_sound_and_fill_their_partitions(made: tuple[Path, Layout, Gpt], tmp_path: Path) -> None:
    disk, layout, table = made
    boot, state = table.named(layout.boot_partition.label), table.named(layout.partition("state").label)
    assert boot
    assert state
    copy = tmp_path / "boot"
    with disk.open("rb") as source, copy.open("wb") as target:
        source.seek(boot.offset_bytes)
        target.write(source.read(boot.length_bytes))
    run(["fsck.vfat", "-n", copy])
    run(["e2fsck", "-fn", f"{disk}?offset={state.offset_bytes}"])
    fat = FatImage(disk, offset_bytes=boot.offset_bytes, length_bytes=boot.length_bytes)
    assert 0 < boot.length_bytes - fat.free_bytes() < 4 << 20


def test_our_own_readers_write_into_them(made: tuple[Path, Layout, Gpt]) -> None:
    disk, layout, table = made
    boot, state = table.named(layout.boot_partition.label), table.named(layout.partition("state").label)
    assert boot
    assert state
    fat = FatImage(disk, offset_bytes=boot.offset_bytes, length_bytes=boot.length_bytes)
    fat.write_new("EFI/acl/b.efi", [b"kernel" * 20_000])
    assert b"".join(fat.chunks("EFI/acl/b.efi")) == b"kernel" * 20_000
    ext4 = Ext4Image(disk, offset_bytes=state.offset_bytes, base=layout.state_folder, writable=True)
    ext4.replace("journal.json", b"{}")
    assert ext4.read("journal.json") == b"{}"


def test_a_node_without_a_release_is_opened_and_has_nothing_to_boot(made: tuple[Path, Layout, Gpt]) -> None:
    disk, layout, _ = made
    with ImageNode(disk, layout, Config()) as node:
        assert node.gpt_problem() == ""
        with pytest.raises(EnvironmentFailure):
            node.running()


def test_a_bios_has_no_disk_with_large_sectors(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="a BIOS boots from no disk with sectors of 4096 bytes"):
        make_empty_disk(load_layout("grub-bios"), tmp_path / "node.raw", sector_bytes=4096)


def test_mkdisk_makes_an_image_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "node.raw"
    arguments = ["mkdisk", "--layout", "azure-container-linux", "--sector", "4096", "--out", str(disk)]
    assert acl_lab(arguments) == 0
    assert acl_lab(arguments) != 0
    assert "is there already" in capsys.readouterr().err
    first = disk.stat().st_ino
    assert acl_lab([*arguments, "--force"]) == 0
    assert disk.stat().st_ino != first
    assert acl_updater(["layout", "check", "--layout", "azure-container-linux", "--disk", str(disk)]) == 0
    assert "in sectors of 4096 bytes" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["node.raw"]
