"""`acl-updater --disk FILE stage` killed for real, again and again: it goes on, and fetches hardly anything twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile_server import Handler, hostile
from tests.metered_server import metered
from tests.releases import Publisher, Release, make_release, successor
from updater import verity
from updater.config import Config
from updater.layouts import load_layout
from updater.manifest import BLOCK_BYTES
from updater.node.image import ImageNode
from updater.release.transport import Ways
from updater.slots import Slot
from updater.steps.session import open_session

ONE = make_release("1.0.0")
TWO = make_release("2.0.0", image=successor(ONE.image, (), range(20, 150)))


def begin(disk: Path, config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "updater", "--disk", str(disk), "--config", str(config), "stage"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed_ctrl_c)


def heed_ctrl_c() -> None:
    # A shell without job control has what it starts in the background ignore Ctrl-C, and so all that runs below it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def holds(disk: Path, release: Release) -> bool:
    with ImageNode(disk, load_layout("dps-root"), Config(), writable=False) as node:
        verity.prove(node.blocks(Slot.B, "data"), node.blocks(Slot.B, "hash"), release.manifest.root)
        journal = open_session(node, read_only=True).facts().journal
        assert journal.update is not None
        return journal.phase == "staged" and journal.update.release.version == release.version


def test_a_stage_that_is_killed_again_and_again_goes_on(
    publisher: Publisher, factory_disk: Path, tmp_path: Path
) -> None:
    whole = shutil.copyfile(factory_disk, tmp_path / "whole.raw")
    disk = shutil.copyfile(factory_disk, tmp_path / "disk.raw")
    config = tmp_path / "config.yaml"
    roots = publisher.mirror / "metadata"
    with metered(publisher.mirror) as (address, meter):
        config.write_text(json.dumps({"mirrors": [address], "trusted_roots": str(roots)}))
        assert begin(whole, config).wait(120) == 0
        clean, meter.served = meter.served, 0
        metadata = clean - 130 * BLOCK_BYTES
        assert metadata < clean // 3, "so little besides blocks that what is fetched twice shows"
        kills = 0
        # Past the metadata, and then past what the killed run has brought.
        for after in (metadata + 20_000, metadata + 200_000, metadata + 150_000, metadata + 100_000):
            process = begin(disk, config)
            meter.kill(process.pid, after)
            if process.wait(120) == 0:
                break
            assert process.returncode == -9
            kills += 1
            assert disk.with_name("disk.raw.partial").is_dir()
        else:
            assert begin(disk, config).wait(120) == 0
    assert kills >= 3
    assert holds(whole, TWO)
    assert holds(disk, TWO)
    assert not disk.with_name("disk.raw.partial").exists()
    print(f"{clean} bytes, {meter.served - clean} of them again after {kills} kills, metadata {metadata} each time")
    assert meter.served - clean <= kills * (metadata + 64 * 1024)


@pytest.mark.parametrize("ways", [Ways(), None], ids=["in all ways", "plain"])
def test_ctrl_c_ends_a_stalled_stage_at_once_and_the_next_one_goes_on(
    ways: Ways | None, factory_disk: Path, tmp_path: Path
) -> None:
    publisher = Publisher.of_pair(tmp_path / "publisher", ONE, TWO, ways)
    disk = shutil.copyfile(factory_disk, tmp_path / "disk.raw")
    config = tmp_path / "config.yaml"
    victims: list[int] = []

    def stalls(handler: Handler) -> None:
        path = publisher.mirror / handler.path.removeprefix("/repo/")
        if not path.is_file():
            handler.answer(404)
            return
        content = path.read_bytes()
        first, last = handler.span or (0, len(content) - 1)
        if last - first < 100_000:
            handler.serve(content)
            return
        spoken = f"bytes {first}-{last}/{len(content)}"
        # Not a byte of the body: whoever waits for one waits for ever.
        handler.answer(206, length=last + 1 - first, Content_Range=spoken)
        os.kill(victims[0], signal.SIGINT)
        handler.server.over.wait(100)

    settings: dict[str, object] = {"trusted_roots": str(publisher.mirror / "metadata")}
    with hostile(stalls) as server:
        patient = {"connect_s": 600, "stall_s": 600, "grace_s": 600}
        config.write_text(json.dumps({**settings, "mirrors": [server.url], "network": patient}))
        process = begin(disk, config)
        victims.append(process.pid)
        try:
            assert process.wait(120) == 130
        finally:
            process.kill()
    with metered(publisher.mirror) as (address, _):
        config.write_text(json.dumps({**settings, "mirrors": [address]}))
        assert begin(disk, config).wait(120) == 0
    assert holds(disk, TWO)
