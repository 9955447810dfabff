"""Loop devices with sectors of either size: what only a block device does, and root may see."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.images.new_disk import make_empty_disk
from updater.cli import main
from updater.errors import Refused
from updater.layouts import load_layout
from updater.partition import FileBlocks
from updater.run import find_tool, run

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("losetup") is None, reason="loop devices need root and losetup"
)


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    disk = tmp_path / "node.raw"
    make_empty_disk(load_layout("azure-container-linux"), disk, sector_bytes=request.param)
    found = run(["losetup", "--sector-size", str(request.param), "--find", "--show", disk]).stdout.decode().strip()
    try:
        yield Path(found), request.param
    finally:
        run(["losetup", "--detach", found])


def test_other_tools_read_the_table_with_the_devices_own_sectors(device: tuple[Path, int]) -> None:
    node, sector = device
    told = json.loads(run([find_tool("sfdisk"), "--json", node]).stdout)["partitiontable"]
    assert told["sectorsize"] == sector
    wanted = {partition.label: partition.length_bytes for partition in load_layout("azure-container-linux").partitions}
    assert {row["name"]: row["size"] * sector for row in told["partitions"]} == wanted
    assert all(row["start"] * sector % (1 << 20) == 0 for row in told["partitions"])


def test_a_stale_backup_is_repaired_on_the_device(device: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    node, sector = device
    with node.open("r+b", buffering=0) as file:
        file.seek(-sector, os.SEEK_END)
        file.write(bytes(sector))
        os.fsync(file.fileno())
    arguments = ["layout", "check", "--layout", "azure-container-linux", "--disk", str(node)]
    assert main(arguments) == 1
    assert main([*arguments, "--repair"]) == 0
    assert f"in sectors of {sector} bytes" in capsys.readouterr().out
    assert "problem" not in run([find_tool("sgdisk"), "--verify", node]).stdout.decode().replace("No problems", "")


def test_an_image_and_the_tree_behind_it_are_written_side_by_side(device: tuple[Path, int]) -> None:
    node, _ = device
    block = os.urandom(4096)
    with (
        FileBlocks(node, offset_bytes=200 << 20, length_bytes=1 << 20, writable=True) as data,
        FileBlocks(node, offset_bytes=201 << 20, length_bytes=1 << 20, writable=True) as tree,
    ):
        data.write(4096, block)
        tree.write(0, block[::-1])
        data.close()
        # The claim outlives the first of them.
        with pytest.raises(OSError, match="busy"):
            os.open(node, os.O_RDWR | os.O_EXCL)
        tree.flush()
    with FileBlocks(node) as whole:
        assert whole.read((200 << 20) + 4096, 4096) == block
        assert whole.read(201 << 20, 4096) == block[::-1]
    os.close(os.open(node, os.O_RDWR | os.O_EXCL))


def test_a_device_that_somebody_else_holds_is_not_written(device: tuple[Path, int]) -> None:
    node, _ = device
    holder = os.open(node, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(Refused) as caught:
            FileBlocks(node, writable=True)
    finally:
        os.close(holder)
    assert caught.value.reason == "device-in-use"
    FileBlocks(node, writable=True).close()
