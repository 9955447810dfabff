"""The benchmark's inputs: images of any size, pairs of releases, sparse disks."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from integration.bench.pairs import NEW, OLD, RECIPES, Pair, Side, built_at
from integration.bench.peers import plain_reason
from integration.bench.site import copy_sparse
from integration.bench.sizes import size_name, write_tree


def test_a_grown_tree_has_the_length_that_was_asked_for_and_repeats_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 16)
    write_tree(tmp_path / "root.tar", image, 10_000, "2.0.0")
    with tarfile.open(tmp_path / "root.tar") as tar:
        contents = {
            member.name: file.read() for member in tar.getmembers() if (file := tar.extractfile(member)) is not None
        }
    assert b'IMAGE_VERSION="2.0.0"' in contents.pop("usr/lib/os-release")
    assert sum(map(len, contents.values())) == 10_000
    rounds = [contents[name] for name in sorted(contents)]
    assert [piece[:3] for piece in rounds] == [b"\x00\x01\x02", b"\x01\x02\x03", b"\x02\x03\x04"]


def test_sizes_are_named_in_mebibytes() -> None:
    assert size_name(256) == "256MiB"


def test_why_a_peer_is_missing_names_no_host() -> None:
    assert "checksum" in plain_reason("desync@v0: verifying module: reading https://sums.example/x: 404 Not Found")
    assert plain_reason("cannot reach https://pkgs.example/a b") == "cannot reach (address) b"


def side(folder: Path, version: str, packages: str) -> Side:
    folder.mkdir()
    (folder / "packages").write_text(packages)
    return Side(version, folder)


def test_a_pair_tells_which_packages_differ(tmp_path: Path) -> None:
    old = side(tmp_path / "old", OLD, "curl\t8.1-1\nlinux-image\t6.12.1\nzlib1g\t1:1.3\n")
    new = side(tmp_path / "new", NEW, "curl\t8.1-2\nlinux-image\t6.12.2\nzlib1g\t1:1.3\n")
    assert Pair(RECIPES["K"], old, new).updated == ["curl 8.1-1 → 8.1-2", "linux-image 6.12.1 → 6.12.2"]


def test_the_newer_release_of_a_pair_is_a_month_younger() -> None:
    assert (built_at(NEW) - built_at(OLD)).days == 30


@pytest.mark.parametrize(("begin", "end"), [(0, 1 << 20), (65536, 524288), (0, 4096)])
def test_copying_a_part_of_a_sparse_file_copies_what_it_holds(tmp_path: Path, begin: int, end: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(1 << 20)
        for offset in (0, 131072, 524288 - 4096, 524288):
            file.seek(offset)
            file.write(b"x" * 4096)
    with target.open("wb") as file:
        file.truncate(1 << 20)
    copy_sparse(source, target, begin, end)
    content = target.read_bytes()
    assert content[begin:end] == source.read_bytes()[begin:end]
    assert not any(content[:begin])
    assert not any(content[end:])
