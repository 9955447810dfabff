"""What the back end of the firmware's boot options does to its variables, beyond the contract of all back ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.boot_contract import FILES, place, stage
from tests.firmware_world import PLACE, FirmwareWorld
from tests.portable_executable import build_uki
from tests.simulated import Power, PowerCut
from updater.boot.entries import factory_files
from updater.boot.firmware_model import Manner
from updater.boot.load_option import (
    ACTIVE,
    EspPlace,
    LoadOption,
    file_option,
    option_bytes,
    option_name,
    order_bytes,
    parse_option,
    parse_order,
)
from updater.efivars import GLOBAL_GUID
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B
PXE = option_bytes(LoadOption(ACTIVE, "UEFI PXEv4", bytes.fromhex("02010c00d041030a00000000 7fff0400"), b"\x4e\xac"))


def descriptions(world: FirmwareWorld) -> dict[str, str]:
    """Return what `efibootmgr` would list, an asterisk before the active ones."""
    found = {}
    for name in world.efi.names(GLOBAL_GUID):
        option = parse_option(world.efi.read(name, GLOBAL_GUID) or b"") if name[4:].isalnum() else None
        if option is not None and name not in ("BootOrder", "BootNext", "BootCurrent"):
            found[name] = ("*" if option.is_active else " ") + option.description
    return found


def order(world: FirmwareWorld) -> list[int]:
    return list(parse_order(world.efi.read("BootOrder", GLOBAL_GUID)))


def add(world: FirmwareWorld, number: int, value: bytes, *, first: bool = True) -> None:
    """Give the firmware an option of somebody else's, before or behind ours."""
    world.efi.write(option_name(number), value, GLOBAL_GUID)
    known = order(world)
    world.efi.write("BootOrder", order_bytes((number, *known) if first else (*known, number)), GLOBAL_GUID)
    list(world.instants())


def armed(world: FirmwareWorld) -> FirmwareWorld:
    stage(world, B)
    world.backend().arm(B, "2", tries=1)
    return world


def refusal(world: FirmwareWorld) -> str:
    """Return the one obstacle, after seeing that arming is refused for it and changes nothing."""
    (found,) = world.backend().read().obstacles
    before = dict(world.efi.values)
    with pytest.raises(EnvironmentFailure, match="is not armed"):
        world.backend().arm(B, "2", tries=1)
    assert world.efi.values == before
    return found


def test_an_update_leaves_the_options_that_the_page_tells() -> None:
    world = FirmwareWorld.factory()
    assert descriptions(world) == {"Boot0000": "*ACL 1, slot a, release 1", "Boot0001": " ACL slot b, empty"}
    armed(world)
    assert descriptions(world)["Boot0001"] == "*ACL 2, slot b, trial 2"
    assert world.efi.read("BootNext", GLOBAL_GUID) == b"\x01\x00"
    world.power_on()
    world.backend().commit(B, tries=1)
    assert descriptions(world) == {"Boot0000": "*ACL 1, slot a, release 1", "Boot0001": "*ACL 2, slot b, release 2"}
    assert order(world) == [1, 0]
    world.backend().condemn(B)
    assert descriptions(world)["Boot0001"] == "*ACL 2, slot b, trial 2"
    assert order(world) == [0, 1]
    world.backend().withdraw(B)
    assert descriptions(world)["Boot0001"] == " ACL slot b, empty"
    assert order(world) == [0, 1], "an option outside BootOrder is one that firmware drops"


def test_nothing_is_written_that_stands_there_already() -> None:
    world = FirmwareWorld.factory()
    world.backend().settle(A)
    world.backend().commit(A, tries=1)
    armed(world)
    world.power_on()
    world.backend().commit(B, tries=1)
    list(world.instants())
    for _ in range(3):
        world.power_on()
        world.backend().commit(B, tries=1)
    assert list(world.instants()) == []


