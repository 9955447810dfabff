"""Command lines that would boot something else, from elsewhere, or without a way back, are refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.portable_executable import COMMAND_LINE, ROOT_HASH
from updater.errors import InvalidDocument
from updater.layouts import load_layout
from updater.slots import Slot
from updater.uki import words
from updater.verity_words import check_verity_words

USR_A = "7130c94a-213a-4e5a-8e26-6cce9662f132"
HASH_A = "b736baf1-cdb4-4535-beba-ddaaa30ad7b7"
USR_B = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c"
HASH_B = "35bdf78b-c453-4661-98e6-f834f534ef5b"
ACL_B = (
    f"usrhash={ROOT_HASH} systemd.verity_usr_data=PARTUUID={USR_B} systemd.verity_usr_hash=PARTUUID={HASH_B} "
    "systemd.verity_usr_options=panic-on-corruption"
)


@dataclass(frozen=True)
class Root:
    root_hash: str = ROOT_HASH


@dataclass(frozen=True)
class Release:
    root: Root = field(default_factory=Root)


def check(line: str, layout: str = "dps-root", slot: Slot = Slot.B) -> None:
    check_verity_words(words(line), "uki.efi", release=Release(), layout=load_layout(layout), slot=slot)


@pytest.mark.parametrize("slot", Slot)
def test_a_root_hash_alone_finds_either_slot_where_partuuids_follow_it(slot: Slot) -> None:
    check(COMMAND_LINE, slot=slot)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (COMMAND_LINE.replace(ROOT_HASH, "6" * 64), "roothash= is 666"),
        (f"{COMMAND_LINE} roothash={'6' * 64}", "roothash= is 555.*, 666"),
        (COMMAND_LINE.replace("roothash=", 'note="x roothash=') + '"', "roothash= is missing"),
        (f"{COMMAND_LINE} usrhash={ROOT_HASH}", "usrhash= has no place"),
        (f"roothash={ROOT_HASH}", "lacks panic-on-corruption"),
        (f"roothash={ROOT_HASH} systemd.verity_root_options=ignore-corruption", "lacks panic-on-corruption"),
        (f"{COMMAND_LINE} systemd.verity_root_options=ignore-corruption", "lacks panic-on-corruption"),
        (f"{COMMAND_LINE} systemd.verity_root_data=/dev/sda2", "is /dev/sda2; slot b of the layout dps-root"),
    ],
)
def test_a_command_line_that_boots_something_else_is_refused(line: str, why: str) -> None:
    with pytest.raises(InvalidDocument, match=why) as caught:
        check(line)
    assert caught.value.mend


def test_fixed_partitions_must_be_those_of_the_slot() -> None:
    check(ACL_B, "azure-container-linux")
    check(ACL_B.replace("PARTUUID=", "/dev/disk/by-partuuid/"), "azure-container-linux")
    for line in (ACL_B.replace(USR_B, USR_A), ACL_B.replace(HASH_B, HASH_A)):
        with pytest.raises(InvalidDocument, match=r"systemd.verity_usr_(data|hash)= is .*; slot b of"):
            check(line, "azure-container-linux")
    with pytest.raises(InvalidDocument, match="slot a of"):
        check(ACL_B, "azure-container-linux", Slot.A)
    with pytest.raises(InvalidDocument, match=r"systemd\.verity_usr_data= is missing"):
        check(f"usrhash={ROOT_HASH} systemd.verity_usr_options=panic-on-corruption", "azure-container-linux")


def test_a_tree_inside_the_data_partition_must_be_said_where() -> None:
    line = ACL_B.replace(HASH_B, USR_B)
    with pytest.raises(InvalidDocument, match="lacks hash-offset=1065345024"):
        check(line, "flatcar")
    check(line.replace("panic-on", "hash-offset=1065345024,panic-on"), "flatcar")
