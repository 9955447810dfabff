"""UKIs that an image shipped in /EFI/Linux are the fallback as they are; trials beside them are Type #1 entries."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.boot_contract import TRIES, BootContract, BootWorld, boots_until_settled, place, stage, update
from tests.portable_executable import build_uki
from tests.simulated import SimulatedDirectory
from tests.test_boot_contract import SimulatedWorld, loader
from updater.boot.entries import ENTRIES, LOADER_CONF, LOADER_CONF_PATH
from updater.boot.esp import EspView, look, shipped_ukis
from updater.boot.systemd_boot import SystemdBoot
from updater.efivars import NoEfiVariables
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B
SHIPPED = "EFI/Linux/vmlinuz-1-azla1.efi"
UKI = build_uki("1")


class ShippedWorld(SimulatedWorld):
    """An ESP as an image maker fills it, whose UKIs the back end takes over."""

    @classmethod
    def factory(cls, version: str = "262-1", files: Mapping[str, bytes] | None = None) -> ShippedWorld:
        return cls({SHIPPED: UKI, LOADER_CONF_PATH: LOADER_CONF, **loader(version), **(files or {})})

    def backend(self) -> SystemdBoot:
        return SystemdBoot(self.esp, NoEfiVariables(), takes_over=True)

    def view(self) -> EspView:
        return look(self.esp, NoEfiVariables(), shipped_ukis(self.esp))


class TestShippedUki(BootContract):
    version = "262-1"

    def make_world(self) -> BootWorld:
        return ShippedWorld.factory(self.version)


class TestShippedUkiWithAnOlderLoader(TestShippedUki):
    version = "257.13-1~deb13u1"


def order(world: ShippedWorld) -> list[str]:
    return [entry.name for entry in world.backend().read().order]


def test_the_shipped_uki_is_never_touched_while_its_slot_is_the_fallback() -> None:
    world = ShippedWorld.factory()
    assert order(world) == ["vmlinuz-1-azla1.efi"]
    stage(world, B)
    world.backend().arm(B, "2", tries=TRIES)
    assert order(world) == ["b+3-0.conf", "a.conf", "vmlinuz-1-azla1.efi"]
    assert world.esp.files[SHIPPED] == UKI
    assert f"linux /{SHIPPED}" in world.esp.files[f"{ENTRIES}/a.conf"].decode()
    for _ in range(TRIES):
        assert world.power_on() is B
    assert world.power_on() is A
    assert order(world) == ["a.conf", "vmlinuz-1-azla1.efi", "b+0-3.conf"]


def test_the_shipped_uki_goes_with_the_slot_that_it_starts_and_ours_takes_its_place() -> None:
    world = ShippedWorld.factory(files={f"{SHIPPED}.extra.d/slot-a.addon.efi": b"addon"})
    update(world, "2")
    list(world.instants())
    stage(world, A)
    for effect, cut in world.instants():
        again = cut.copy()
        assert isinstance(again, ShippedWorld)
        stage(again, A)
        assert not [path for path in again.esp.files if path.startswith("EFI/Linux/")], effect
    assert not [path for path in world.esp.files if path.startswith("EFI/Linux/")]
    assert "EFI/acl/a.efi" in world.esp.files
    world.backend().arm(A, "3", tries=TRIES)
    assert order(world) == ["a+3-0.conf", "b.conf"]
    assert boots_until_settled(world) is B


def test_no_counter_ever_stands_in_the_name_of_an_efi_file() -> None:
    world = ShippedWorld.factory()
    update(world, "2")
    world.backend().condemn(B)
    world.backend().prefer(A, "1")
    world.backend().commit(A, tries=TRIES)
    names = [name for instant in world.esp.instants for name in instant.files]
    assert not [name for name in names if name.endswith(".efi") and "+" in name]


@pytest.mark.parametrize("image_id", ["acl", "acl-000000", "azurelinux", "Azure", "0"])
def test_a_trial_sorts_before_whatever_name_the_shipped_image_has(image_id: str) -> None:
    uki = UKI.replace(b"IMAGE_ID=acl-reference", f"IMAGE_ID={image_id}".ljust(22).encode())
    world = ShippedWorld({SHIPPED: uki, LOADER_CONF_PATH: LOADER_CONF, **loader("262-1")})
    stage(world, B)
    if image_id == "0":
        with pytest.raises(EnvironmentFailure, match="would sort before a trial"):
            world.backend().arm(B, "0.1", tries=TRIES)
        return
    world.backend().arm(B, "0.1", tries=TRIES)
    assert [world.power_on() for _ in range(TRIES + 1)] == [B] * TRIES + [A]


def test_both_shipped_ukis_are_told_apart_by_addons_before_names() -> None:
    esp = SimulatedDirectory({
        "EFI/Linux/one.efi": UKI,
        "EFI/Linux/one.efi.extra.d/slot-a.addon.efi": b"x",
        "EFI/Linux/one.efi.extra.d/oem.addon.efi": b"x",
        "EFI/Linux/vmlinuz-2-azla2.efi": UKI,
        "EFI/Linux/vmlinuz-2-azla2.efi.extra.d/slot-b.addon.efi": b"x",
        "EFI/Linux/rescue.efi": UKI,
    })  # fmt: skip
    assert shipped_ukis(esp) == {"EFI/Linux/one.efi": A, "EFI/Linux/vmlinuz-2-azla2.efi": B}


def test_two_ukis_of_one_slot_are_nobodys() -> None:
    esp = SimulatedDirectory({"EFI/Linux/vmlinuz-1-azla1.efi": UKI, "EFI/Linux/vmlinuz-2-azla2.efi": UKI})
    assert shipped_ukis(esp) == {}
    world = ShippedWorld(esp.files)
    with pytest.raises(EnvironmentFailure, match="slot a has no boot entry"):
        world.backend().settle(A)


def test_a_torn_removal_of_a_shipped_uki_never_boots() -> None:
    # Linux may leave the short half of the name of a file that it removes; nothing then says whose it was.
    world = ShippedWorld.factory()
    update(world, "0.5")
    world.backend().settle(B)
    world.backend().withdraw(A)
    world.esp.write_new("EFI/Linux/VMLINU~1.EFI", [UKI])
    assert boots_until_settled(world) is B
    place(world, A)
    world.backend().arm(A, "0.6", tries=TRIES)
    assert [world.power_on() for _ in range(TRIES + 1)] == [A] * TRIES + [B]


def test_without_taking_over_a_shipped_uki_stays_somebody_elses() -> None:
    world = ShippedWorld.factory()
    state = SystemdBoot(world.esp, NoEfiVariables()).read()
    assert [entry.slot for entry in state.order] == [None]
