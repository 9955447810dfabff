"""`acl-release build`: what it takes from the tree, and what it refuses before any tool runs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.root_trees import VERSION, as_folder, sound_tree
from updater.errors import InvalidDocument, Refused
from updater.layouts import load_layout
from updater.release.build import BuildInputs, build_release, command_line
from updater.release.build_command import add_build_arguments, find_kernel, run_build
from updater.release.cpio import TreeFile
from updater.release.root_tree import open_root_tree
from updater.release.uki_checks import check_command_line
from updater.release.verity_parameters import verity_parameters


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_build_arguments(parser)
    return parser.parse_args([VERSION, "--image-id", "acl", *words])


@pytest.mark.parametrize(
    ("kernel", "initrd"),
    [
        ("usr/lib/modules/6.6.1-azl3/vmlinuz", "boot/initramfs-6.6.1-azl3.img"),
        ("boot/vmlinuz-6.6.1-azl3", "boot/initrd.img-6.6.1-azl3"),
        ("boot/vmlinuz-6.6.1-azl3", ""),
    ],
)
def test_the_trees_only_kernel_is_taken_with_its_initrd(tmp_path: Path, kernel: str, initrd: str) -> None:
    tree = {kernel: TreeFile(b"kernel"), **({initrd: TreeFile(b"initrd")} if initrd else {})}

    with open_root_tree(as_folder(tree, tmp_path)) as root:
        assert find_kernel(root) == ("6.6.1-azl3", kernel, initrd)


@pytest.mark.parametrize("names", [(), ("boot/vmlinuz-1", "boot/vmlinuz-2")])
def test_no_kernel_or_two_kernels_must_be_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    with (
        open_root_tree(as_folder({name: TreeFile(b"k") for name in names}, tmp_path)) as root,
        pytest.raises(InvalidDocument, match="give --kernel"),
    ):
        find_kernel(root)


def test_an_unsafe_tree_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tree = sound_tree()
    del tree["etc/systemd/system/systemd-bless-boot.service"]
    folder = as_folder({**tree, "boot/vmlinuz-1": TreeFile(b"k"), "boot/initrd.img-1": TreeFile(b"i")}, tmp_path / "t")

    with pytest.raises(Refused, match="systemd-bless-boot"):
        run_build(arguments("--root", str(folder), "--out", str(tmp_path / "out")))

    assert list((tmp_path / "out" / VERSION).iterdir()) == []


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="certificate"):
        run_build(arguments("--root", str(tmp_path), "--secure-boot-key", "key.pem"))


def test_a_ready_image_needs_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="give --kernel and --initrd"):
        run_build(arguments("--root-image", str(tmp_path / "root.img")))


def test_a_bad_build_time_is_refused(tmp_path: Path) -> None:
    tree = as_folder({"boot/vmlinuz-1": TreeFile(b"k"), "boot/initrd.img-1": TreeFile(b"i")}, tmp_path)
    with pytest.raises(InvalidDocument, match="is no time"):
        run_build(arguments("--root", str(tree), "--built", "yesterday"))


def test_a_build_time_without_a_zone_is_refused(tmp_path: Path) -> None:
    inputs = BuildInputs(
        version=VERSION,
        image_id="acl",
        built=datetime(2026, 1, 2),
        root=tmp_path,
        kernel=tmp_path / "k",
        initrds=[],
        out=tmp_path / "out",
    )
    with pytest.raises(InvalidDocument, match="has no zone"):
        build_release(inputs)


def test_the_command_line_that_build_writes_passes_its_own_checks() -> None:
    root_hash = "ab" * 32
    verity = verity_parameters(load_layout("dps-root"), root_hash, per_slot=False)
    assert check_command_line(command_line(verity.uki, 10, ["console=ttyS0"]), root_hash) == []


def test_build_times_are_utc(tmp_path: Path) -> None:
    from updater.release.build_command import _build_time

    assert _build_time("2026-11-20T06:00:00+01:00") == datetime(2026, 11, 20, 5, tzinfo=UTC)
