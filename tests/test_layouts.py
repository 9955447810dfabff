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
        ("role: esp", "role: shared", "0 partitions have the role esp"),
        ("role: state", "role: esp", "2 partitions have the role esp"),
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
    ],
)  # fmt: skip
def test_a_contradictory_layout_is_refused(old: str, new: str, why: str) -> None:
    assert old in DPS_ROOT
    with pytest.raises(InvalidDocument) as caught:
        parse_layout(DPS_ROOT.replace(old, new).encode(), "mine.yaml")
    assert why in caught.value.why
    assert caught.value.source == "mine.yaml"
    assert caught.value.mend


def test_an_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(InvalidDocument, match=r"choose one of: .*dps-root"):
        load_layout("floppy")


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_garbage_is_refused_with_our_own_error(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_layout(raw, "garbage.yaml")
