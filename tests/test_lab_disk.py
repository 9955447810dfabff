"""The lab's own look at a disk: independent of the code under test, and of any mount."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.images.new_disk import make_empty_disk
from integration.lab.disk import Disk, written_pieces
from integration.lab.fat import FatReader, Torn
from integration.lab.lying_disk import begin_to_lie
from updater.errors import EnvironmentFailure
from updater.fatimage import FatImage
from updater.layouts import load_layout
from updater.run import run, search_path
from updater.slots import Slot

OFFSET = 1 << 20
TOOLS = ("mkfs.vfat", "mke2fs", "mcopy", "mdel", "mattrib")
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=search_path()) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")


def blank(path: Path, bits: int, megabytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(OFFSET + (megabytes << 20))
    sectors = str((megabytes << 20) // 1024)
    run(["mkfs.vfat", "-F", str(bits), "-s", "1", f"--offset={OFFSET // 512}", path, sectors])
    return path


@needs_tools
@pytest.mark.parametrize(("bits", "megabytes"), [(16, 8), (32, 64)])
def test_names_and_bytes_are_those_that_were_written(tmp_path: Path, bits: int, megabytes: int) -> None:
    image = blank(tmp_path / "disk", bits, megabytes)
    written = FatImage(image, offset_bytes=OFFSET, length_bytes=megabytes << 20)
    large = os.urandom(300_001)
    written.write_new("EFI/acl/b.efi", [large])
    written.replace("loader/entries/b+3-0.conf", b"title one\n")
    written.replace("loader/entries/a-long-name-of-somebody-else.conf", b"title two\n")
    written.remove("loader/entries/b+3-0.conf")
    written.replace("loader/entries/b+2-1.conf", b"title three\n")
    esp = FatReader(image, OFFSET)
    assert sorted(esp.names("loader/entries")) == ["a-long-name-of-somebody-else.conf", "b+2-1.conf"]
    assert esp.read("EFI/ACL/B.EFI") == large
    assert esp.read("loader/entries/b+2-1.conf") == b"title three\n"
    assert esp.read("loader/entries/b+3-0.conf") is None
    assert esp.names("no/such/folder") == []


@needs_tools
def test_a_byte_of_a_file_is_found_on_the_disk(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk", 16, 8)
    content = os.urandom(5000)
    FatImage(image, offset_bytes=OFFSET, length_bytes=8 << 20).write_new("one.bin", [content])
    esp = FatReader(image, OFFSET)
    for at in (0, 511, 512, 4999):
        offset = esp.offset_of("one.bin", at)
        assert offset is not None
        assert image.read_bytes()[offset] == content[at]
    assert esp.offset_of("one.bin", 5000) is None


@needs_tools
@pytest.mark.parametrize(("bits", "megabytes"), [(16, 8), (32, 64)])
def test_a_file_whose_clusters_are_lost_has_its_name_and_its_beginning_only(
    tmp_path: Path, bits: int, megabytes: int
) -> None:
    image = blank(tmp_path / "disk", bits, megabytes)
    written = FatImage(image, offset_bytes=OFFSET, length_bytes=megabytes << 20)
    content = os.urandom(800_000)
    written.write_new("one.bin", [content])
    esp = FatReader(image, OFFSET)
    found = esp.link_sector_of("one.bin", 400_000)
    assert found is not None
    offset, length = found
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    left = esp.read("one.bin")
    assert left is not None
    assert 0 < len(left) < 400_512
    assert content.startswith(left)
    assert esp.length_bytes("one.bin") == len(content)
    assert esp.link_sector_of("one.bin", 800_000) is None


def test_what_is_no_fat_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(1 << 16))
    with pytest.raises(Torn, match="no FAT boot sector"):
        FatReader(path, 0)


@needs_tools
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(min_value=0, max_value=(8 << 20) - 64), st.binary(min_size=1, max_size=64))
def test_a_torn_file_system_is_never_more_than_a_value_error(tmp_path: Path, at: int, noise: bytes) -> None:
    image = tmp_path / "disk"
    if not image.exists():
        blank(image, 16, 8)
        written = FatImage(image, offset_bytes=OFFSET, length_bytes=8 << 20)
        written.replace("loader/entries/a.conf", b"title one\n")
    with image.open("r+b") as file:
        file.seek(OFFSET + at)
        file.write(noise)
    try:
        esp = FatReader(image, OFFSET)
        esp.names("loader/entries")
        esp.read("loader/entries/a.conf")
    except ValueError:
        pass


def test_a_hole_and_written_zeros_are_the_same_to_a_slots_digest(tmp_path: Path) -> None:
    mib = 1 << 20
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 * mib)
        file.seek(3 * mib + 5)
        file.write(b"content")
        file.seek(5 * mib)
        file.write(bytes(mib))
        file.seek(8 * mib - 1)
        file.write(b"x")
    with path.open("rb") as file:
        pieces = dict(written_pieces(file.fileno(), mib, 7 * mib - 1))
    assert list(pieces) == [2 * mib]
    assert pieces[2 * mib][5:12] == b"content"
    with path.open("rb") as file:
        assert [at for at, _ in written_pieces(file.fileno(), mib, 7 * mib)] == [2 * mib, 6 * mib]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Return an empty disk whose ESP holds a UKI and an entry."""
    path = tmp_path / "node.raw"
    make_empty_disk(load_layout("dps-root"), path, seed="lab", sector_bytes=512)
    made = Disk(path)
    esp = made.partition("esp")
    files = FatImage(path, offset_bytes=esp.offset_bytes, length_bytes=esp.length_bytes)
    files.write_new("EFI/acl/b.efi", [bytes(range(256)) * 40])
    files.replace("loader/entries/b+3-0.conf", b"title two\n")
    return made


