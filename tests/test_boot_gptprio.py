"""GPT priority, tries and successful keep the contract of boot back ends; the loader's own writes are cut as well."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.boot_contract import FILES, TRIES, UKI, BootContract, BootWorld, boots_until_settled, place, stage
from tests.gptprio_world import LABELS, LAYOUT, SECTOR, TYPE, GptWorld
from updater.boot import gptprio_model
from updater.boot.gptprio_model import HIGHEST, SlotBits, choose, slot_bits
from updater.errors import EnvironmentFailure
from updater.gpt import parse
from updater.partition import WholeDisk
from updater.run import search_path
from updater.slots import Slot

A, B = Slot.A, Slot.B
CGPT = shutil.which("cgpt", path=search_path())
needs_cgpt = pytest.mark.skipif(CGPT is None, reason="cgpt is not installed: no independent reader of the bits")


class TestGptPriority(BootContract):
    counts_alone = False

    def make_world(self) -> BootWorld:
        return GptWorld.factory()


def trial() -> GptWorld:
    """Return a machine whose slot b is armed."""
    world = GptWorld.factory()
    stage(world, B)
    world.backend().arm(B, "2", tries=TRIES)
    return world


def test_a_slot_that_is_not_armed_has_no_bits_at_any_instant_of_staging() -> None:
    world = GptWorld.factory()
    stage(world, B)
    for effect, cut in world.instants():
        assert isinstance(cut, GptWorld)
        assert cut.bits(B) == SlotBits(), effect
    world.backend().arm(B, "2", tries=TRIES)
    assert (world.bits(A), world.bits(B)) == (SlotBits(1, 0, True), SlotBits(2, TRIES, False))


def test_each_verdict_leaves_the_bits_that_the_documents_name() -> None:
    world = trial()
    world.power_on()
    assert world.bits(B) == SlotBits(2, TRIES - 1, False)
    committed = world.copy()
    committed.backend().commit(B, tries=None)
    assert committed.bits(B) == SlotBits(2, 0, True)
    world.backend().condemn(B)
    assert world.bits(B) == SlotBits(2, 0, False)
    entry = world.backend().read().entries_of(B)[0]
    assert (entry.tries_left, entry.tries_done) == (0, 1)


def test_other_attributes_and_partitions_stay_as_they_are() -> None:
    world = GptWorld.factory()
    before = world.disk.table()
    number = LAYOUT.numbers[LABELS[A]]
    world.disk.sectors.clear()
    for offset, raw in [
        *before.with_partition(number, attributes=(1 << 60) | (1 << 48) | (1 << 56) | 5).primary_image()
    ]:
        world.disk.write(offset, raw)
    stage(world, B)
    world.backend().arm(B, "2", tries=TRIES)
    world.power_on()
    world.backend().settle(B)
    world.backend().withdraw(A)
    found = world.disk.table()
    assert found.partition(number).attributes == (1 << 60) | 5
    assert [p.unique_guid for p in found.partitions] == [p.unique_guid for p in before.partitions]


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_cut_inside_the_loaders_own_write_ends_in_the_fallback_and_never_boots_what_is_not_armed(left: int) -> None:
    world = trial()
    for _ in range(TRIES - left):
        world.power_on()
    for cut in world.power_on_by_sectors():
        assert cut.boots() in (A, B)
        assert boots_until_settled(cut) is A


def test_a_cut_inside_the_loaders_last_write_may_leave_the_backup_copy_alone() -> None:
    # Linux reads that with `gpt` on its command line only; the loader mends it in memory, and on disk when it counts.
    world = trial()
    world.power_on()
    world.power_on()
    states = [cut.disk.table() for cut in world.power_on_by_sectors()]
    damaged = [table for table in states if not table.primary_ok]
    assert damaged
    assert all(table.backup_ok for table in damaged)
    assert {slot_bits(found.attributes).tries for table in damaged if (found := table.named(LABELS[B]))} == {0}


def test_the_updater_mends_what_such_a_cut_left_before_it_changes_anything() -> None:
    world = trial()
    cut = next(cut for cut in world.power_on_by_sectors() if not cut.disk.table().primary_ok)
    cut.backend().condemn(B)
    table = cut.disk.table()
    assert table.consistent
    assert cut.boots() is A


def test_priorities_that_are_used_up_start_again_in_one_write() -> None:
    world = trial()
    for _ in range(3 * HIGHEST):
        world.power_on()
        world.backend().arm(B, "2", tries=TRIES)
        assert world.boots() is B
        for effect, cut in world.instants():
            assert boots_until_settled(cut) is A, effect
    assert world.bits(B).priority <= HIGHEST


def test_two_slots_are_never_both_counted_so_that_one_always_boots() -> None:
    world = trial()
    world.power_on()
    world.backend().commit(B, tries=TRIES)
    world.backend().prefer(A, "1")
    assert world.power_on() is A
    world.backend().commit(A, tries=TRIES)
    assert [world.power_on() for _ in range(2 * TRIES + 2)] == [A] * (2 * TRIES + 2)


def test_a_machine_on_which_nothing_else_boots_keeps_its_condemned_slot() -> None:
    world = GptWorld.factory()
    world.backend().condemn(A)
    assert world.boots() is A


def test_a_foreign_bootable_slot_is_an_obstacle_by_name() -> None:
    world = GptWorld.factory()
    stage(world, B)
    table = world.disk.table()
    oem = table.named("OEM")
    assert oem is not None
    kind = TYPE.bytes_le + oem.unique_guid.bytes_le
    at = (oem.number - 1) * 128
    entries = bytearray(table.entries)
    entries[at : at + 32] = kind
    entries[at + 48 : at + 56] = SlotBits(9, 1, False).into(0).to_bytes(8, "little")
    foreign = _with_entries(world, bytes(entries))
    assert "OEM" in foreign.backend().read().obstacles[0]
    with pytest.raises(EnvironmentFailure, match="not armed: partition"):
        foreign.backend().arm(B, "2", tries=TRIES)


def test_a_successful_slot_with_tries_is_an_obstacle_because_it_would_never_fall_back() -> None:
    world = trial()
    table = world.disk.table()
    number = LAYOUT.numbers[LABELS[B]]
    for offset, raw in table.with_partition(number, attributes=SlotBits(2, 3, True).into(0)).primary_image():
        world.disk.write(offset, raw)
    assert [world.copy().power_on() for _ in range(5)] == [B] * 5
    assert any("never fall back" in obstacle for obstacle in world.backend().read().obstacles)


@pytest.mark.parametrize("record", [None, b"", b"2.0", b"2.0 3", b"\xff\xff\xff", b"2.0 x .\n", b"x" * 600])
def test_a_lost_record_of_the_release_changes_nothing_that_boots(record: bytes | None) -> None:
    world = trial()
    world.power_on()
    world.esp.remove("flatcar/release-b")
    if record is not None:
        world.esp.write_new("flatcar/release-b", [record])
    assert world.backend().read().next_name == "b+2-0"
    world.backend().commit(B, tries=TRIES)
    assert world.power_on() is B
    world.backend().condemn(B)
    assert world.power_on() is A


def test_a_table_without_room_for_a_second_array_is_noted() -> None:
    world = GptWorld.factory()
    assert world.backend().read().notes == ()
    # Something of the board's own lies where the second array would go.
    world.disk.write(34 * SECTOR, b"firmware")
    assert "no room" in world.backend().read().notes[0]


def test_a_disk_of_another_layout_is_refused_by_label() -> None:
    world = GptWorld.factory()
    number = LAYOUT.numbers[LABELS[B]]
    for offset, raw in world.disk.table().with_partition(number, name="other").primary_image():
        world.disk.write(offset, raw)
    with pytest.raises(EnvironmentFailure, match="USR-B"):
        world.backend().read()


def test_an_artifact_is_placed_under_a_withdrawn_slot_only() -> None:
    world = trial()
    with pytest.raises(EnvironmentFailure, match="withdraw slot b first"):
        world.backend().place(B, FILES[1], [UKI])
    world.backend().withdraw(B)
    place(world, B)


def _with_entries(world: GptWorld, entries: bytes) -> GptWorld:
    """Return a world whose table holds these entries, types included."""
    changed = replace(world.disk.table(), entries=entries, consistent=False)
    made = world.copy()
    for offset, raw in [*changed.backup_image(), *changed.primary_image()]:
        made.disk.write(offset, raw)
    return made


# -- cgpt, the independent reader ------------------------------------------------------------------------------------


def cgpt(*arguments: str | Path) -> str:
    assert CGPT is not None
    done = subprocess.run([CGPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def file_of(world: GptWorld, path: Path) -> Path:
    """Write the disk to a sparse file."""
    with path.open("wb") as file:
        file.truncate(world.disk.length_bytes)
        for sector, raw in world.disk.sectors.items():
            file.seek(sector * SECTOR)
            file.write(raw)
    return path


def seen_by_cgpt(disk: Path) -> dict[Slot, SlotBits]:
    found = {}
    for slot in Slot:
        number = str(LAYOUT.numbers[LABELS[slot]])
        priority, tries, successful = (int(cgpt("show", "-i", number, flag, disk)) for flag in ("-P", "-T", "-S"))
        found[slot] = SlotBits(priority, tries, bool(successful))
    return found


def states() -> Iterator[tuple[str, GptWorld]]:
    world = GptWorld.factory()
    yield "factory", world
    stage(world, B)
    yield "staged", world
    world.backend().arm(B, "2", tries=TRIES)
    yield "armed", world
    world.power_on()
    yield "on trial", world
    world.backend().commit(B, tries=TRIES)
    yield "committed", world
    world.backend().settle(B)
    yield "settled", world
    world.backend().condemn(B)
    yield "condemned", world


@needs_cgpt
def test_cgpt_reads_what_we_write_and_finds_both_copies_sound(tmp_path: Path) -> None:
    for what, world in states():
        disk = file_of(world, tmp_path / "disk.img")
        assert seen_by_cgpt(disk) == {slot: world.bits(slot) for slot in Slot}, what
        shown = cgpt("show", "-v", disk)
        assert "INVALID" not in shown, shown


@needs_cgpt
def test_we_read_what_cgpt_writes(tmp_path: Path) -> None:
    pick = random.Random(5)
    world = GptWorld.factory()
    disk = file_of(world, tmp_path / "disk.img")
    for _ in range(6):
        wanted = {}
        for slot in Slot:
            bits = SlotBits(pick.randrange(16), pick.randrange(16), pick.random() < 0.5)
            number = str(LAYOUT.numbers[LABELS[slot]])
            settings = ("-P", str(bits.priority), "-T", str(bits.tries), "-S", str(int(bits.successful)))
            cgpt("add", "-i", number, *settings, disk)
            wanted[slot] = bits
        with WholeDisk(disk) as opened:
            table = parse(opened.read, opened.length_bytes)
        assert table.consistent
        found = {slot: table.named(LABELS[slot]) for slot in Slot}
        assert {slot: slot_bits(p.attributes) for slot, p in found.items() if p} == wanted


@needs_cgpt
def test_cgpt_ranks_bootable_slots_as_the_model_chooses(tmp_path: Path) -> None:
    # `cgpt prioritize` without a partition renumbers from the highest priority down and keeps the order.
    for what, world in states():
        chosen = choose(world.disk.table(), TYPE)
        disk = file_of(world, tmp_path / "disk.img")
        listed = cgpt("find", "-n", "-t", str(TYPE), disk).split()
        assert sorted(map(int, listed)) == sorted(LAYOUT.numbers[LABELS[slot]] for slot in Slot), what
        bits = seen_by_cgpt(disk)
        best = max((b for b in bits.values() if b.is_bootable), key=lambda b: b.priority)
        assert chosen is not None
        assert bits[A if chosen.name == LABELS[A] else B] == best, what


# -- the model on its own --------------------------------------------------------------------------------------------


def test_the_model_prefers_the_first_of_equals_and_never_priority_zero() -> None:
    world = GptWorld.factory()
    table = world.disk.table()

    def chosen(a: SlotBits, b: SlotBits) -> Slot | None:
        changed = table
        for slot, bits in ((A, a), (B, b)):
            changed = changed.with_partition(LAYOUT.numbers[LABELS[slot]], attributes=bits.into(0))
        found = choose(changed, TYPE)
        return next((slot for slot in Slot if found and LABELS[slot] == found.name), None)

    assert chosen(SlotBits(1, 0, True), SlotBits(1, 1, False)) is A
    assert chosen(SlotBits(1, 0, True), SlotBits(2, 1, False)) is B
    assert chosen(SlotBits(1, 0, True), SlotBits(2, 0, False)) is A
    assert chosen(SlotBits(0, 15, True), SlotBits(0, 0, True)) is None
    assert gptprio_model.slot_bits(SlotBits(7, 9, True).into(1 << 60)) == SlotBits(7, 9, True)
    with pytest.raises(ValueError, match="four bits"):
        SlotBits(16).into(0)
