"""What systemd-boot's back end does to the files of an ESP, beyond the contract of all back ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pytest

from tests.portable_executable import build_uki
from tests.simulated import CLUSTER_BYTES, Power, PowerCut, SimulatedDirectory
from tests.simulated_variables import SimulatedEfiVariables
from updater.boot import entries, loader_model
from updater.boot.entries import ENTRIES
from updater.boot.esp import look
from updater.boot.protocol import BootFile
from updater.boot.systemd_boot import SystemdBoot
from updater.efivars import NoEfiVariables
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B
UKI_2 = BootFile("uki.efi", 8, "")


def new_disk(files: Mapping[str, bytes] | None = None, *, capacity_bytes: int = 192 << 20) -> SimulatedDirectory:
    content = {**entries.factory_files("1"), "EFI/acl/a.efi": b"uki of 1", **(files or {})}
    return SimulatedDirectory(content, capacity_bytes=capacity_bytes)


def back_end(esp: SimulatedDirectory) -> SystemdBoot:
    return SystemdBoot(esp, NoEfiVariables())


def staged(esp: SimulatedDirectory) -> SystemdBoot:
    boot = back_end(esp)
    boot.settle(A)
    boot.withdraw(B)
    boot.place(B, UKI_2, [b"uki ", b"of 2"])
    return boot


def slot_that_boots(files: Mapping[str, bytes]) -> Slot | None:
    chosen = loader_model.choose(look(SimulatedDirectory(files), NoEfiVariables()).state)
    return chosen.slot if chosen else None


def names(esp: SimulatedDirectory) -> list[str]:
    return esp.names(ENTRIES)


def test_an_update_leaves_the_names_that_the_page_on_systemd_boot_tells() -> None:
    esp = new_disk()
    boot = staged(esp)
    assert names(esp) == ["a.conf"]
    boot.arm(B, "2", tries=3)
    assert names(esp) == ["a.conf", "b+3-0.conf"]
    boot.commit(B, tries=3)
    assert names(esp) == ["a.conf", "b+3-0.conf"]
    boot.settle(B)
    assert names(esp) == ["a.conf", "b.conf"]
    boot.condemn(B)
    assert names(esp) == ["a.conf", "b+0-0.conf"]


def test_withdrawing_takes_the_entry_before_the_uki_and_the_uki_before_its_addons() -> None:
    esp = new_disk({f"{ENTRIES}/b.conf": entries.entry_text(B, "0", 0), "EFI/acl/b.efi": b"x"})
    esp.write_new("EFI/acl/b.efi.extra.d/fips.addon.efi", [b"x"])
    esp.power.effects.clear()
    back_end(esp).withdraw(B)
    assert esp.power.effects == [
        "overwrite loader/entries/b.conf, sector 0",
        "remove loader/entries/b.conf",
        "remove EFI/acl/b.efi",
        "remove EFI/acl/b.efi.extra.d/fips.addon.efi",
    ]


def test_an_update_cut_at_any_effect_and_begun_again_ends_armed() -> None:
    for cut_after in range(40):
        esp = new_disk({f"{ENTRIES}/b+0-3.conf": entries.entry_text(B, "0", 2), "EFI/acl/b.efi": b"bad"})
        esp.power = Power(cut_after)
        try:
            staged(esp).arm(B, "2", tries=3)
        except PowerCut:
            assert slot_that_boots(esp.files) is A
        else:
            assert cut_after > 4
            return
        esp = SimulatedDirectory(esp.files)
        staged(esp).arm(B, "2", tries=3)
        assert names(esp) == ["a.conf", "b+3-0.conf"]
    pytest.fail("an update has fewer effects than that")


def test_a_full_esp_does_not_save_a_bad_release() -> None:
    esp = new_disk()
    staged(esp).arm(B, "2", tries=3)
    esp.capacity_bytes = sum(CLUSTER_BYTES for _ in esp.files)
    back_end(esp).condemn(B)
    assert slot_that_boots(esp.files) is A
    assert names(esp) == ["a.conf"]


def test_a_full_esp_stops_placing_and_changes_no_entry() -> None:
    esp = new_disk(capacity_bytes=4 * CLUSTER_BYTES)
    boot = back_end(esp)
    with pytest.raises(EnvironmentFailure, match="ENOSPC"):
        boot.place(B, UKI_2, [b"x" * CLUSTER_BYTES * 4])
    assert names(esp) == ["a.conf"]
    assert slot_that_boots(esp.files) is A


def test_space_counts_whole_clusters_on_the_needy_side_and_plain_bytes_on_the_other() -> None:
    esp = new_disk({"EFI/acl/b.efi": b"x" * 5000, "FSCK0000.REC": b"y" * 100})
    needed, free = back_end(esp).space_needed(B, [BootFile("uki.efi", 1, ""), BootFile("fips.addon.efi", 1, "")])
    assert needed >= 2 * 32 * 1024
    assert free == esp.free_bytes() + 5000 + 100


def test_withdrawing_also_removes_torn_names_and_what_fsck_recovered_and_nothing_else() -> None:
    kept = {"EFI/acl/ledger.json": b"{}", "notes.txt": b"x", f"{ENTRIES}/readme": b"x", "FSCK0000.TXT": b"x"}
    torn = {f"{ENTRIES}/B_3-0~1.CON": b"x", f"{ENTRIES}/a~1.con": b"x", "FSCK0001.REC": b"x"}
    esp = new_disk({**kept, **torn})
    back_end(esp).withdraw(B)
    left = esp.files
    assert set(kept) <= set(left)
    assert not set(torn) & set(left)


def test_a_fallback_written_by_another_maker_is_left_as_it_is() -> None:
    raw = b"title ACL\nversion 1\nsort-key acl-999998\nuki /EFI/acl/a.efi\n"
    esp = new_disk({f"{ENTRIES}/a.conf": raw})
    staged(esp).arm(B, "2", tries=3)
    assert esp.files[f"{ENTRIES}/a.conf"] == raw


def test_a_fallback_with_a_foreign_sort_key_is_rewritten_behind_a_twin() -> None:
    esp = new_disk({f"{ENTRIES}/a.conf": b"version 1\nsort-key acl-0\nlinux /EFI/acl/a.efi\n"})
    back_end(esp).settle(A)
    assert names(esp) == ["a.conf"]
    assert entries.parse_entry(esp.files[f"{ENTRIES}/a.conf"]).generation == 0
    assert {slot_that_boots(instant.files) for instant in esp.instants} == {A}


def test_an_entry_whose_name_and_content_disagree_goes_by_its_content() -> None:
    crossed = entries.entry_text(A, "1", 1)
    esp = new_disk({f"{ENTRIES}/b+2-1.conf": crossed})
    state = back_end(esp).read()
    assert [(entry.name, entry.slot) for entry in state.order] == [("b+2-1.conf", A), ("a.conf", A)]
    back_end(esp).withdraw(B)
    assert names(esp) == ["a.conf"]


def test_the_last_entry_of_the_fallback_is_kept_even_under_the_other_slots_name() -> None:
    esp = new_disk({f"{ENTRIES}/b+2-1.conf": entries.entry_text(A, "1", 1)})
    esp.remove(f"{ENTRIES}/a.conf")
    with pytest.raises(EnvironmentFailure, match="settle slot a"):
        back_end(esp).withdraw(B)
    back_end(esp).settle(A)
    back_end(esp).withdraw(B)
    assert names(esp) == ["a.conf"]


def test_a_fallback_under_the_other_slots_name_must_be_settled_before_arming() -> None:
    esp = new_disk({f"{ENTRIES}/b.conf": entries.entry_text(A, "1", 1), "EFI/acl/b.efi": b"uki of 2"})
    esp.remove(f"{ENTRIES}/a.conf")
    with pytest.raises(EnvironmentFailure, match="settle slot a"):
        back_end(esp).arm(B, "2", tries=3)
    assert slot_that_boots(esp.files) is A
    back_end(esp).settle(A)
    back_end(esp).arm(B, "2", tries=3)
    assert names(esp) == ["a.conf", "b+3-0.conf"]


def test_a_slot_without_any_entry_cannot_be_settled_and_the_error_says_what_to_do() -> None:
    esp = new_disk()
    with pytest.raises(EnvironmentFailure, match=r"slot b has no boot entry.*loader/entries/b\.conf by hand"):
        back_end(esp).settle(B)


def test_a_proven_slot_that_lost_its_entry_gets_one_by_its_ukis_own_version() -> None:
    esp = new_disk({"EFI/acl/b.efi": build_uki("2")})
    back_end(esp).prefer(B, "2")
    chosen = back_end(esp).read().next_entry
    assert chosen is not None
    assert (chosen.slot, chosen.version, chosen.tries_left) == (B, "2", None)
    esp.remove(f"{ENTRIES}/a.conf")
    esp.write_new("EFI/acl/a.efi", [build_uki("1")])
    back_end(esp).settle(A)
    assert [entry.version for entry in back_end(esp).read().order] == ["2", "1"]


def test_a_release_whose_uki_is_gone_is_not_preferred() -> None:
    with pytest.raises(EnvironmentFailure, match="slot b has no UKI"):
        back_end(new_disk()).prefer(B, "2")


class TornDirectory(SimulatedDirectory):
    """Has UKIs whose chains of clusters end too early."""

    def chunks(self, path: str) -> Iterator[bytes]:
        if path.endswith(".efi"):
            raise EnvironmentFailure(f"cannot read {path}: Input/output error")
        return super().chunks(path)


def test_an_artifact_that_cannot_be_read_is_complained_about_so_that_it_is_placed_anew() -> None:
    boot = back_end(TornDirectory(new_disk({"EFI/acl/b.efi": b"uki of 2"}).files))
    assert boot.verify(B, [UKI_2]) == ("cannot read EFI/acl/b.efi: Input/output error",)


class ForgetfulDirectory(SimulatedDirectory):
    """Loses the tail of small files, as a dying disk does."""

    def overwrite(self, path: str, content: bytes) -> None:
        super().overwrite(path, content[:-1] + b"\0")


def test_an_entry_that_does_not_read_back_is_an_error_and_the_fallback_boots() -> None:
    esp = ForgetfulDirectory(new_disk({"EFI/acl/b.efi": b"uki of 2"}).files)
    with pytest.raises(EnvironmentFailure, match="does not read back"):
        back_end(esp).arm(B, "2", tries=3)
    assert back_end(esp).read().entries_of(A)[0].tries_left is None


class WatchedDirectory(SimulatedDirectory):
    """Notes which entries the loader would list whenever a file is made."""

    listed_when_made: bool = False
    beside_when_made: frozenset[str] = frozenset()

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        super().write_new(path, chunks)
        self.beside_when_made |= set(self.names(ENTRIES)) - {path.rpartition("/")[2]}
        if path.startswith(ENTRIES) and loader_model.candidate(path, self.files[path]) is not None:
            self.listed_when_made = True


def test_a_new_entry_is_listed_only_once_its_room_on_the_esp_is_durable() -> None:
    """Seen in a recorded update: a whole entry whose cluster the FAT calls free, and which the next file takes."""
    esp = WatchedDirectory(new_disk({"EFI/acl/b.efi": b"uki of 2"}).files)
    back_end(esp).arm(B, "2", tries=3)
    back_end(esp).commit(B, tries=None)
    assert f"{ENTRIES}/b.conf" in esp.files
    assert not esp.listed_when_made


def test_no_entry_is_listed_any_more_when_its_file_is_removed() -> None:
    """The name may outlive the file's place in the table, which the next file takes."""
    esp = new_disk({f"{ENTRIES}/b.conf": entries.entry_text(B, "0", 0), "EFI/acl/b.efi": b"x"})
    back_end(esp).withdraw(B)
    path = f"{ENTRIES}/b.conf"
    last = [instant.files[path] for instant in esp.instants if path in instant.files][-1]
    assert last == entries.no_entry(len(entries.entry_text(B, "0", 0)))


