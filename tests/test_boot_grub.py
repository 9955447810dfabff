"""GRUB's environment block keeps the contract of boot back ends, sectors torn and lost included."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.boot_contract import ADDON, FILES, TRIES, UKI, BootContract, BootWorld, boots_until_settled, place, stage
from tests.grub_world import GrubWorld, factory_files
from tests.portable_executable import COMMAND_LINE, build_pe, build_uki, uki_sections
from tests.simulated import SimulatedDirectory
from updater.boot import grub_model
from updater.boot.grub_block import (
    BLOCK_BYTES,
    MAX_GENERATION,
    SECTOR_BYTES,
    Block,
    SlotState,
    block_bytes,
    factory_block,
    parse_block,
)
from updater.boot.grub_env import BLOCKS, CONFIG, SCRIPT, GrubEnv, start_path
from updater.boot.grub_start import start_text
from updater.boot.protocol import BootFile
from updater.errors import EnvironmentFailure, InvalidDocument
from updater.files import MountedDirectory
from updater.slots import Slot

A, B = Slot.A, Slot.B


class TestGrub(BootContract):
    def make_world(self) -> BootWorld:
        return GrubWorld()


def trial() -> GrubWorld:
    """Return a machine whose slot b is armed."""
    world = GrubWorld()
    stage(world, B)
    world.backend().arm(B, "2", tries=TRIES)
    return world


def damaged(world: GrubWorld, *paths: str) -> GrubWorld:
    """Return a machine on which a sector of these files cannot be read any more."""
    files = world.files.files
    return GrubWorld({**files, **{path: bytes(SECTOR_BYTES) + files[path][SECTOR_BYTES:] for path in paths}})


# -- power cuts and lost sectors --------------------------------------------------------------------------------------


def test_a_cut_while_grub_counts_goes_on_counting_or_falls_back() -> None:
    world = trial()
    for _ in range(TRIES):
        list(world.instants())
        world.power_on()
        for effect, cut in world.instants():
            assert cut.boots() in (A, B), effect
            assert boots_until_settled(cut) is A, effect


def test_the_copy_of_a_lost_block_boots_what_was_last_decided() -> None:
    world = trial()
    world.power_on()
    assert boots_until_settled(damaged(world, BLOCKS[0])) is A
    world.backend().commit(B, tries=TRIES)
    assert damaged(world, BLOCKS[0]).boots() is B
    world.backend().condemn(B)
    assert damaged(world, BLOCKS[0]).boots() is A
    noted = damaged(world, BLOCKS[0]).backend().read()
    assert "damaged" in noted.notes[0]
    assert noted.obstacles == ()


def test_with_both_blocks_lost_only_a_slot_that_was_armed_once_can_start() -> None:
    world = GrubWorld()
    stage(world, B)
    lost = damaged(world, *BLOCKS)
    assert lost.power_on() is A
    assert lost.told == "last"
    state = lost.backend("acl.slot=a acl.tries_left=last").read()
    assert "environment block" in state.obstacles[0]
    assert "last resort" in state.notes[0]
    with pytest.raises(EnvironmentFailure, match="environment block"):
        lost.backend().arm(B, "2", tries=TRIES)


@pytest.mark.parametrize("verdict", ["commit", "settle", "prefer", "condemn"])
def test_a_verdict_writes_lost_blocks_anew(verdict: str) -> None:
    lost = damaged(trial(), *BLOCKS)
    backend = lost.backend()
    if verdict == "commit":
        backend.commit(B, tries=TRIES)
    elif verdict == "settle":
        backend.settle(B)
    elif verdict == "prefer":
        backend.prefer(B, "2")
    else:
        backend.condemn(B)
    assert lost.boots() is (A if verdict == "condemn" else B)
    assert lost.backend().read().obstacles == ()
    assert lost.files.files[BLOCKS[0]] == lost.files.files[BLOCKS[1]]


def test_a_lost_copy_is_mended_before_the_block_in_use_is_touched() -> None:
    for path in BLOCKS:
        world = damaged(trial(), path)
        world.backend().condemn(B)
        for effect, cut in world.instants():
            assert isinstance(cut, GrubWorld)
            assert cut.state().block is not None, effect


def test_the_next_change_mends_a_lost_block() -> None:
    world = damaged(trial(), BLOCKS[0])
    world.backend().condemn(B)
    assert world.files.files[BLOCKS[0]] == world.files.files[BLOCKS[1]]
    assert world.boots() is A
    gone = trial()
    gone.files.remove(BLOCKS[1])
    gone.backend().condemn(B)
    assert gone.files.files[BLOCKS[0]] == gone.files.files[BLOCKS[1]]


def test_a_slot_whose_files_do_not_load_costs_a_try_and_the_fallback_boots_at_once() -> None:
    world = trial()
    world.files.remove("EFI/acl/b.efi")
    assert world.power_on() is A
    block = parse_block(world.files.files[BLOCKS[0]])
    assert block is not None
    assert block.b.tries == TRIES - 1


def test_a_try_that_cannot_be_counted_is_not_made() -> None:
    state = replace(trial().state(), frozen=True)
    assert grub_model.boot(state) == (A, "good", state)


def test_generations_that_are_used_up_start_again_in_one_write() -> None:
    block = Block(SlotState("good", 0, MAX_GENERATION, "1"), SlotState())
    world = GrubWorld({**factory_files(), **dict.fromkeys(BLOCKS, block_bytes(block))})
    stage(world, B)
    list(world.instants())
    world.backend().arm(B, "2", tries=TRIES)
    for effect, cut in world.instants():
        assert boots_until_settled(cut) is A, effect
    assert world.power_on() is B


# -- the block --------------------------------------------------------------------------------------------------------


def test_all_that_decides_lies_in_the_first_sector_for_the_longest_versions() -> None:
    state = SlotState(9, 9, MAX_GENERATION, "1" * 64)
    raw = block_bytes(Block(state, state))
    assert len(raw) == BLOCK_BYTES
    assert set(raw[SECTOR_BYTES:]) == {ord("#")}
    assert parse_block(raw) == Block(state, state)
    with pytest.raises(EnvironmentFailure, match="first sector holds 512"):
        block_bytes(Block(SlotState(9, 9, 1, "1" * 300), state))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        bytes(BLOCK_BYTES),
        b"# GRUB Environment Block\n" + b"#" * 999,
        factory_block("1").replace(b"acl_end=1\n", b"##########"),
        factory_block("1").replace(b"acl_end=1\n", b"acl_end=1#"),
        factory_block("1")[1:],
    ],
)
def test_a_block_without_its_signature_or_its_end_is_not_believed(raw: bytes | None) -> None:
    assert parse_block(raw) is None


def test_values_that_mean_nothing_are_no_entry() -> None:
    raw = factory_block("1").replace(b"acl_a_tries=good", b"acl_a_tries=-123")
    block = parse_block(raw)
    assert block is not None
    assert block.a.tries is None


# -- what the kernel is told ------------------------------------------------------------------------------------------


def test_the_command_line_says_which_entry_booted_with_how_many_tries_left() -> None:
    world = trial()
    world.power_on()
    assert world.told == TRIES - 1
    state = world.backend(f"quiet acl.slot=b acl.tries_left={TRIES - 1}").read()
    assert state.booted_name == f"b+{TRIES - 1}-1"
    assert state.booted_name in [entry.name for entry in state.order]
    assert world.backend("acl.slot=a acl.tries_left=good").read().booted_name == "a"
    assert world.backend().read().booted_name is None


@pytest.mark.parametrize("line", ["root=/dev/sda1", "acl.slot=c acl.tries_left=1", "acl.slot=a"])
def test_a_boot_that_did_not_come_through_the_script_is_an_obstacle(line: str) -> None:
    assert any("did not come through" in found for found in GrubWorld().backend(line).read().obstacles)


@pytest.mark.parametrize(
    ("path", "content", "word"),
    [
        (SCRIPT, b"echo other\n", "is not the script"),
        (SCRIPT, None, "is not the script"),
        (CONFIG, b"menuentry x {\n}\n", "does not read acl.cfg"),
        (CONFIG, b"# source $prefix/acl.cfg\n", "does not read acl.cfg"),
    ],
)
def test_a_foreign_script_keeps_a_trial_from_being_armed(path: str, content: bytes | None, word: str) -> None:
    world = GrubWorld()
    stage(world, B)
    world.files.remove(path)
    if content is not None:
        world.files.write_new(path, [content])
    assert word in world.backend().read().obstacles[0]
    with pytest.raises(EnvironmentFailure, match=word):
        world.backend().arm(B, "2", tries=TRIES)
    assert world.boots() is A


def test_a_read_only_block_is_an_obstacle() -> None:
    world = GrubWorld()
    world.files.set_read_only(BLOCKS[0])
    assert "read-only" in world.backend().read().obstacles[0]


# -- the start file ---------------------------------------------------------------------------------------------------


def text_of(uki: bytes, addons: dict[str, bytes] | None = None) -> str:
    given = [(name, lambda raw=raw: iter([raw])) for name, raw in (addons or {}).items()]
    return start_text(B, "EFI/acl/b.efi", lambda: iter([uki[:700], uki[700:]]), given).decode()


def test_the_start_file_names_the_sectors_of_the_sections() -> None:
    lines = text_of(UKI).splitlines()
    linux, initrd = (line.split()[1] for line in lines[2:4])
    for place_text, content in ((linux, b"kernel" * 300), (initrd, b"initrd" * 500)):
        first, count = (int(number) for number in place_text.removeprefix("(acl_b)").split("+"))
        read = UKI[first * SECTOR_BYTES : (first + count) * SECTOR_BYTES]
        assert read.rstrip(b"\0") == content
    assert " ".join(f"'{word}'" for word in COMMAND_LINE.split()) in lines[2]
    assert lines[2].endswith("$acl_parameters acl.slot=b acl.tries_left=$acl_tries_left")


def test_microcode_comes_before_the_initrd_and_addons_behind_the_uki_s_own_words() -> None:
    uki = build_pe([*uki_sections(), (".ucode", b"microcode" * 100)])
    lines = text_of(uki, {"b.addon.efi": ADDON, "a.addon.efi": build_pe([(".cmdline", b"first=1")])}).splitlines()
    assert "console=ttyS0' 'first=1' 'fips=1' $acl_parameters" in lines[2]
    places = lines[3].split()[1:]
    assert [int(one.split(")")[1].split("+")[1]) for one in places] == [2, 6]


@pytest.mark.parametrize(
    ("uki", "word"),
    [
        (b"no PE file", "it is no PE file"),
        (build_pe([(".cmdline", b"x"), (".linux", b"k")]), "missing"),
        (build_uki(command_line="root=x it's"), "cannot hand"),
        (build_uki(command_line="path=a\\b"), "cannot hand"),
        (build_uki(command_line="x" * 1900), "longer than"),
        (build_pe([(".linux", b"k"), (".initrd", b"i"), (".cmdline", b"\xff")]), "UTF-8"),
    ],
)
def test_a_uki_that_grub_could_not_start_as_the_stub_would_is_refused(uki: bytes, word: str) -> None:
    with pytest.raises(InvalidDocument, match=word):
        text_of(uki)


def test_an_addon_that_brings_more_than_a_command_line_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="command line only"):
        text_of(UKI, {"x.addon.efi": build_pe([(".initrd", b"i")])})


def test_an_unusable_uki_is_told_before_it_is_armed() -> None:
    world = GrubWorld()
    world.backend().withdraw(B)
    bad = build_uki(command_line="it's")
    file = BootFile("uki.efi", len(bad), hashlib.sha256(bad).hexdigest())
    world.backend().place(B, file, [bad])
    assert "cannot hand" in world.backend().verify(B, [file])[0]
    with pytest.raises(InvalidDocument):
        world.backend().arm(B, "2", tries=TRIES)
    assert (world.boots(), world.backend().read().entries_of(B)) == (A, ())


def test_a_start_file_exists_for_armed_slots_only_and_goes_with_the_entry() -> None:
    world = GrubWorld()
    stage(world, B)
    assert start_path(B) not in world.files.files
    world.backend().arm(B, "2", tries=TRIES)
    assert start_path(B) in world.files.files
    world.backend().withdraw(B)
    assert start_path(B) not in world.files.files


def test_a_lost_start_file_of_the_running_slot_is_written_anew() -> None:
    world = GrubWorld()
    world.files.remove(start_path(A))
    assert world.boots() is None
    world.backend().settle(A)
    assert world.boots() is A
    assert world.files.files[start_path(A)] == factory_files()[start_path(A)]


def test_a_slot_that_lost_its_entry_gets_the_version_that_its_uki_names() -> None:
    world = GrubWorld({**factory_files(), **dict.fromkeys(BLOCKS, block_bytes(Block(SlotState(), SlotState())))})
    assert world.power_on() is A
    world.backend().settle(A)
    entry = world.backend().read().next_entry
    assert entry is not None
    assert (entry.version, entry.tries_left) == ("1", None)


def test_a_block_on_a_mounted_folder_is_overwritten_in_place(tmp_path: Path) -> None:
    for path, content in factory_files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    before = (tmp_path / BLOCKS[0]).stat().st_ino
    backend = GrubEnv(MountedDirectory(tmp_path))
    for file, content in zip(FILES, (ADDON, UKI), strict=True):
        backend.place(B, file, [content])
    backend.arm(B, "2", tries=2)
    assert (tmp_path / BLOCKS[0]).stat().st_ino == before
    assert sorted(path.name for path in (tmp_path / "acl").iterdir()) == ["a.cfg", "b.cfg", "env-1", "env-2"]
    assert backend.read().next_name == "b+2-0"


def test_placing_under_a_condemned_slot_needs_its_withdrawal() -> None:
    world = trial()
    world.backend().condemn(B)
    with pytest.raises(EnvironmentFailure, match="withdraw slot b first"):
        place(world, B)


class EndsTooEarly(SimulatedDirectory):
    """A FAT partition on which a cut left files whose chain of clusters is shorter than their length."""

    damaged: frozenset[str] = frozenset()

    def chunks(self, path: str) -> Iterator[bytes]:
        if path in self.damaged:
            raise EnvironmentFailure(f"cannot read {path}: Input/output error", reason="io-error")
        return super().chunks(path)

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        self.damaged -= {path}
        super().write_new(path, chunks)


def test_a_start_file_that_cannot_be_read_is_written_anew_when_its_slot_is_armed() -> None:
    world = GrubWorld()
    stage(world, B)
    files = EndsTooEarly({**world.files.files, start_path(B): b"loopback"})
    files.damaged = frozenset({start_path(B)})
    assert GrubEnv(files).arm(B, "2", tries=TRIES).slot is B
    assert files.damaged == frozenset()
