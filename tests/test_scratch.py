"""Scratch folders stand beside each other, and what a killed process left does not stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from updater.errors import EnvironmentFailure
from updater.node.scratch import ScratchFolders


def test_a_folder_that_is_lent_outlives_the_lending_of_others(tmp_path: Path) -> None:
    scratch = ScratchFolders(tmp_path / "scratch")
    with scratch.lend() as uki:
        (uki / "uki.efi").write_bytes(b"half of it")
        with scratch.lend() as addon:
            assert list(addon.iterdir()) == []
            (addon / "slot.addon.efi").write_bytes(b"all of it")
        assert (uki / "uki.efi").read_bytes() == b"half of it"
        assert list((tmp_path / "scratch").iterdir()) == [uki]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_a_killed_process_left_is_gone_before_the_first_is_lent(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "left-behind"
    left.mkdir(parents=True)
    (left / "uki.efi").write_bytes(b"half of it")
    with ScratchFolders(tmp_path / "scratch").lend() as folder:
        assert list((tmp_path / "scratch").iterdir()) == [folder]


def test_a_base_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"a file where a folder should be")
    with (
        pytest.raises(EnvironmentFailure, match="cannot make") as caught,
        ScratchFolders(tmp_path / "state" / "scratch").lend(),
    ):
        pass
    assert "state partition" in caught.value.mend
