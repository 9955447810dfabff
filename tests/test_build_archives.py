"""Archives and trees that builds are made of: the same content gives the same bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.images.layers import compose
from tests.root_trees import as_folder, as_tar, sound_tree
from updater.errors import InvalidDocument
from updater.release.cpio import TreeFile, read_files, write_cpio
from updater.release.root_tree import open_root_tree, read_text, resolve
from updater.release.unit_files import Units, parse_settings, time_span_s

MTIME_S = 1_767_225_600


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive with a reader of its own."""
    found: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        numbers = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_length = numbers[1], numbers[6], numbers[11]
        name = archive[offset + 110 : offset + 110 + name_length - 1].decode()
        start = -(-(offset + 110 + name_length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        offset = -(-(start + size) // 4) * 4


NAMES = st.text("abcdefgh-._", min_size=1, max_size=12).filter(lambda name: name.strip("."))


@given(st.dictionaries(NAMES.map(lambda name: f"dir/{name}"), st.binary(max_size=50), max_size=8))
def test_an_initrd_archive_holds_what_was_put_in(content: dict[str, bytes]) -> None:
    archive = write_cpio({name: TreeFile(raw) for name, raw in content.items()}, MTIME_S)

    found = members(archive)

    assert {name: raw for name, (_, raw) in found.items() if name != "dir"} == content
    assert len(archive) % 512 == 0


def test_an_initrd_archive_does_not_depend_on_the_order_of_its_files() -> None:
    files = {"b/2": TreeFile(b"2"), "a/1": TreeFile(b"1", 0o755), "a/l": TreeFile(link="1")}

    archive = write_cpio(files, MTIME_S)

    assert archive == write_cpio(dict(reversed(files.items())), MTIME_S)
    assert list(members(archive)) == ["a", "b", "a/1", "a/l", "b/2"]
    assert members(archive)["a/1"][0] & 0o777 == 0o755
    assert members(archive)["a/l"][1] == b"1"


def test_scripts_are_executable_whatever_their_mode_says(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "script").chmod(0o600)
    (tmp_path / "text").write_bytes(b"text")
    (tmp_path / "text").chmod(0o777)

    files = read_files(tmp_path)

    assert (files["script"].mode, files["text"].mode) == (0o755, 0o644)


def base_tar(path: Path) -> Path:
    return as_tar({"etc/hosts": TreeFile(b"old"), "usr/a": TreeFile(b"a"), "usr/doc/x": TreeFile(b"x")}, path)


def names_in_order(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [member.name.removeprefix("./") for member in tar if not member.isdir()]


def test_layers_replace_files_of_the_base_and_later_layers_win(tmp_path: Path) -> None:
    out = tmp_path / "out.tar"

    compose(
        base_tar(tmp_path / "base.tar"),
        [{"etc/hosts": TreeFile(b"first"), "usr/new": TreeFile(b"n")}, {"etc/hosts": TreeFile(b"second")}],
        frozenset({"usr/doc"}),
        out,
        mtime_s=MTIME_S,
    )

    with open_root_tree(out) as tree:
        assert tree.content("etc/hosts") == b"second"
        assert tree.content("usr/new") == b"n"
        assert tree.content("usr/doc/x") is None
    # What did not change keeps its place, and with it its blocks.
    assert names_in_order(out) == ["usr/a", "etc/hosts", "usr/new"]


def test_a_composed_tree_is_the_same_every_time(tmp_path: Path) -> None:
    base = base_tar(tmp_path / "base.tar")
    outs = [tmp_path / "1.tar", tmp_path / "2.tar"]

    for out in outs:
        compose(base, [{"x/y": TreeFile(b"1"), "x/z": TreeFile(link="y")}], frozenset(), out, mtime_s=MTIME_S)

    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_in_a_tar_the_later_of_two_equal_names_counts(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for content in (b"first", b"second"):
            member = tarfile.TarInfo("./etc/x")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    with open_root_tree(path) as tree:
        assert tree.content("etc/x") == b"second"


def test_links_are_followed_inside_the_tree_only(tmp_path: Path) -> None:
    tree = {
        "bin": TreeFile(link="usr/bin"),
        "usr/bin/sh": TreeFile(link="/usr/bin/dash"),
        "usr/bin/dash": TreeFile(b"dash"),
        "up": TreeFile(link="../../../etc/passwd"),
        "loop": TreeFile(link="loop"),
    }
    with open_root_tree(as_folder(tree, tmp_path)) as root:
        assert resolve(root, "/bin/sh") == "usr/bin/dash"
        assert resolve(root, "up") == "etc/passwd"
        assert resolve(root, "loop") is None
        assert read_text(root, "up") is None


def test_what_is_neither_folder_nor_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"no tar at all" * 100)

    with pytest.raises(InvalidDocument, match="no root tree"), open_root_tree(path):
        pass


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("15min", 900),
        ("1h 30min", 5400),
        ("1min30s", 90),
        ("500ms", 0.5),
        ("infinity", 0),
        ("0", 0),
        ("", 0),
        ("soon", 0),
        ("10 fortnights", 0),
    ],
)
def test_time_spans_are_read_as_systemd_reads_them(text: str, seconds: float) -> None:
    assert time_span_s(text) == seconds


@given(st.text(max_size=200))
def test_garbage_in_unit_files_is_skipped(text: str) -> None:
    for (section, key), value in parse_settings(text):
        assert isinstance(section, str)
        assert key == key.strip()
        assert value == value.strip()
    assert time_span_s(text) >= 0


def test_an_empty_assignment_clears_a_list(tmp_path: Path) -> None:
    tree = {
        "usr/lib/systemd/system/a.service": TreeFile(b"[Service]\nExecStart=/bin/one\n"),
        "usr/lib/systemd/system/a.service.d/10.conf": TreeFile(b"[Service]\nExecStart=\nExecStart=/bin/two\n"),
    }
    with open_root_tree(as_folder(tree, tmp_path)) as root:
        assert Units(root).settings("a.service")[("Service", "ExecStart")] == ["/bin/two"]


def test_units_are_enabled_and_masked_as_the_preset_says() -> None:
    tree = sound_tree()

    assert tree["etc/systemd/system/systemd-bless-boot.service"].link == "/dev/null"
    assert tree["etc/systemd/system/timers.target.wants/acl-updater-update.timer"].link == (
        "/usr/lib/systemd/system/acl-updater-update.timer"
    )
    assert "etc/systemd/system/boot-complete.target.requires/acl-updater-health.service" in tree
