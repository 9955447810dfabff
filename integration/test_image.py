"""The reference image itself: the same bytes every time, and a node that comes up whole, or degraded and saying so."""

from __future__ import annotations

import argparse
import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.images.reference import ReferenceImages, ReleaseSpec, build, prepare
from integration.lab.boots import Observer
from integration.lab.disk import Disk, copy_disk
from integration.lab.machine import Machine
from integration.lab.stock import Stock
from updater.manifest import BLOCK_BYTES
from updater.release.build import BuiltRelease
from updater.release.build_command import add_build_arguments, run_build
from updater.run import run
from updater.slots import Slot

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(1800)]

# A .pyc that belongs to its source by hash, which nobody looks at again. Source: PEP 552.
_UNCHECKED = 0b01


@pytest.fixture(scope="module")
def ingredients() -> ReferenceImages:
    return prepare()


@pytest.fixture(scope="module")
def release(ingredients: ReferenceImages, tmp_path_factory: pytest.TempPathFactory) -> BuiltRelease:
    return build(ReleaseSpec("7.0.0"), tmp_path_factory.mktemp("release"), ingredients)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_same_inputs_give_the_same_release(
    release: BuiltRelease, ingredients: ReferenceImages, tmp_path: Path
) -> None:
    again = build(ReleaseSpec("7.0.0"), tmp_path / "again", ingredients)

    assert again.manifest == release.manifest
    for name in ("manifest.json", "root.img", "root.tree", "uki.efi", "sbom.cdx.json"):
        assert digest(again.folder / name) == digest(release.folder / name), name


def test_a_usr_release_has_usr_at_its_top_and_an_addon_for_each_slot(
    ingredients: ReferenceImages, tmp_path: Path
) -> None:
    spec = ReleaseSpec("7.0.0", layout="azure-container-linux", slot_addons=True)
    one, two = (build(spec, tmp_path / name, ingredients) for name in ("one", "two"))

    assert one.manifest == two.manifest
    assert [addon.slot for addon in one.manifest.addons] == list(Slot)
    for addon in one.manifest.addons:
        assert digest(one.addon(addon.name)) == addon.sha256
    listing = run([ingredients.tools.tool("dump.erofs"), "--ls", "--path=/", one.image]).stdout.decode()
    found = {line.split()[-1] for line in listing.splitlines() if line.strip()}
    assert {"bin", "lib", "share"} <= found
    assert not {"etc", "usr", "var"} & found


def test_the_next_release_shares_nearly_all_blocks(
    release: BuiltRelease, ingredients: ReferenceImages, tmp_path: Path
) -> None:
    following = build(ReleaseSpec("7.0.1"), tmp_path / "next", ingredients)

    assert following.manifest.root.root_hash != release.manifest.root.root_hash
    # One salt for all releases: the leaves of both trees can be compared, without hashing an image again.
    assert following.manifest.root.salt == release.manifest.root.salt
    old, new = blocks(release.image), blocks(following.image)
    assert len(new - old) < len(new) // 50


def test_no_module_is_compiled_anew_by_every_start(ingredients: ReferenceImages) -> None:
    with tarfile.open(ingredients.base.tar) as base:
        compiled = [member for member in base if member.name.endswith(".pyc")]
        checked = [member.name for member in compiled if _flags(base, member) != _UNCHECKED]

    assert compiled
    assert checked == []


def _flags(base: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = base.extractfile(member)
    assert file is not None
    return int.from_bytes(file.read(8)[4:], "little")


def blocks(image: Path) -> set[bytes]:
    with image.open("rb") as file:
        return {hashlib.sha256(block).digest() for block in iter(lambda: file.read(BLOCK_BYTES), b"")}


def test_a_ready_image_becomes_the_same_root_as_its_tree(
    release: BuiltRelease, ingredients: ReferenceImages, tmp_path: Path
) -> None:
    parser = argparse.ArgumentParser()
    add_build_arguments(parser)
    base = ingredients.base
    words = ["7.0.0", "--image-id=acl-reference", f"--root-image={release.image}", f"--kernel={base.kernel}"]
    words += [f"--initrd={base.initrd}", f"--tools={ingredients.tools.bin}", f"--out={tmp_path}"]
    words += ["--built=2026-01-02T00:00:00Z"]

    assert run_build(parser.parse_args(words)) == 0

    assert digest(tmp_path / "7.0.0/root.img") == digest(release.image)
    assert digest(tmp_path / "7.0.0/root.tree") == digest(release.tree)


@contextmanager
def machine(stock: Stock, folder: Path) -> Iterator[tuple[Machine, Disk]]:
    disk = Disk(folder / "disk.raw")
    folder.mkdir(parents=True, exist_ok=True)
    copy_disk(stock.disk, disk.path)
    observer = Observer(folder, releases=stock.versions, look=disk.look)
    with Machine(stock.emulator, disk=disk.path, folder=folder, observer=observer) as running:
        yield running, disk
    disk.path.unlink()


def said(running: Machine, command: str) -> str:
    ran = running.guest("sh", "-c", command, budget_s=240)
    assert ran.exit_code == 0, ran
    return ran.stdout.strip()


def test_a_factory_disk_boots_whole_and_keeps_what_is_written(stock: Stock, results: Path) -> None:
    with machine(stock, results / "image-boots") as (running, _):
        running.power_on()
        running.wait(lambda: running.agent_is_up or None, "the guest's agent", budget_s=180)
        said(running, "until ctr version; do systemctl is-active --quiet containerd || sleep 1; done")
        identity = said(running, "cat /etc/machine-id")
        assert len(identity) == 32
        assert said(running, "cat /run/acl-updater/watchdog") == "hardware"
        assert said(running, "findmnt -no FSTYPE /") == "erofs"
        assert said(running, "findmnt -no FSTYPE /var") == "ext4"
        assert said(running, "findmnt -no FSTYPE /etc") == "overlay"
        assert said(running, "ls /run/acl-updater/degraded-state 2> /dev/null || echo whole") == "whole"
        for unit in ("systemd-bless-boot.service", "systemd-boot-update.service"):
            assert said(running, f"systemctl is-enabled {unit} || true") == "masked"
        said(running, "echo kept > /etc/kept")
        running.power_off()
        running.power_on()
        running.wait(lambda: running.agent_is_up or None, "the guest's agent", budget_s=180)
        assert said(running, "cat /etc/machine-id /etc/kept").split() == [identity, "kept"]
        assert said(running, "journalctl --list-boots -o json | tr '}' '\\n' | grep -c boot_id") == "2"


def test_a_node_whose_state_is_lost_boots_degraded_and_says_so(stock: Stock, results: Path) -> None:
    with machine(stock, results / "image-degraded") as (running, disk):
        state = disk.partition("state")
        with disk.path.open("r+b") as file:
            file.seek(state.offset_bytes)
            file.write(bytes(4 << 20))
        running.power_on()
        running.wait(lambda: running.agent_is_up or None, "the guest's agent", budget_s=180)
        assert said(running, "findmnt -no FSTYPE /var") == "tmpfs"
        assert "cannot be mounted" in said(running, "cat /run/acl-updater/degraded-state")
        assert said(running, "touch /etc/still-writable && echo yes") == "yes"
        said(running, "until ctr version; do systemctl is-active --quiet containerd || sleep 1; done")
