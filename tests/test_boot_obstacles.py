"""What systemd-boot's files and variables say against a trial, and what is only worth a note."""

from __future__ import annotations

from uuid import UUID

import pytest

from tests.portable_executable import build_pe, os_release
from tests.simulated import SimulatedDirectory
from tests.simulated_variables import SimulatedEfiVariables
from updater.boot import entries
from updater.boot.entries import ENTRIES
from updater.boot.protocol import BootState
from updater.boot.systemd_boot import SystemdBoot
from updater.efivars import LOADER_GUID, EfiVariables, NoEfiVariables, encode_text
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B
BOOT_ID = "0f" * 16
MAGIC = b"#### LoaderInfo: systemd-boot 262-1 ####"
PART_UUID = UUID("2f5e1a4c-0000-4000-8000-000000000001")


def esp_with(files: dict[str, bytes] | None = None, *, without: tuple[str, ...] = ()) -> SimulatedDirectory:
    all_files = {
        **entries.factory_files("1"),
        "EFI/BOOT/BOOTX64.EFI": MAGIC,
        "EFI/acl/a.efi": b"uki of 1",
        "EFI/acl/b.efi": b"uki of 2",
        **(files or {}),
    }
    return SimulatedDirectory({path: content for path, content in all_files.items() if path not in without})


def variables(**texts: str) -> SimulatedEfiVariables:
    """Return what systemd-boot 262 leaves after a boot of a.conf, changed by `texts`."""
    known = {"LoaderInfo": "systemd-boot 262-1", "LoaderEntrySelected": "a.conf", **texts}
    values = {name: encode_text(text) for name, text in known.items() if text}
    return SimulatedEfiVariables({"LoaderFeatures": (0x3FFFFF).to_bytes(8, "little"), **values})


def state_of(esp: SimulatedDirectory, efi: EfiVariables | None = None) -> BootState:
    return SystemdBoot(esp, efi or variables(), part_uuid=PART_UUID, boot_id=BOOT_ID).read()


def entry(slot: Slot, generation: int, version: str = "1", boot_id: str = "") -> bytes:
    return entries.entry_text(slot, version, generation, boot_id=boot_id)


def obstacle_and_refusal(esp: SimulatedDirectory, efi: EfiVariables | None = None) -> str:
    """Return the one obstacle, after seeing that arming is refused for it and leaves the ESP as it was."""
    (found,) = set(state_of(esp, efi).obstacles)
    before = esp.files
    with pytest.raises(EnvironmentFailure, match="is not armed"):
        SystemdBoot(esp, efi or variables(), part_uuid=PART_UUID, boot_id=BOOT_ID).arm(B, "2", tries=3)
    assert esp.files == before
    return found


def test_a_plain_esp_has_no_obstacle() -> None:
    state = state_of(esp_with())
    assert state.obstacles == ()
    assert state.booted_name == "a.conf"
    assert state.loader == "systemd-boot 262-1"


@pytest.mark.parametrize("name", ["LoaderEntryDefault", "LoaderEntryOneShot", "LoaderEntryPreferred"])
@pytest.mark.parametrize("pattern", ["a.conf", "b.conf", "b+3-0.conf", "*", "@saved", "A*"])
def test_a_variable_that_catches_the_trial_or_the_fallback_is_an_obstacle(name: str, pattern: str) -> None:
    if name == "LoaderEntryOneShot" and pattern == "@saved":
        pattern = "@*"
        assert state_of(esp_with(), variables(**{name: pattern})).obstacles == ()
        return
    assert name in obstacle_and_refusal(esp_with(), variables(**{name: pattern}))


def test_a_sysfail_entry_that_catches_the_trial_is_an_obstacle() -> None:
    assert "LoaderEntrySysFail" in obstacle_and_refusal(esp_with(), variables(LoaderEntrySysFail="b*"))


def test_a_variable_that_catches_nothing_is_no_obstacle() -> None:
    assert state_of(esp_with(), variables(LoaderEntryDefault="windows*")).obstacles == ()


@pytest.mark.parametrize("line", ["default a.conf", "default *", "preferred b*", "default @saved"])
def test_a_default_in_loader_conf_is_an_obstacle(line: str) -> None:
    esp = esp_with({"loader/loader.conf": f"timeout 0\n{line}\n".encode()})
    assert "loader.conf" in obstacle_and_refusal(esp)


@pytest.mark.parametrize(
    ("conf", "texts"),
    [
        (b"timeout menu-force\n", {}),
        (b"timeout 0\n", {"LoaderConfigTimeout": "menu-force"}),
        (b"timeout 0\n", {"LoaderConfigTimeoutOneShot": "4294967295"}),
    ],
)
def test_a_menu_that_waits_for_ever_is_an_obstacle(conf: bytes, texts: dict[str, str]) -> None:
    assert "waits for ever" in obstacle_and_refusal(esp_with({"loader/loader.conf": conf}), variables(**texts))