@pytest.mark.parametrize("left", [b"", entries.no_entry(72)])
def test_what_a_cut_left_blank_is_gone_before_the_next_entry_is_made(left: bytes) -> None:
    """Both could share a cluster: the blank b.conf would say what b+0-1.conf says, and be good."""
    esp = WatchedDirectory(new_disk({"EFI/acl/b.efi": b"uki of 2"}).files)
    back_end(esp).arm(B, "2", tries=3)
    blank = WatchedDirectory({**esp.files, f"{ENTRIES}/b.conf": left, f"{ENTRIES}/a+3-0.conf": left})
    back_end(blank).condemn(B)
    assert "b+0-0.conf" in blank.names(ENTRIES)
    assert not blank.beside_when_made & {"b.conf", "a+3-0.conf"}


@pytest.mark.parametrize("left", [b"", entries.no_entry(72)])
def test_what_a_cut_left_blank_of_either_slot_is_gone_before_a_trial_is_armed(left: bytes) -> None:
    files = new_disk({"EFI/acl/b.efi": b"uki of 2"}).files
    blank = WatchedDirectory({**files, f"{ENTRIES}/b.conf": left, f"{ENTRIES}/a+9.conf": left})
    back_end(blank).arm(B, "2", tries=3)
    assert blank.names(ENTRIES) == ["a.conf", "b+3-0.conf"]
    assert blank.beside_when_made == {"a.conf"}


def test_a_trial_has_a_bounded_number_of_tries() -> None:
    for tries in (0, 10, -1):
        with pytest.raises(ValueError, match="1 to 9 tries"):
            back_end(new_disk()).arm(B, "2", tries=tries)


def test_a_factory_entry_may_be_counted_to_prove_counting_and_boots_even_used_up() -> None:
    files = {**entries.factory_files("1", tries=3), "EFI/acl/a.efi": b"uki of 1"}
    assert f"{ENTRIES}/a+3-0.conf" in files
    used_up = {path.replace("+3-0", "+0-3"): content for path, content in files.items()}
    assert slot_that_boots(used_up) is A
    esp = SimulatedDirectory(used_up)
    SystemdBoot(esp, SimulatedEfiVariables()).settle(A)
    assert names(esp) == ["a.conf"]


def test_names_in_capitals_are_the_same_files() -> None:
    esp = new_disk()
    files = {path.upper(): content for path, content in esp.files.items()}
    shouting = SimulatedDirectory(files)
    assert slot_that_boots(files) is A
    staged(shouting).arm(B, "2", tries=3)
    assert [entry.slot for entry in back_end(shouting).read().order] == [B, A]