@needs_tools
def test_a_file_of_the_esp_is_rewritten_removed_and_protected(disk: Disk) -> None:
    disk.rewrite_file("EFI/acl/b.efi", lambda content: bytes(len(content)) + b"more")
    assert disk.esp().read("EFI/acl/b.efi") == bytes(10240) + b"more"
    disk.protect_file("loader/entries/b+3-0.conf")
    listing = run(
        ["mattrib", "-i", f"{disk.path}@@{disk.partition('esp').offset_bytes}", "::loader/entries/b+3-0.conf"]
    )
    assert b" R " in listing.stdout
    disk.remove_file("EFI/acl/b.efi")
    assert disk.esp().read("EFI/acl/b.efi") is None


@needs_tools
def test_a_part_of_a_partition_is_zeroed_and_nothing_beside_it(disk: Disk) -> None:
    tree = disk.partition("root-b-verity")
    with disk.path.open("r+b") as file:
        file.seek(tree.offset_bytes)
        file.write(b"x" * 16384)
    disk.zero("root-b-verity", 4096, 4096)
    with disk.path.open("rb") as file:
        file.seek(tree.offset_bytes)
        assert file.read(16384) == b"x" * 4096 + bytes(4096) + b"x" * 8192
    with pytest.raises(EnvironmentFailure):
        disk.zero("root-b-verity", tree.length_bytes - 1, 2)


@needs_tools
def test_a_block_of_the_data_and_one_of_the_tree_are_told_apart(disk: Disk) -> None:
    disk.flip_block("b", 3, "hash")
    for label, changed in (("root-b-verity", True), ("root-b", False)):
        with disk.path.open("rb") as file:
            file.seek(disk.partition(label).offset_bytes + 3 * 4096)
            assert any(file.read(4096)) is changed


@needs_tools
def test_a_slot_becomes_a_copy_of_the_other_under_its_own_names(disk: Disk) -> None:
    table, holds = disk.table(), disk.held(Slot.B)
    disk.flip_block("a", 5)
    disk.flip_block("a", 0, "hash")
    disk.flip_block("b", 9)
    disk.copy_slot("a", "b")
    for role in ("root-{}", "root-{}-verity"):
        first, second = (disk.partition(role.format(slot)) for slot in "ab")
        with disk.path.open("rb") as file:
            pieces = [list(written_pieces(file.fileno(), p.offset_bytes, p.length_bytes)) for p in (first, second)]
        assert pieces[0], role
        assert pieces[0] == pieces[1], role
    assert (disk.table(), disk.held(Slot.B)) == (table, holds)


@needs_tools
def test_the_clusters_of_one_file_are_lost_and_of_no_other(disk: Disk) -> None:
    disk.rewrite_file("EFI/acl/b.efi", lambda _: os.urandom(3 << 20))
    disk.lose_clusters("EFI/acl/b.efi")
    assert len(disk.esp().read("EFI/acl/b.efi") or b"") < 3 << 20
    assert disk.esp().read("loader/entries/b+3-0.conf") == b"title two\n"
    with pytest.raises(EnvironmentFailure, match=r"no EFI/acl/c\.efi"):
        disk.lose_clusters("EFI/acl/c.efi")


@needs_tools
def test_a_disk_that_lies_about_its_esp_loses_that_alone(disk: Disk, tmp_path: Path) -> None:
    lying = begin_to_lie(disk, ["esp"], tmp_path / "kept")
    disk.remove_file("loader/entries/b+3-0.conf")
    disk.flip_block("b", 0)
    state = disk.slot_digest("b")
    assert lying.lose() > 0
    assert disk.esp().names("loader/entries") == ["b+3-0.conf"]
    # The slot's UKI lies on the ESP, and was not touched; its block stays as it was written.
    assert disk.slot_digest("b") == state


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4 << 20)


@needs_tools
def test_a_disk_that_lies_about_everything_is_as_it_was(disk: Disk, tmp_path: Path) -> None:
    before = head(disk.path), disk.slot_digest("b")
    lying = begin_to_lie(disk, [], tmp_path / "kept")
    disk.rewrite_file("EFI/acl/b.efi", lambda content: content + b"more")
    disk.flip_block("b", 0)
    assert lying.lose() > 0
    assert (head(disk.path), disk.slot_digest("b")) == before