def test_a_timeout_in_the_variable_overrides_the_file() -> None:
    esp = esp_with({"loader/loader.conf": b"timeout menu-force\nreboot-on-error auto\n"})
    assert state_of(esp, variables(LoaderConfigTimeout="5")).obstacles == ()


def test_a_read_only_entry_is_an_obstacle() -> None:
    esp = esp_with()
    esp.set_read_only(f"{ENTRIES}/a.conf")
    assert "read-only" in obstacle_and_refusal(esp)


def test_a_loader_that_does_not_count_is_an_obstacle() -> None:
    efi = variables()
    efi.write("LoaderFeatures", (0x0F).to_bytes(8, "little"))
    assert "does not count boots" in obstacle_and_refusal(esp_with(), efi)


def test_a_boot_that_did_not_come_through_systemd_boot_is_an_obstacle() -> None:
    assert "did not come through systemd-boot" in obstacle_and_refusal(esp_with(), SimulatedEfiVariables())


def test_a_loader_from_another_esp_is_an_obstacle() -> None:
    efi = variables(LoaderDevicePartUUID="2F5E1A4C-0000-4000-8000-000000000002")
    assert "came from partition 2f5e1a4c-0000-4000-8000-000000000002" in obstacle_and_refusal(esp_with(), efi)
    same = variables(LoaderDevicePartUUID=str(PART_UUID).upper())
    assert state_of(esp_with(), same).obstacles == ()


def test_a_counted_entry_that_the_loader_did_not_count_is_an_obstacle() -> None:
    esp = esp_with({f"{ENTRIES}/a+3-0.conf": entry(A, 1)}, without=(f"{ENTRIES}/a.conf",))
    found = state_of(esp)
    assert any("without counting" in obstacle for obstacle in found.obstacles)
    assert found.booted_name == "a+3-0.conf"


def test_an_old_loader_that_names_the_counter_and_did_not_count_is_an_obstacle() -> None:
    efi = variables(LoaderInfo="systemd-boot 257.13", LoaderEntrySelected="a+3-0.conf")
    assert any("without counting" in found for found in state_of(esp_with(), efi).obstacles)


def test_a_counted_boot_proves_counting() -> None:
    esp = esp_with({f"{ENTRIES}/a+2-1.conf": entry(A, 1)}, without=(f"{ENTRIES}/a.conf",))
    state = state_of(esp, variables(LoaderBootCountPath="\\loader\\entries\\a+2-1.conf"))
    assert state.booted_name == "a+2-1.conf"
    assert state.obstacles == ()
    assert not any("not counted" in note for note in state.notes)


def test_an_entry_counted_anew_in_this_very_boot_is_no_sign_of_failed_counting() -> None:
    esp = esp_with({f"{ENTRIES}/b.conf": entry(B, 2)})
    SystemdBoot(esp, variables(LoaderEntrySelected="b.conf"), boot_id=BOOT_ID).commit(B, tries=3)
    assert state_of(esp, variables(LoaderEntrySelected="b.conf")).obstacles == ()
    other_boot = SystemdBoot(esp, variables(LoaderEntrySelected="b.conf"), boot_id="ab" * 16)
    assert any("without counting" in found for found in other_boot.read().obstacles)


def test_a_foreign_uki_that_sorts_before_the_fallback_is_an_obstacle() -> None:
    foreign = build_pe([(".text", b"\xc3"), (".osrel", os_release().replace(b"acl-reference", b"aardvark"))])
    found = obstacle_and_refusal(esp_with({"EFI/Linux/other.efi": foreign}))
    assert "/EFI/Linux/other.efi would sort before" in found


def test_a_foreign_uki_that_sorts_behind_ours_is_only_noted() -> None:
    foreign = build_pe([(".text", b"\xc3"), (".osrel", os_release().replace(b"acl-reference", b"zebra"))])
    state = state_of(esp_with({"EFI/Linux/other.efi": foreign}))
    assert state.obstacles == ()
    assert any("/EFI/Linux/other.efi is not ours" in note for note in state.notes)
    assert [found.name for found in state.order] == ["a.conf", "other.efi"]


def test_garbage_in_the_loaders_folder_of_ukis_is_not_listed() -> None:
    state = state_of(esp_with({"EFI/Linux/other.efi": b"MZ garbage", "EFI/Linux/readme.txt": b"x"}))
    assert [found.name for found in state.order] == ["a.conf"]


def test_a_foreign_entry_that_sorts_first_is_an_obstacle_and_is_never_removed() -> None:
    foreign = b"title Other\nsort-key aaa\nlinux /EFI/acl/other.efi\n"
    esp = esp_with({f"{ENTRIES}/other.conf": foreign, "EFI/acl/other.efi": b"x"})
    assert "/loader/entries/other.conf would sort before" in " ".join(state_of(esp).obstacles)
    SystemdBoot(esp, variables()).withdraw(B)
    assert esp.files[f"{ENTRIES}/other.conf"] == foreign
    assert esp.files["EFI/acl/other.efi"] == b"x"


