"""Releases that are a /usr: the image's tree, the parameters that find its slot, and what is refused."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.root_trees import VERSION, as_folder, as_tar, sound_tree
from updater.errors import InvalidDocument
from updater.layouts import Role, load_layout
from updater.release.image_checks import check_root_tree
from updater.release.ready_image import extract_image, file_system_of
from updater.release.root_tree import open_root_tree
from updater.release.uki_checks import check_command_line
from updater.release.unit_layer import slot_seeker, unit_layer
from updater.release.usr_tree import as_root_tree, place_in_usr, write_usr_tree
from updater.release.verity_parameters import slot_rules, verity_parameters
from updater.run import run, search_path
from updater.slots import Slot
from updater.verity_words import check_verity_words

ACL = load_layout("azure-container-linux")
ROOT_HASH = "5e" * 32
ROLES: tuple[Role, ...] = ("data", "hash")


class Release:
    class root:  # noqa: N801 - a value with the one attribute that is asked for
        root_hash = ROOT_HASH


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("./usr/bin/true", "bin/true"),
        ("usr", "."),
        ("etc/passwd", "share/acl/etc/passwd"),
        ("etc", "share/acl/etc"),
        ("var/lib/dpkg", None),
        ("usrlocal", None),
    ],
)
def test_usr_becomes_the_top_and_etc_its_defaults(name: str, place: str | None) -> None:
    assert place_in_usr(name) == place


@pytest.mark.parametrize("make", [as_folder, lambda files, path: as_tar(files, path.with_suffix(".tar"))])
def test_a_root_tree_goes_into_the_image_and_comes_back_sound(tmp_path: Path, make: object) -> None:
    tree = make(sound_tree(), tmp_path / "root")  # type: ignore[operator]
    write_usr_tree(tree, tmp_path / "usr.tar")
    with tarfile.open(tmp_path / "usr.tar") as tar:
        assert "lib/systemd/systemd" in tar.getnames()
        assert "sbin/init" in tar.getnames()
        tar.extractall(tmp_path / "image", filter="fully_trusted")  # noqa: S202 - written a line above

    with open_root_tree(as_root_tree(tmp_path / "image")) as root:
        assert check_root_tree(root, VERSION) == []


def test_two_names_of_one_file_stay_one_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        for name, link in (("./usr/bin/perl", ""), ("./usr/bin/perl5", "./usr/bin/perl"), ("./opt/x", "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.LNKTYPE, link) if link else (tarfile.REGTYPE, "")
            member.size = 0 if link else 4
            tar.addfile(member, io.BytesIO(b"perl") if not link else None)
        outside = tarfile.TarInfo("./usr/bin/x")
        outside.type, outside.linkname = tarfile.LNKTYPE, "./opt/x"
        tar.addfile(outside)

    write_usr_tree(tmp_path / "root.tar", tmp_path / "usr.tar")

    with tarfile.open(tmp_path / "usr.tar") as tar:
        assert tar.getmember("bin/perl5").islnk()
        assert tar.getmember("bin/perl5").linkname == "bin/perl"
        assert tar.getmember("bin/x").isreg()
        content = tar.extractfile("bin/x")
        assert content is not None
        assert content.read() == b"perl"


def test_names_beyond_a_tars_header_are_changed_as_well(tmp_path: Path) -> None:
    long = "usr/share/" + "deep/" * 40 + "file"
    with tarfile.open(tmp_path / "root.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(long))
    write_usr_tree(tmp_path / "root.tar", tmp_path / "usr.tar")
    with tarfile.open(tmp_path / "usr.tar") as tar:
        assert tar.getnames() == [long.removeprefix("usr/")]


@pytest.mark.parametrize("slot", Slot)
@pytest.mark.parametrize("per_slot", [True, False])
def test_the_words_of_a_build_are_those_that_a_node_accepts(slot: Slot, per_slot: bool) -> None:
    found = verity_parameters(ACL, ROOT_HASH, per_slot=per_slot)
    words = [*found.uki, *found.addons.get(slot, ())]
    check_verity_words(words, "uki.efi", release=Release(), layout=ACL, slot=slot)
    line = f"{' '.join(words)} panic=10 systemd.crash_action=reboot"
    assert check_command_line(line, ROOT_HASH, swaps="usr") == []


def test_without_its_addon_a_uki_names_no_slot_at_all() -> None:
    found = verity_parameters(ACL, ROOT_HASH, per_slot=True)
    assert found.uki == ()
    line = "panic=10 systemd.crash_action=reboot"
    assert "usrhash=" in check_command_line(line, ROOT_HASH, swaps="usr")[0].why


def test_addons_per_slot_are_refused_where_the_root_hash_finds_the_slot() -> None:
    with pytest.raises(InvalidDocument, match="follow the root hash"):
        verity_parameters(load_layout("dps-root"), ROOT_HASH, per_slot=True)


def test_the_rules_name_each_slots_partitions_and_nothing_else() -> None:
    rules = slot_rules(ACL).decode()
    for slot in Slot:
        for role in ROLES:
            assert rules.count(str(ACL.partition(role, slot).partuuid)) == 1
    assert f'"/usr/lib/acl-updater/usr-slot $devnode {ACL.partition("hash", Slot.B).label}"' in rules


def test_a_tree_that_would_lose_its_slots_links_is_refused(tmp_path: Path) -> None:
    with open_root_tree(as_folder(sound_tree(), tmp_path / "without")) as root:
        missing = check_root_tree(root, VERSION, slot_seeker(ACL))
    assert {finding.path.rpartition("/")[2] for finding in missing} == {"usr-slot", "61-acl-updater-usr-slot.rules"}
    with open_root_tree(as_folder({**sound_tree(), **unit_layer(ACL)}, tmp_path / "with")) as root:
        assert check_root_tree(root, VERSION, slot_seeker(ACL)) == []


@pytest.mark.parametrize("kind", ["erofs", "btrfs", "ext4"])
def test_a_ready_image_is_looked_into_whatever_its_file_system(kind: str, tmp_path: Path) -> None:
    maker = f"mk{'e2fs' if kind == 'ext4' else f'fs.{kind}'}"
    if shutil.which(maker, path=search_path()) is None:
        pytest.skip(f"not installed: {maker}")
    tree, image = as_folder(sound_tree(), tmp_path / "root"), tmp_path / "image"
    options: dict[str, list[str | Path]] = {
        "erofs": ["--quiet", image, tree],
        "btrfs": ["--quiet", "--rootdir", tree, image],
        "ext4": ["-q", "-t", "ext4", "-d", tree, image, "16M"],
    }
    if kind == "btrfs":
        with image.open("wb") as file:
            file.truncate(128 << 20)
    run([maker, *options[kind]])
    assert file_system_of(image) == kind
    (tmp_path / "out").mkdir()
    extract_image(image, tmp_path / "out")
    with open_root_tree(tmp_path / "out") as root:
        assert check_root_tree(root, VERSION) == []


def test_an_unknown_file_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    with pytest.raises(InvalidDocument, match="none of erofs, btrfs and ext4"):
        file_system_of(tmp_path / "image")
