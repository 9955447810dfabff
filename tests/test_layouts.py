"""Layouts are data, refused whole when they contradict themselves."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import InvalidDocument
from updater.layouts import load_layout, parse_layout
from updater.slots import Slot

SHIPPED = Path(__file__).parent.parent / "partition-layouts"
DPS_ROOT = (SHIPPED / "dps-root.yaml").read_text()

ROOT_A = "length: 512MiB\n    partuuid: root-hash-head\n  - label: root-a-verity"
ROOT_B = """slot: b
    type: 4f68bce3-e8cd-4db1-96e7-fbcaf984b709
    length: 512MiB
    partuuid: root-hash-head"""
FIXED = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_layout_that_ships_is_valid(path: Path) -> None:
    assert parse_layout(path.read_bytes(), path.name).name == path.stem


def test_partuuids_are_the_head_and_the_tail_of_the_root_hash() -> None:
    layout = load_layout("dps-root")
    root_hash = "00112233445566778899aabbccddeeff" + "ffeeddccbbaa99887766554433221100"
    assert layout.partition("data", Slot.B).partuuid_for(root_hash) == UUID("00112233445566778899aabbccddeeff")
    assert layout.partition("hash", Slot.B).partuuid_for(root_hash) == UUID("ffeeddccbbaa99887766554433221100")
    assert layout.partition("esp").partuuid_for(root_hash) is None


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (ROOT_A, ROOT_A.replace("512MiB", "1GiB"), "differs from root-a's 1GiB"),
        ("label: root-b\n", "label: root-a\n", "two partitions bear the label 'root-a'"),
        ("role: esp", "role: shared", "0 partitions have the role esp or boot"),
        ("role: state", "role: esp", "2 partitions have the role esp or boot"),
        ("    slot: b\n", "", "belongs to a slot"),
        ("{label: state, role: state", "{label: state, slot: a, role: state", "shared by both slots"),
        ("512MiB", "512 MB", "matching regex"),
        ("512MiB", "0MiB", "matching regex"),
        ("partuuid: root-hash-head", "partuuid: newest", "matching regex"),
        ("tries: 3", "tries: 0", ">= 1"),
        ("backend: systemd-boot", "backend: lilo", "invalid enum value"),
        ("label: root-a\n", "label: 'root a'\n", "matching regex"),
        ("format: 1", "format: 1\nformat: 1", "stands twice"),
        ("name: dps-root", "name: &x dps-root\ndescription: *x", "aliases are not allowed"),
        ("swaps: root", "swaps: root\nsurprise: 1", "'surprise' is not known"),
        ("swaps: root", "swaps: root\nstate_folder: /var", "matching regex"),
        ("role: esp", "role: boot", "systemd-boot needs UEFI"),
        ("backend: systemd-boot", "backend: grub-env\n  entries: type2", "grub-env has no Type #2 entries"),
        ("label: root-b\n", "label: root-b\n    number: 2\n", "partition 2 follows partition 3"),
        ("label: root-b\n", "label: root-b\n    hash_offset_bytes: 4096\n", "yet there are hash partitions"),
        ("{label: state, ", "{label: state, hash_offset_bytes: 4096, ", "no hash tree starts at byte 4096 of a state"),
        ("{label: state, ", "{label: state, optional: true, ", "no update works without the role state"),
        ("{label: state, ", "{label: state, partuuid: root-hash-head, ", "holds no root hash"),
        (ROOT_B, ROOT_B.replace("root-hash-head", FIXED), "follows another rule than root-a's"),
        (ROOT_B, ROOT_B.replace("4f68bce3", "4f68bce4"), "differs from root-a's"),
    ],
)  # fmt: skip
def test_a_contradictory_layout_is_refused(old: str, new: str, why: str) -> None:
    assert old in DPS_ROOT
    with pytest.raises(InvalidDocument) as caught:
        parse_layout(DPS_ROOT.replace(old, new).encode(), "mine.yaml")
    assert why in caught.value.why
    assert caught.value.source == "mine.yaml"
    assert caught.value.mend


def test_the_disk_of_azure_container_linux_is_the_published_one() -> None:
    layout = load_layout("azure-container-linux")
    assert [(partition.label, partition.length_bytes >> 20) for partition in layout.partitions] == [
        ("EFI-SYSTEM", 192),
        ("USR-A", 1024),
        ("HASH-A", 9),
        ("HASH-SIG-A", 1),
        ("USR-B", 1024),
        ("HASH-B", 9),
        ("HASH-SIG-B", 1),
        ("OEM", 128),
        ("ROOT", 2162),
    ]
    assert layout.partition("data", Slot.B).fixed_partuuid == UUID("e03dd35c-7c2d-4a47-b3fe-27f15780a57c")
    assert layout.partition("data", Slot.B).partuuid_for("ab" * 32) == layout.partition("data", Slot.B).fixed_partuuid
    assert layout.state_folder == "var/lib/acl-updater"
    assert layout.numbers["ROOT"] == 9


def test_numbers_that_a_layout_leaves_out_stay_free() -> None:
    assert load_layout("flatcar").numbers == {
        "EFI-SYSTEM": 1,
        "BIOS-BOOT": 2,
        "USR-A": 3,
        "USR-B": 4,
        "OEM": 6,
        "OEM-CONFIG": 7,
        "ROOT": 9,
    }


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_layout_has_a_boot_partition_and_room_for_its_state(path: Path) -> None:
    layout = load_layout(path.stem)
    assert layout.boot_partition.role == ("esp" if layout.is_uefi else "boot")
    assert layout.partition("state").length_bytes >= 512 << 20


def test_an_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(InvalidDocument, match=r"choose one of: .*dps-root"):
        load_layout("floppy")


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_garbage_is_refused_with_our_own_error(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_layout(raw, "garbage.yaml")