def test_damaged_foreign_entries_are_noted_and_kept() -> None:
    esp = esp_with({f"{ENTRIES}/x.conf": b"\xff\xfe\0"})
    state = state_of(esp)
    assert state.obstacles == ()
    assert any("x.conf is skipped" in note for note in state.notes)
    SystemdBoot(esp, variables()).withdraw(B)
    assert f"{ENTRIES}/x.conf" in esp.files


@pytest.mark.parametrize("path", [f"{ENTRIES}/y.conf", "loader/loader.conf"])
def test_a_file_too_large_to_judge_is_an_obstacle_since_the_loader_reads_it(path: str) -> None:
    assert "larger than 65536 bytes" in obstacle_and_refusal(esp_with({path: b"#" * 70_000}))


def test_an_entry_of_ours_that_cannot_be_read_goes_when_its_slot_is_withdrawn() -> None:
    esp = esp_with({f"{ENTRIES}/b+3-0.conf": b"#" * 70_000})
    SystemdBoot(esp, variables()).withdraw(B)
    assert esp.names(ENTRIES) == ["a.conf"]


class RottenVariables(SimulatedEfiVariables):
    """A firmware that cannot read one of its variables."""

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        if name == "LoaderEntryDefault":
            raise EnvironmentFailure(f"cannot read the EFI variable {name}: Input/output error")
        return super().read(name, guid)


def test_a_variable_that_cannot_be_read_is_an_obstacle_and_hides_nothing_else() -> None:
    efi = RottenVariables({name: value for (_, name), value in variables().values.items()})
    assert "LoaderEntryDefault: Input/output error" in obstacle_and_refusal(esp_with(), efi)
    assert [found.name for found in state_of(esp_with(), efi).order] == ["a.conf"]


def test_a_variable_that_cannot_be_read_does_not_save_a_bad_release() -> None:
    esp = esp_with()
    SystemdBoot(esp, variables()).arm(B, "2", tries=3)
    efi = RottenVariables({name: value for (_, name), value in variables().values.items()})
    SystemdBoot(esp, efi).condemn(B)
    assert state_of(esp).next_name == "a.conf"


def test_the_last_generation_is_an_obstacle_with_a_way_out() -> None:
    esp = esp_with({f"{ENTRIES}/a.conf": entry(A, 999_999)})
    assert "sort-key acl-999998 by hand" in obstacle_and_refusal(esp)


def test_the_last_generation_but_one_can_still_be_armed() -> None:
    esp = esp_with({f"{ENTRIES}/a.conf": entry(A, 999_998)})
    armed = SystemdBoot(esp, variables()).arm(B, "2", tries=3)
    assert armed.generation == 999_999


def test_an_old_loader_is_noted_with_what_it_costs() -> None:
    esp = esp_with({"EFI/BOOT/BOOTX64.EFI": b"#### LoaderInfo: systemd-boot 257.13-1 ####"})
    state = state_of(esp)
    assert state.obstacles == ()
    assert any("before 258" in note for note in state.notes)


@pytest.mark.parametrize(
    ("conf", "expected"),
    [(b"timeout 0\n", "does not say"), (b"reboot-on-error no\n", "stops the node"), (b"reboot-on-error auto\n", "")],
)
def test_reboot_on_error_is_noted_unless_it_is_set(conf: bytes, expected: str) -> None:
    notes = [note for note in state_of(esp_with({"loader/loader.conf": conf})).notes if "reboot-on-error" in note]
    assert len(notes) == bool(expected)
    assert all(expected in note for note in notes)


def test_without_variables_that_is_noted_and_nothing_else_is_held_against_it() -> None:
    state = state_of(esp_with(), NoEfiVariables())
    assert state.obstacles == ()
    assert state.booted_name is None
    assert state.loader == "systemd-boot 262-1"
    assert any("no EFI variables here" in note for note in state.notes)


def test_a_variable_store_of_an_image_is_not_expected_to_know_this_boot() -> None:
    store = SimulatedEfiVariables({"LoaderEntryDefault": encode_text("nothing")}, volatile=False)
    assert state_of(esp_with(), store).obstacles == ()
    caught = SimulatedEfiVariables({"LoaderEntryDefault": encode_text("a*")}, volatile=False)
    assert "LoaderEntryDefault" in obstacle_and_refusal(esp_with(), caught)


def test_an_esp_without_a_loader_is_noted() -> None:
    state = state_of(esp_with(without=("EFI/BOOT/BOOTX64.EFI",)))
    assert any("no loader" in note for note in state.notes)