def test_a_machine_without_our_options_gets_them_by_settling() -> None:
    uki = build_uki("1.0.0", "ab" * 32)
    world = FirmwareWorld({"EFI/acl/a.efi": uki}, {(GLOBAL_GUID, "Boot0000"): PXE, (GLOBAL_GUID, "BootOrder"): b"\0\0"})
    state = world.backend().read()
    assert state.order == ()
    assert len([note for note in state.notes if "has no boot option" in note]) == 2
    world.backend().settle(A)
    assert descriptions(world) == {
        "Boot0000": "*UEFI PXEv4",
        "Boot0001": "*ACL 1.0.0, slot a, release 1",
        "Boot0002": " ACL slot b, empty",
    }
    assert order(world) == [1, 2, 0]
    assert world.boots() is A


def test_a_new_disk_boots_by_a_loader_at_the_removable_path_until_its_slot_is_replaced() -> None:
    uki = build_uki("1.0.0", "ab" * 32)
    files = {"EFI/BOOT/BOOTX64.EFI": b"a loader", "EFI/acl/a.efi": uki, **factory_files("1.0.0")}
    world = FirmwareWorld(files, {}, live=True)
    assert any("did not come from a boot option of ours" in text for text in world.backend().read().obstacles)
    world.backend().settle(A)
    assert world.power_on() is A
    stage(world, B)
    world.backend().arm(B, "2", tries=1)
    assert world.power_on() is B
    world.backend().commit(B, tries=1)
    stage(world, A)
    assert "loader/entries/a.conf" not in world.esp.files, "it would start what is not proven"


def test_without_an_option_and_a_sound_uki_settling_says_what_to_do() -> None:
    world = FirmwareWorld({"EFI/acl/a.efi": b"no UKI"}, {})
    with pytest.raises(EnvironmentFailure, match="no sound UKI"):
        world.backend().settle(A)
    with pytest.raises(EnvironmentFailure, match="has no UKI"):
        world.backend().settle(B)
    assert world.efi.values == {}


def test_options_of_others_keep_their_bytes_and_places() -> None:
    world = FirmwareWorld.factory()
    add(world, 7, PXE)
    add(world, 8, b"\x01\0garbage", first=False)
    armed(world)
    world.power_on()
    world.backend().commit(B, tries=1)
    assert order(world) == [7, 1, 0, 8]
    assert world.efi.read("Boot0007", GLOBAL_GUID) == PXE
    assert world.efi.read("Boot0008", GLOBAL_GUID) == b"\x01\0garbage"
    assert any("UEFI PXEv4" in note for note in world.backend().read().notes)


def test_an_option_of_others_that_would_start_before_ours_is_an_obstacle() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    world.esp.write_new("EFI/other/x.efi", [b"x"])
    add(world, 7, option_bytes(file_option(PLACE, "EFI/other/x.efi", "another system")))
    assert "Boot0007 (another system)" in refusal(world)


@pytest.mark.parametrize("path", ["../../etc/passwd", "EFI/acl/c.efi", "EFI\0/acl/a.efi", "/", "a" * 3000])
def test_a_hostile_path_is_nobodys(path: str) -> None:
    world = FirmwareWorld.factory()
    raw = option_bytes(replace(file_option(PLACE, path, "ACL 9, slot a, release 999"), path=path))
    add(world, 7, raw)
    assert [entry.slot for entry in world.backend().read().order] == [A]
    armed(world)
    assert world.efi.read("Boot0007", GLOBAL_GUID) == raw


def test_our_path_on_another_partition_is_not_ours() -> None:
    world = FirmwareWorld.factory()
    elsewhere = EspPlace(2, 4096, 100, PLACE.part_uuid.__class__(int=77))
    add(world, 7, option_bytes(file_option(elsewhere, "EFI/acl/b.efi", "ACL 9, slot b, release 9")))
    armed(world)
    assert descriptions(world)["Boot0007"] == "*ACL 9, slot b, release 9"
    assert world.backend().read().next_name == "Boot0001"


def test_twins_of_a_slot_are_reduced_to_one() -> None:
    world = FirmwareWorld.factory()
    add(world, 7, option_bytes(file_option(PLACE, "EFI/acl/b.efi", "made by hand")), first=False)
    stage(world, B)
    assert order(world) == [0, 1]
    assert "Boot0007" not in descriptions(world)


