"""The contract of boot back ends over a real FAT file system, edited by mtools and judged by fsck."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.boot_contract import BootContract, BootWorld
from tests.loaders import EspWorld
from updater.boot import entries
from updater.fatimage import FatImage
from updater.run import run, search_path
from updater.slots import Slot

MISSING = [tool for tool in ("mkfs.vfat", "fsck.vfat", "mcopy") if shutil.which(tool, path=search_path()) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING} (dosfstools, mtools)")

PATHS = (
    "test_a_new_machine_boots_its_factory_release",
    "test_an_uncounted_commit_never_goes_bad",
    "test_a_counted_commit_falls_back_when_the_release_rots_later",
    "test_arming_may_be_repeated_and_renewed_after_a_try",
    "test_a_failed_release_is_followed_by_a_good_one",
    "test_the_only_good_entry_is_never_withdrawn",
    "test_what_was_placed_is_proven_byte_for_byte",
    "test_when_both_releases_are_bad_the_next_commit_or_settling_heals",
)


class FatWorld(EspWorld):
    """An ESP in an image file, and the model of systemd-boot."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.esp = FatImage(image)

    def rename_as_firmware(self, old: str, new: str) -> None:
        run(["mren", "-i", self.image, f"::/{old}", f"::/{new}"], env={"MTOOLS_SKIP_CHECK": "1"})

    def copy(self) -> FatWorld:
        raise NotImplementedError("cuts are enumerated over the simulated ESP")

    def instants(self) -> Iterable[tuple[str, BootWorld]]:
        return ()


@pytest.fixture
def world(tmp_path: Path) -> FatWorld:
    image = tmp_path / "esp.img"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    run(["mkfs.vfat", "-F", "32", image])
    made = FatWorld(image)
    for path, content in {**entries.factory_files("1"), "EFI/acl/a.efi": b"factory"}.items():
        made.esp.write_new(path, [content])
    return made


@pytest.mark.parametrize("name", PATHS)
def test_contract_holds_on_fat(world: FatWorld, name: str) -> None:
    getattr(BootContract(), name)(world)
    run(["fsck.vfat", "-n", world.image])


def test_our_entries_take_two_records_each_and_never_straddle_a_sector(world: FatWorld) -> None:
    boot = world.backend()
    for number in range(3):
        boot.settle(Slot.A)
        boot.withdraw(Slot.B)
        world.esp.write_new("EFI/acl/b.efi", [b"x"])
        boot.arm(Slot.B, str(number), tries=3)
        world.power_on()
    content = world.image.read_bytes()
    # The record of the short name ends such a pair: in a sector of 16 records it must be an odd one.
    short = [at // 32 for at in range(0, len(content), 32) if content[at + 8 : at + 11] == b"CON"]
    assert len(short) >= 2
    assert all(number % 2 for number in short)
