"""systemd-boot keeps the contract of boot back ends, with a new and with an old loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import pytest

from tests.boot_contract import BootContract, BootWorld
from tests.loaders import EspWorld
from tests.simulated import SimulatedDirectory
from updater.boot import entries
from updater.boot.entries import ENTRIES
from updater.slots import Slot


def loader(version: str) -> dict[str, bytes]:
    magic = f"#### LoaderInfo: systemd-boot {version} ####".encode()
    return {"EFI/BOOT/BOOTX64.EFI": b"MZ" + magic, "EFI/systemd/systemd-bootx64.efi": b"MZ" + magic}


class SimulatedWorld(EspWorld):
    """An ESP in memory, and the model of systemd-boot."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.esp: SimulatedDirectory = SimulatedDirectory(files)

    def rename_as_firmware(self, old: str, new: str) -> None:
        self.esp.firmware_rename(old, new)

    def copy(self) -> Self:
        return type(self)(self.esp.files)

    def instants(self) -> Iterable[tuple[str, BootWorld]]:
        seen = self.esp.instants
        self.esp.instants = []
        return [(instant.effect, type(self)(instant.files)) for instant in seen]


class TestSystemdBoot262(BootContract):
    version = "262-1"

    def make_world(self) -> BootWorld:
        return SimulatedWorld({**entries.factory_files("1"), "EFI/acl/a.efi": b"factory", **loader(self.version)})


class TestSystemdBoot257(TestSystemdBoot262):
    version = "257.13-1~deb13u1"


def torn(left: str) -> SimulatedWorld:
    """Return a machine on whose ESP the firmware's rename of b+3-0 to b+2-1 was cut."""
    world = SimulatedWorld({**entries.factory_files("1"), "EFI/acl/a.efi": b"1", "EFI/acl/b.efi": b"2"})
    world.backend().arm(Slot.B, "2", tries=3)
    old, new = f"{ENTRIES}/b+3-0.conf", f"{ENTRIES}/b+2-1.conf"
    content = world.esp.files[old]
    if left in ("new", "neither"):
        world.esp.remove(old)
    if left in ("new", "both"):
        world.esp.write_new(new, [content])
    return world


@pytest.mark.parametrize(("left", "tries"), [("old", 3), ("new", 2), ("neither", 0)])
def test_a_cut_inside_the_firmwares_rename_goes_on_counting_or_falls_back(left: str, tries: int) -> None:
    assert [torn(left).power_on()] == ([Slot.B] if tries else [Slot.A])
    world = torn(left)
    assert [world.power_on() for _ in range(tries + 2)] == [Slot.B] * tries + [Slot.A] * 2


def test_a_cut_that_leaves_both_names_is_not_counted_and_heals_by_verdict() -> None:
    # It cannot happen while all entries lie in one sector, which the firmware writes at once.
    world = torn("both")
    assert [world.power_on() for _ in range(6)] == [Slot.B] * 6
    healed = world.copy()
    healed.backend().commit(Slot.B, tries=3)
    assert [world.power_on() for _ in range(1)] == [Slot.B]
    assert [entry.name for entry in healed.backend().read().entries_of(Slot.B)] == ["b+3-0.conf"]
    world.backend().condemn(Slot.B)
    assert world.power_on() is Slot.A
