"""One contract for every kind of folder: mounted, in a FAT image, in an ext4 image, simulated."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulated import SimulatedDirectory
from updater.errors import EnvironmentFailure
from updater.ext4image import Ext4Image
from updater.fatimage import FatImage
from updater.files import Directory, MountedDirectory
from updater.run import run, search_path

OFFSET = 1 << 20


def missing(*tools: str) -> str:
    """Return which tools are absent."""
    return ", ".join(tool for tool in tools if shutil.which(tool, path=search_path()) is None)


NO_FAT = missing("mkfs.vfat", "mcopy", "fsck.vfat")
NO_EXT4 = missing("mkfs.ext4", "debugfs", "e2fsck")


@dataclass
class Place:
    """A folder under test, how to mark one of its files read-only, and how to check the medium below it."""

    folder: Directory
    mark_read_only: Callable[[str], None]
    check: Callable[[], None]
    small: bool


def fat_place(tmp_path: Path, bits: int) -> Place:
    """Return a FAT file system inside an image file, behind some other bytes."""
    megabytes = {12: 4, 16: 16, 32: 40}[bits]
    image = sparse(tmp_path / "fat.img", OFFSET + (megabytes << 20) + OFFSET)
    per_cluster = "4" if bits == 12 else "1"
    run(["mkfs.vfat", "-F", str(bits), "-s", per_cluster, f"--offset={OFFSET // 512}", image, f"{megabytes << 10}"])

    def check() -> None:
        bare = tmp_path / "bare.img"
        run(["dd", f"if={image}", f"of={bare}", "bs=1M", "skip=1", f"count={megabytes}", "conv=sparse"])
        run(["fsck.vfat", "-n", bare])
        with image.open("rb") as file:
            assert not any(file.read(OFFSET))
            file.seek(-OFFSET, os.SEEK_END)
            assert not any(file.read(OFFSET))

    def mark(path: str) -> None:
        run(["mattrib", "-i", f"{image}@@{OFFSET}", "+r", f"::/{path}"], env={"MTOOLS_SKIP_CHECK": "1"})

    return Place(FatImage(image, offset_bytes=OFFSET, length_bytes=megabytes << 20), mark, check, True)


def ext4_image(tmp_path: Path, block_bytes: int = 4096) -> Path:
    """Return an image file with an ext4 behind some other bytes."""
    image = sparse(tmp_path / "ext4.img", OFFSET + (24 << 20) + OFFSET)
    run(["mkfs.ext4", "-q", "-m", "0", "-b", str(block_bytes), "-E", f"offset={OFFSET}", image, f"{24 << 10}k"])
    return image


def ext4_place(tmp_path: Path, block_bytes: int) -> Place:
    """Return an ext4 inside an image file."""
    image = ext4_image(tmp_path, block_bytes)

    def mark(path: str) -> None:
        run(["debugfs", "-w", "-R", f"sif /lib/acl/{path} mode 0100444", f"{image}?offset={OFFSET}"])

    folder = Ext4Image(image, offset_bytes=OFFSET, base="lib/acl", writable=True)
    return Place(folder, mark, lambda: assert_ext4_sound(image), True)


def assert_ext4_sound(image: Path) -> None:
    """Assert that a full check of the file system finds nothing."""
    run(["e2fsck", "-f", "-n", f"{image}?offset={OFFSET}"])


def sparse(path: Path, length: int) -> Path:
    """Make a file of zeros."""
    with path.open("wb") as file:
        file.truncate(length)
    return path


KINDS: dict[str, Callable[[Path], Place]] = {
    "mounted": lambda tmp: Place(
        MountedDirectory(tmp / "state"), lambda path: (tmp / "state" / path).chmod(0o444), lambda: None, False
    ),
    "fat12": lambda tmp: fat_place(tmp, 12),
    "fat16": lambda tmp: fat_place(tmp, 16),
    "fat32": lambda tmp: fat_place(tmp, 32),
    "ext4-1k": lambda tmp: ext4_place(tmp, 1024),
    "ext4-4k": lambda tmp: ext4_place(tmp, 4096),
}


def simulated() -> Place:
    """Return a simulated folder."""
    folder = SimulatedDirectory(capacity_bytes=20 << 20)
    return Place(folder, folder.set_read_only, lambda: None, True)


@pytest.fixture(params=[*KINDS, "simulated"])
def place(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[Place]:
    kind: str = request.param
    if kind.startswith("fat") and NO_FAT:
        pytest.skip(f"not installed: {NO_FAT} (dosfstools, mtools)")
    if kind.startswith("ext4") and NO_EXT4:
        pytest.skip(f"not installed: {NO_EXT4} (e2fsprogs)")
    made = simulated() if kind == "simulated" else KINDS[kind](quick_path)
    yield made
    made.check()


def test_what_is_absent_is_none_and_can_be_removed(place: Place) -> None:
    folder = place.folder
    assert folder.read("loader/loader.conf") is None
    assert folder.size("loader/loader.conf") is None
    assert folder.names() in ([], ["lost+found"])
    assert folder.names("loader/entries") == []
    folder.remove("loader")
    folder.remove("loader/loader.conf")
    with pytest.raises(EnvironmentFailure):
        list(folder.chunks("loader/loader.conf"))
    with pytest.raises(EnvironmentFailure):
        folder.is_read_only("loader/loader.conf")


def test_a_file_is_written_with_its_parents_and_read_back(place: Place) -> None:
    folder = place.folder
    folder.write_new("loader/entries/a+3-0.conf", [b"title ", b"one\n"])
    assert folder.read("loader/entries/a+3-0.conf") == b"title one\n"
    assert folder.size("loader/entries/a+3-0.conf") == 10
    assert b"".join(folder.chunks("loader/entries/a+3-0.conf")) == b"title one\n"
    assert folder.names("loader/entries") == ["a+3-0.conf"]
    assert folder.names("loader") == ["entries"]
    assert not folder.is_read_only("loader/entries/a+3-0.conf")


def test_a_folder_is_no_file(place: Place) -> None:
    folder = place.folder
    folder.write_new("loader/loader.conf", [b"timeout 0\n"])
    if isinstance(folder, MountedDirectory):
        with pytest.raises(EnvironmentFailure):
            folder.read("loader")
    else:
        assert folder.read("loader") is None
    assert folder.read("loader/loader.conf/x") is None
    assert folder.names("loader/loader.conf") == []
    with pytest.raises(EnvironmentFailure):
        folder.write_new("loader/loader.conf/x", [b""])


@pytest.mark.parametrize("lengths", [(0, 5000), (5000, 0), (70_000, 4096), (4096, 70_000)])
def test_new_content_takes_the_place_of_old_whatever_their_lengths(place: Place, lengths: tuple[int, int]) -> None:
    old, new = (os.urandom(length) for length in lengths)
    folder = place.folder
    folder.write_new("acl/a.efi", [old])
    assert folder.read("acl/a.efi") == old
    folder.write_new("acl/a.efi", [new])
    assert folder.read("acl/a.efi") == new
    folder.replace("acl/a.efi", old)
    assert folder.read("acl/a.efi") == old
    assert folder.names("acl") == ["a.efi"]


def test_a_file_is_overwritten_in_the_sectors_that_it_owns(place: Place) -> None:
    place.folder.write_new("folder/beside", [b"beside"])
    place.folder.write_new("folder/block", [b"a" * 1024])
    place.folder.overwrite("folder/block", b"b" * 512 + b"a" * 512)
    assert place.folder.read("folder/block") == b"b" * 512 + b"a" * 512
    assert place.folder.read("folder/beside") == b"beside"
    assert place.folder.names("folder") == ["beside", "block"]
    for path, content in (("folder/block", b"short"), ("folder/absent", b"x")):
        with pytest.raises(EnvironmentFailure, match="cannot overwrite"):
            place.folder.overwrite(path, content)
    assert place.folder.read("folder/block") == b"b" * 512 + b"a" * 512


def test_large_files_survive_in_chunks(place: Place) -> None:
    content = os.urandom(1_234_567)
    pieces = [content[at : at + 99_999] for at in range(0, len(content), 99_999)]
    place.folder.write_new("acl/b.efi", iter(pieces))
    digest = hashlib.sha256()
    for chunk in place.folder.chunks("acl/b.efi"):
        assert 0 < len(chunk) <= 1 << 20
        digest.update(chunk)
    assert digest.digest() == hashlib.sha256(content).digest()
    with pytest.raises(EnvironmentFailure) as caught:
        place.folder.read("acl/b.efi")
    assert caught.value.reason == "file-too-large"
    assert place.folder.read("acl/b.efi", limit_bytes=len(content)) == content


def test_removing_takes_a_file_or_a_folder_with_all_in_it(place: Place) -> None:
    folder = place.folder
    for path in ("evidence/1/journal", "evidence/1/deep/er/x", "evidence/2/journal", "evidence-not"):
        folder.write_new(path, [b"x"])
    folder.remove("evidence/1/journal")
    assert folder.names("evidence/1") == ["deep"]
    folder.remove("evidence")
    assert folder.names("evidence") == []
    assert folder.read("evidence/2/journal") is None
    assert folder.read("evidence-not") == b"x"


def test_many_names_are_listed_in_order(place: Place) -> None:
    names = sorted(f"{kind}+{left}-{done}.conf" for kind in "ab" for left in range(4) for done in range(3))
    for name in reversed(names):
        place.folder.write_new(f"loader/entries/{name}", [name.encode()])
    assert place.folder.names("loader/entries") == names
    assert all(place.folder.read(f"loader/entries/{name}") == name.encode() for name in names)


def test_long_and_odd_names_are_kept(place: Place) -> None:
    names = ["a" * 100 + ".addon.efi", "with space.json", "snap+1~2.json", "x", "202606.29.0.json", "héllo.json"]
    for name in names:
        place.folder.replace(f"manifests/{name}", name.encode())
    assert place.folder.names("manifests") == sorted(names)
    assert all(place.folder.read(f"manifests/{name}") == name.encode() for name in names)


def test_a_read_only_file_is_recognised_replaced_and_removed(place: Place) -> None:
    for path in ("entries/a.conf", "entries/b.conf"):
        place.folder.write_new(path, [b"old"])
        place.mark_read_only(path)
        assert place.folder.is_read_only(path)
    place.folder.replace("entries/a.conf", b"new")
    assert place.folder.read("entries/a.conf") == b"new"
    place.folder.remove("entries/b.conf")
    assert place.folder.names("entries") == ["a.conf"]


def test_free_space_is_counted_to_the_block(place: Place) -> None:
    if not place.small:
        pytest.skip("others write to this file system meanwhile")
    place.folder.write_new("a/first", [b"x"])
    before = place.folder.free_bytes()
    place.folder.write_new("a/second", [os.urandom(1_000_000)])
    between = place.folder.free_bytes()
    assert 1_000_000 <= before - between <= 1_000_000 + 16_384
    place.folder.remove("a/second")
    assert before - 16_384 <= place.folder.free_bytes() <= before


def test_a_full_medium_says_so_and_keeps_what_it_had(place: Place) -> None:
    if not place.small:
        pytest.skip("this file system is too large to fill")
    place.folder.write_new("kept", [b"kept"])
    room = place.folder.free_bytes()
    with pytest.raises(EnvironmentFailure) as caught:
        place.folder.write_new("big", (bytes(1 << 20) for _ in range((room >> 20) + 2)))
    assert caught.value.reason == "no-space"
    assert place.folder.read("kept") == b"kept"
    place.folder.write_new("small", [b"small"])
    assert place.folder.read("small") == b"small"


def test_paths_that_leave_the_folder_are_refused_by_every_call(place: Place) -> None:
    folder = place.folder
    calls: list[Callable[[str], object]] = [
        folder.read,
        lambda path: list(folder.chunks(path)),
        lambda path: folder.write_new(path, [b""]),
        lambda path: folder.replace(path, b""),
        lambda path: folder.overwrite(path, b""),
        folder.remove,
        folder.names,
        folder.size,
        folder.is_read_only,
    ]
    for path in ("/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\0b"):
        for call in calls:
            with pytest.raises(ValueError):
                call(path)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "replace", "remove", "remove-folder"]),
        st.sampled_from(["a.conf", "b.conf", "deep/a.conf", "deep/er/b.conf"]),
        st.integers(0, 9000),
    ),
    max_size=12,
)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_any_sequence_of_changes_agrees_with_a_plain_dictionary(
    place: Place, steps: list[tuple[str, str, int]]
) -> None:
    place.folder.remove("top")
    model: dict[str, bytes] = {}
    for verb, path, length in steps:
        content = bytes([length % 256]) * length
        if verb == "write":
            place.folder.write_new(f"top/{path}", [content])
            model[path] = content
        elif verb == "replace":
            place.folder.replace(f"top/{path}", content)
            model[path] = content
        elif verb == "remove":
            place.folder.remove(f"top/{path}")
            model.pop(path, None)
        else:
            place.folder.remove("top/deep")
            model = {name: kept for name, kept in model.items() if not name.startswith("deep/")}
    for path in ("a.conf", "b.conf", "deep/a.conf", "deep/er/b.conf"):
        assert place.folder.read(f"top/{path}") == model.get(path)
        assert place.folder.size(f"top/{path}") == (len(model[path]) if path in model else None)


@pytest.mark.skipif(bool(NO_FAT), reason=f"not installed: {NO_FAT} (dosfstools, mtools)")
def test_what_is_no_fat_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="holds no FAT file system"):
        FatImage(sparse(tmp_path / "zeros", 1 << 20))
    with pytest.raises(EnvironmentFailure, match="cannot read"):
        FatImage(tmp_path / "nowhere")


@pytest.mark.skipif(bool(NO_FAT), reason=f"not installed: {NO_FAT} (dosfstools, mtools)")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_fat_file_system_ends_in_an_error_never_in_a_loop(quick_path: Path, data: st.DataObject) -> None:
    image = quick_path / "fat.img"
    if not image.exists():
        place = fat_place(quick_path, 12)
        place.folder.write_new("loader/entries/a+3-0.conf", [b"x" * 3000])
        shutil.copy(image, quick_path / "sound.img")
    raw = bytearray((quick_path / "sound.img").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = OFFSET + data.draw(st.one_of(st.integers(11, 64), st.integers(2048, 2300), st.integers(0, 300_000)))
        raw[at] = data.draw(st.integers(0, 255))
    image.write_bytes(raw)
    with contextlib.suppress(EnvironmentFailure):
        folder = FatImage(image, offset_bytes=OFFSET, length_bytes=4 << 20)
        for name in folder.names("loader/entries"):
            with contextlib.suppress(EnvironmentFailure, ValueError):
                content = folder.read(f"loader/entries/{name}")
                assert content is None or len(content) <= 1 << 20
        assert 0 <= folder.free_bytes() <= 1 << 30


@pytest.mark.skipif(bool(NO_EXT4), reason=f"not installed: {NO_EXT4} (e2fsprogs)")
class TestExt4:
    """What only an ext4 image does."""

    def test_files_belong_to_root_and_are_readable_by_all(self, tmp_path: Path) -> None:
        image = ext4_image(tmp_path)
        folder = Ext4Image(image, offset_bytes=OFFSET, base="lib/acl", writable=True)
        folder.write_new("deep/a.json", [b"1"])
        folder.replace("deep/a.json", b"2")
        listed = run(["debugfs", "-R", "ls -p /lib/acl/deep", f"{image}?offset={OFFSET}"]).stdout.decode()
        assert "/100644/0/0/a.json/1/" in listed
        assert "/040755/0/0/.//" in listed

    def test_what_is_no_ext4_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(EnvironmentFailure, match="there is no ext4 file system"):
            Ext4Image(sparse(tmp_path / "zeros", 1 << 20))
        with pytest.raises(EnvironmentFailure, match="its partition has"):
            Ext4Image(ext4_image(tmp_path), offset_bytes=OFFSET, length_bytes=23 << 20)

    def test_an_image_that_is_open_for_reading_is_never_changed(self, tmp_path: Path) -> None:
        image = ext4_image(tmp_path)
        before = image.read_bytes()
        folder = Ext4Image(image, offset_bytes=OFFSET)
        with pytest.raises(ValueError):
            folder.write_new("a", [b"1"])
        assert image.read_bytes() == before

    def unreplayed(self, tmp_path: Path) -> Path:
        """Return an image whose journal says "new" where the file system still says "old"."""
        image = ext4_image(tmp_path)
        Ext4Image(image, offset_bytes=OFFSET, writable=True).write_new("state.json", [b"old" + bytes(4093)])
        at = f"{image}?offset={OFFSET}"
        block = run(["debugfs", "-R", "bmap state.json 0", at]).stdout.strip().decode()
        (tmp_path / "block").write_bytes(b"new" + bytes(4093))
        run(["debugfs", "-w", "-f", "-", at], stdin=f"jo\njw -b {block} {tmp_path / 'block'}\njc\n".encode())
        raw = image.read_bytes()
        assert struct.unpack_from("<I", raw, OFFSET + 1024 + 96)[0] & 4
        assert raw[OFFSET + int(block) * 4096 :][:3] == b"old"
        return image

    def test_a_journal_is_replayed_in_a_copy_for_reading(self, tmp_path: Path) -> None:
        image = self.unreplayed(tmp_path)
        before = image.read_bytes()
        content = Ext4Image(image, offset_bytes=OFFSET).read("state.json")
        assert content is not None
        assert content[:3] == b"new"
        assert image.read_bytes() == before

    def test_a_replayed_journal_is_written_back_by_the_first_edit(self, tmp_path: Path) -> None:
        image = self.unreplayed(tmp_path)
        before = image.read_bytes()
        folder = Ext4Image(image, offset_bytes=OFFSET, length_bytes=24 << 20, writable=True)
        content = folder.read("state.json")
        assert content is not None
        assert content[:3] == b"new"
        assert image.read_bytes() == before
        folder.write_new("other", [b"x"])
        content = folder.read("state.json")
        assert content is not None
        assert content[:3] == b"new"
        assert_ext4_sound(image)
        after = image.read_bytes()
        assert (after[:OFFSET], after[-OFFSET:]) == (before[:OFFSET], before[-OFFSET:])
