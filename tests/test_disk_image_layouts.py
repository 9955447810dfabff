"""`acl-updater --disk FILE` on a disk of every layout, with sectors of either size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from integration.images.new_disk import fill_boot, fill_state, write_new_table
from tests.machine import SimulatedMachine
from tests.releases import Publisher, Release, make_release
from updater import verity
from updater.cli import main
from updater.errors import ExitCode
from updater.fatimage import FatImage
from updater.gpt import Gpt
from updater.layouts import Layout, layout_folders, parse_layout
from updater.slots import Slot
from updater.store import FACTORY_LEDGER

# Firmware's own boot options need a variable store of a real firmware: integration/ has one.
DISKS = [
    ("azure-container-linux", 512),
    ("azure-container-linux", 4096),
    ("dps-root", 4096),
    ("flatcar", 512),
    ("flatcar", 4096),
    ("grub-bios", 512),
]
LENGTHS = {"esp": "32MiB", "boot": "32MiB", "state": "16MiB", "data": "2MiB"}
TREE_OFFSET = 1 << 20


def small(name: str, folder: Path) -> tuple[Path, Layout]:
    """Write a layout with short partitions; return its file and what it says."""
    text = (layout_folders()[-1] / f"{name}.yaml").read_text()
    text = re.sub(r"hash_offset_bytes: [0-9]+", f"hash_offset_bytes: {TREE_OFFSET}", text)
    shipped = parse_layout(text.replace("1GiB", "9GiB").encode(), name)
    for partition in shipped.partitions:
        length = LENGTHS.get(partition.role, "1MiB")
        text = re.sub(rf"(label: {partition.label}\b.*?length: )[0-9]+[MG]iB", rf"\g<1>{length}", text, flags=re.S)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path, parse_layout(text.encode(), name)


class Site:
    """A disk image, and a repository that offers a newer release for its layout."""

    def __init__(self, name: str, sector: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Make both."""
        self.capsys = capsys
        path, self.layout = small(name, folder)
        self.one, self.two = (
            make_release(version, blocks=40, layouts=(name,), layout=self.layout) for version in ("1.0.0", "2.0.0")
        )
        publisher = Publisher(folder / "publisher")
        publisher.publish(self.one, self.two)
        publisher.promote("2.0.0")
        self.disk = folder / "node.raw"
        root_hash = self.one.manifest.root.root_hash
        self.table = write_new_table(self.layout, self.disk, root_hash=root_hash, seed="test", sector_bytes=sector)
        self._lay(self.one, folder)
        self.config = folder / "config.yaml"
        self.config.write_text(
            f"layout: {path}\nmirrors: [{publisher.mirror}]\ntrusted_roots: {publisher.mirror / 'metadata'}\n"
        )

    def _lay(self, release: Release, folder: Path) -> None:
        machine = SimulatedMachine(release, mirror=folder, roots=[], layout=self.layout.name)
        scratch = folder / "boot"
        scratch.mkdir()
        fill_boot(self.table.named(self.layout.boot_partition.label), self.disk, machine.esp.files, scratch)
        state = folder / "state"
        (state / self.layout.state_folder).mkdir(parents=True)
        (state / self.layout.state_folder / FACTORY_LEDGER).write_bytes(machine.state.files["ledger.json"])
        fill_state(self.table.named(self.layout.partition("state").label), self.disk, state, "test")
        data, tree = self.places(Slot.A)
        with self.disk.open("r+b") as file:
            file.seek(data)
            file.write(release.image)
            file.seek(tree)
            file.write(verity.superblock(release.manifest.root) + release.tree)

    def places(self, slot: Slot) -> tuple[int, int]:
        """Return where a slot's image and hash tree begin on the disk."""
        wanted = self.layout.partition("data", slot)
        data = offset(self.table, wanted.label)
        if wanted.hash_offset_bytes is not None:
            return data, data + wanted.hash_offset_bytes
        return data, offset(self.table, self.layout.partition("hash", slot).label)

    def typed(self, *words: str) -> dict[str, Any]:
        """Type a command; return its document."""
        self.capsys.readouterr()
        code = main(["--disk", str(self.disk), "--config", str(self.config), *words, "--json"])
        said = self.capsys.readouterr()
        assert code == ExitCode.DONE, said
        document: dict[str, Any] = json.loads(said.out)
        return document

    def at(self, start: int, length: int) -> bytes:
        """Return bytes of the disk."""
        with self.disk.open("rb") as file:
            file.seek(start)
            return file.read(length)

    @property
    def boot_files(self) -> FatImage:
        """Return the boot partition."""
        boot = self.table.named(self.layout.boot_partition.label)
        assert boot
        return FatImage(self.disk, offset_bytes=boot.offset_bytes, length_bytes=boot.length_bytes)


def offset(table: Gpt, label: str) -> int:
    found = table.named(label)
    assert found
    return found.offset_bytes


@pytest.mark.parametrize(("name", "sector"), DISKS, ids=lambda value: str(value))
def test_a_release_is_staged_armed_and_dropped_again(
    name: str, sector: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(name, sector, tmp_path, capsys)
    before = site.typed("status")
    assert (before["situation"], before["running"]["slot"]) == ("idle", "a")
    assert before["running"]["root_hash"] == site.one.manifest.root.root_hash
    site.typed("update")
    status = site.typed("status")
    assert (status["situation"], status["running"]["slot"], status["running"]["release"]) == ("armed", "b", "2.0.0")
    assert status["running"]["root_hash"] == site.two.manifest.root.root_hash
    assert status["other"]["root_hash"] == site.one.manifest.root.root_hash
    for slot, release in ((Slot.A, site.one), (Slot.B, site.two)):
        data, tree = site.places(slot)
        assert site.at(data, len(release.image)) == release.image
        assert site.at(tree + 4096, len(release.tree)) == release.tree
    addons = {path for folder in ("EFI/acl", "flatcar") for path in addons_below(site.boot_files, folder)}
    assert {path.rpartition("/")[2] for path in addons} == set(site.two.addons)
    assert len(addons) == len(site.two.addons)
    assert site.typed("layout", "check")["copies_agree"]
    site.typed("cancel")
    after = site.typed("status")
    assert (after["situation"], after["running"]["slot"]) == ("idle", "a")


def addons_below(files: FatImage, folder: str) -> list[str]:
    return [
        f"{folder}/{name}/{addon}"
        for name in files.names(folder)
        if name.endswith(".extra.d")
        for addon in files.names(f"{folder}/{name}")
    ]