def test_an_option_without_our_mark_counts_as_proven_and_gets_one() -> None:
    world = FirmwareWorld.factory()
    uki = build_uki("1.0.0", "ab" * 32)
    world.esp.write_new("EFI/acl/a.efi", [uki])
    world.efi.write("Boot0000", option_bytes(file_option(PLACE, "EFI/acl/a.efi", "Linux")), GLOBAL_GUID)
    state = world.backend().read()
    assert [(entry.slot, entry.version, entry.tries_left) for entry in state.order] == [(A, "1.0.0", None)]
    assert any("no mark of ours" in note for note in state.notes)
    world.backend().settle(A)
    assert descriptions(world)["Boot0000"] == "*ACL 1.0.0, slot a, release 1"


def test_an_operators_one_shot_is_not_overwritten() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    add(world, 7, PXE, first=False)
    world.efi.write("BootNext", b"\x07\x00", GLOBAL_GUID)
    assert "BootNext names Boot0007 (UEFI PXEv4)" in refusal(world)


def test_a_full_store_is_an_obstacle_before_anything_is_touched() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    world.efi.room_bytes = 2000
    assert "a trial needs" in refusal(world)


def test_a_locked_store_is_an_obstacle_before_anything_is_touched() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    world.efi.locked = "efivarfs is mounted read-only"
    assert "mounted read-only" in refusal(world)


def test_a_locked_store_stops_staging_before_the_slot_is_touched() -> None:
    world = FirmwareWorld.factory()
    world.esp.write_new("EFI/acl/b.efi", [b"older"])
    world.efi.write(
        "Boot0001", option_bytes(file_option(PLACE, "EFI/acl/b.efi", "ACL 0, slot b, release 0")), GLOBAL_GUID
    )
    world.efi.locked = "efivarfs is mounted read-only"
    before = world.esp.files
    with pytest.raises(EnvironmentFailure, match="read-only"):
        world.backend().withdraw(B)
    assert world.esp.files == before


@pytest.mark.parametrize("fails", range(1, 3))
def test_a_write_that_fails_while_arming_leaves_the_old_state(fails: int) -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    before = dict(world.efi.values)
    list(world.instants())
    world.efi.fail_from(fails)
    with pytest.raises(EnvironmentFailure, match="cannot change"):
        world.backend().arm(B, "2", tries=1)
    world.efi.fail_from(None)
    state = world.backend().read()
    assert world.boots() is A
    assert state.entries_of(B) == () or fails == 2, "what cannot be taken back is not armed either"
    world.backend().withdraw(B)
    assert {name: value for name, value in world.efi.values.items() if name[1] != "BootNext"} == before
    assert world.efi.read("BootNext", GLOBAL_GUID) is None


def test_a_store_that_only_says_it_took_a_change_arms_nothing() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    world.efi.lies = True
    with pytest.raises(EnvironmentFailure, match="BootNext does not read back"):
        world.backend().arm(B, "2", tries=1)
    assert world.boots() is A


def test_a_store_that_takes_no_change_does_not_save_a_bad_release() -> None:
    world = armed(FirmwareWorld.factory())
    world.power_on()
    # The firmware itself put what it started first.
    world.efi.write("BootOrder", order_bytes((1, 0)), GLOBAL_GUID)
    world.efi.locked = "the store is full"
    world.backend().condemn(B)
    assert world.boots() is A


def test_a_trial_that_is_condemned_before_it_booted_is_not_started() -> None:
    world = armed(FirmwareWorld.factory())
    assert world.boots() is B
    world.backend().condemn(B)
    assert world.boots() is A


def test_a_firmware_that_puts_first_what_it_started_is_put_right_by_the_verdict() -> None:
    world = FirmwareWorld.factory(manner=Manner.BOOTED_FIRST)
    armed(world)
    assert world.power_on() is B
    assert world.boots() is B, "this is what the page warns of"
    world.backend().condemn(B)
    assert world.boots() is A


def test_a_firmware_that_does_not_take_bootnext_is_told_from_one_that_lost_it() -> None:
    kept = armed(FirmwareWorld.factory(manner=Manner.KEEPS_NEXT, live=True))
    assert kept.backend().read().entries_of(B)[0].tries_left == 1
    assert kept.power_on() is A
    state = kept.backend().read()
    (entry,) = state.entries_of(B)
    assert (entry.tries_left, entry.tries_done) == (0, 0), "it was never started"
    assert state.next_entry is not None
    assert state.next_entry.slot is A
    assert any("did not take BootNext" in note for note in state.notes)
    kept.backend().withdraw(B)
    assert kept.efi.read("BootNext", GLOBAL_GUID) is None

    lost = armed(FirmwareWorld.factory(manner=Manner.LOSES_NEXT, live=True))
    assert lost.power_on() is A
    state = lost.backend().read()
    (entry,) = state.entries_of(B)
    assert (entry.tries_left, entry.tries_done) == (0, 1)
    assert "did not take BootNext" in state.doubt


def test_a_boot_from_elsewhere_is_an_obstacle_on_a_running_machine() -> None:
    world = FirmwareWorld.factory(live=True)
    stage(world, B)
    add(world, 7, PXE, first=False)
    world.efi.write("BootCurrent", b"\x07\x00", GLOBAL_GUID)
    assert "did not come from a boot option of ours but from Boot0007 (UEFI PXEv4)" in refusal(world)
    world.efi.delete("BootCurrent", GLOBAL_GUID)
    assert "no BootCurrent" in refusal(world)


def test_an_option_that_cannot_be_read_stops_a_trial_and_saves_no_bad_release() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    add(world, 7, PXE)
    world.efi.unreadable.add("Boot0007")
    assert "cannot read the EFI variable Boot0007" in refusal(world)
    world.efi.unreadable.clear()
    world.backend().arm(B, "2", tries=1)
    world.power_on()
    world.efi.write("BootOrder", order_bytes((1, 0, 7)), GLOBAL_GUID)
    world.efi.unreadable.add("Boot0007")
    world.backend().condemn(B)
    assert order(world) == [0, 1, 7]


def test_an_order_that_cannot_be_read_is_never_written() -> None:
    world = armed(FirmwareWorld.factory())
    before = dict(world.efi.values)
    world.efi.unreadable.add("BootOrder")
    with pytest.raises(EnvironmentFailure, match="cannot read the EFI variable BootOrder"):
        world.backend().commit(B, tries=1)
    assert world.efi.values == before


def test_a_menu_that_waits_for_ever_is_an_obstacle() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    world.efi.write("Timeout", b"\xff\xff", GLOBAL_GUID)
    assert "waits for a person" in refusal(world)


def test_boot_current_tells_the_entry_of_this_boot() -> None:
    world = armed(FirmwareWorld.factory(live=True))
    assert world.backend().read().booted_name == "Boot0000"
    world.power_on()
    assert world.backend().read().booted_name == "Boot0001"


def test_arming_after_the_default_was_moved_away_is_refused() -> None:
    world = FirmwareWorld.factory()
    world.backend().settle(A)
    place(world, B)
    world.efi.write(
        "Boot0001", option_bytes(file_option(PLACE, "EFI/acl/b.efi", "ACL 2, slot b, release 5")), GLOBAL_GUID
    )
    world.efi.write("BootOrder", order_bytes((1, 0)), GLOBAL_GUID)
    with pytest.raises(EnvironmentFailure, match="without BootNext the firmware would boot Boot0001"):
        world.backend().arm(B, "2", tries=1)


def test_more_than_one_try_cannot_be_had() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    with pytest.raises(ValueError, match="one try"):
        world.backend().arm(B, "2", tries=3)


def test_an_update_cut_at_any_effect_and_begun_again_ends_armed() -> None:
    for cut_after in range(60):
        world = FirmwareWorld.factory(manner=Manner.DROPS_ORPHANS)
        world.esp.power = Power(cut_after)
        try:
            armed(world)
        except PowerCut:
            world = world.copy()
            assert world.power_on() in (A, B)
        else:
            assert cut_after > 6
            return
        if world.boots() is not A:
            pytest.fail(f"after a cut at effect {cut_after} the trial would boot twice")
        again = world.copy()
        armed(again)
        assert again.power_on() is B
        assert again.power_on() is A
    pytest.fail("an update has fewer effects than that")


def test_what_is_placed_is_the_manifests() -> None:
    world = FirmwareWorld.factory()
    stage(world, B)
    assert world.backend().verify(B, FILES) == ()
