"""Partition tables: independent readers, hostile bytes, and power cuts at every sector."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from updater.errors import EnvironmentFailure
from updater.gpt import Gpt, parse
from updater.partition import WholeDisk, write_table
from updater.run import run, search_path

ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ROOT = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
NEW = UUID("6e2f9495-2624-ca90-c3ee-5e37285f51a1")
DISK = UUID("11223344-5566-7788-99aa-bbccddeeff00")
READ_ONLY = 1 << 60

needs_sfdisk = pytest.mark.skipif(
    shutil.which("sfdisk", path=search_path()) is None, reason="sfdisk (fdisk) is not installed"
)
needs_sgdisk = pytest.mark.skipif(
    shutil.which("sgdisk", path=search_path()) is None, reason="sgdisk (gdisk) is not installed"
)


@dataclass
class MemoryDisk:
    """A disk that remembers every write and flush, so that cuts can be replayed."""

    content: bytearray
    sector_bytes: int = 512
    name: str = "memory"
    effects: list[tuple[int, bytes] | None] = field(default_factory=list)

    @property
    def length_bytes(self) -> int:
        """Return the disk's length."""
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`."""
        assert 0 <= offset <= offset + length <= len(self.content)
        assert offset % self.sector_bytes == 0 == length % self.sector_bytes
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Write by sectors."""
        assert 0 <= offset <= offset + len(data) <= len(self.content)
        for at in range(0, len(data), self.sector_bytes):
            piece = data[at : at + self.sector_bytes]
            self.effects.append((offset + at, piece))
            self.content[offset + at : offset + at + len(piece)] = piece

    def flush(self) -> None:
        """Remember the barrier."""
        self.effects.append(None)

    def table(self) -> Gpt:
        """Parse what lies on it."""
        return parse(self.read, self.length_bytes, self.sector_bytes)


def made_by_hand(sector: int = 512, *, first_usable: int = 2048, entries: int = 128, megabytes: int = 2) -> MemoryDisk:
    """Return a disk with an ESP and two root slots, its table packed here on its own."""
    disk = MemoryDisk(bytearray(megabytes << 20), sector)
    sectors = len(disk.content) // sector
    array_sectors = -(-entries * 128 // sector)
    array = bytearray(entries * 128)
    start = first_usable
    for index, (kind, label) in enumerate([(ESP, "esp"), (ROOT, "root-a"), (ROOT, "root-b")]):
        unique = UUID(int=0xABC0000 + index)
        struct.pack_into("<16s16sQQQ", array, index * 128, kind.bytes_le, unique.bytes_le, start, start + 99, READ_ONLY)
        array[index * 128 + 56 : index * 128 + 56 + 2 * len(label)] = label.encode("utf-16-le")
        start += 100
    for lba, other, at in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - array_sectors)):
        header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, lba, other, first_usable,
            sectors - 2 - array_sectors, DISK.bytes_le, at, entries, 128, zlib.crc32(array))  # fmt: skip
        header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
        disk.content[lba * sector : lba * sector + 92] = header
        disk.content[at * sector : at * sector + len(array)] = array
    return disk


def changed(table: Gpt) -> Gpt:
    """Return the table as staging would change it."""
    return table.with_partition(3, unique_guid=NEW, name="root-b-new", attributes=READ_ONLY | 1)


def resealed(disk: MemoryDisk, lba: int) -> None:
    """Make a tampered copy's checksums right again."""
    at = lba * disk.sector_bytes
    array_lba, count, size = struct.unpack_from("<QII", disk.content, at + 72)
    start = array_lba * disk.sector_bytes
    struct.pack_into("<I", disk.content, at + 88, zlib.crc32(disk.content[start : start + count * size]))
    disk.content[at + 16 : at + 20] = bytes(4)
    struct.pack_into("<I", disk.content, at + 16, zlib.crc32(disk.content[at : at + 92]))


def states_at_cuts(before: bytes, disk: MemoryDisk, pick: random.Random) -> list[bytearray]:
    """Return what a cut may leave: all before some flush, and any of the sectors since then."""
    states = []
    durable = bytearray(before)
    waiting: list[tuple[int, bytes]] = []
    for effect in [*disk.effects, None]:
        if effect is not None:
            waiting.append(effect)
            continue
        subsets = [waiting[:count] for count in range(len(waiting) + 1)]
        subsets += [waiting[count:] for count in range(len(waiting))]
        subsets += [[one for one in waiting if pick.random() < 0.5] for _ in range(20)]
        for subset in subsets:
            state = bytearray(durable)
            for offset, piece in subset:
                state[offset : offset + len(piece)] = piece
            states.append(state)
        for offset, piece in waiting:
            durable[offset : offset + len(piece)] = piece
        waiting = []
    return states


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_table_is_read_whole(sector: int) -> None:
    disk = made_by_hand(sector, first_usable=40 if sector == 512 else 6)
    table = disk.table()
    assert (table.primary_ok, table.backup_ok, table.consistent, table.disk_guid) == (True, True, True, DISK)
    assert [(found.number, found.name) for found in table.partitions] == [(1, "esp"), (2, "root-a"), (3, "root-b")]
    second = table.partition(2)
    assert (second.type_guid, second.unique_guid.int, second.attributes) == (ROOT, 0xABC0001, READ_ONLY)
    assert second.offset_bytes == second.first_lba * sector
    assert second.length_bytes == 100 * sector
    assert table.named("root-b") == table.partition(3)
    assert table.identified(UUID(int=0xABC0000)) == table.partition(1)
    assert table.named("state") is table.identified(NEW) is None


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_sector_size_of_an_image_file_is_told_by_its_table(sector: int) -> None:
    disk = made_by_hand(sector, first_usable=64)
    disk.content[sector : sector + 92] = bytes(92)
    table = parse(lambda offset, length: bytes(disk.content[offset : offset + length]), disk.length_bytes)
    assert (table.sector_bytes, table.primary_ok, table.backup_ok) == (sector, False, True)


@pytest.mark.parametrize("lba", [1, 2, 5])
def test_a_damaged_primary_yields_to_the_backup_and_is_mended_first(lba: int) -> None:
    disk = made_by_hand()
    whole = disk.table()
    disk.content[lba * 512 + 20] ^= 0xFF
    table = disk.table()
    assert (table.primary_ok, table.backup_ok) == (False, True)
    assert table.partitions == whole.partitions
    broken = bytes(disk.content)
    assert write_table(disk, table).consistent
    for state in states_at_cuts(broken, disk, random.Random(1)):
        assert MemoryDisk(state).table().partitions == whole.partitions


def test_a_damaged_backup_is_mended() -> None:
    disk = made_by_hand()
    disk.content[-500] ^= 1
    table = disk.table()
    assert (table.primary_ok, table.backup_ok, table.consistent) == (True, False, False)
    mended = write_table(disk, table)
    assert mended.consistent
    assert mended.partitions == table.partitions


def test_a_disk_that_grew_keeps_its_backup_where_the_primary_says() -> None:
    disk = made_by_hand()
    before = disk.length_bytes
    disk.content += bytes(1 << 20)
    table = disk.table()
    assert table.consistent
    write_table(disk, changed(table))
    assert disk.table().backup_lba == before // 512 - 1
    assert not any(disk.content[before:])


def test_only_the_named_entry_changes() -> None:
    table = made_by_hand().table()
    new = changed(table)
    assert new.partitions[:2] == table.partitions[:2]
    third = new.partition(3)
    assert (third.unique_guid, third.name, third.attributes) == (NEW, "root-b-new", READ_ONLY | 1)
    assert (third.first_lba, third.last_lba, third.type_guid) == (2248, 2347, ROOT)
    assert new.with_partition(3, name="root-b").partition(3).unique_guid == NEW
    assert new.with_partition(3, name="").partition(3).name == ""


def test_a_partuuid_that_another_partition_bears_is_never_given_twice() -> None:
    table = made_by_hand().table()
    with pytest.raises(ValueError):
        table.with_partition(3, unique_guid=table.partition(2).unique_guid)
    with pytest.raises(ValueError):
        table.with_partition(3, unique_guid=UUID(int=0))
    with pytest.raises(ValueError):
        table.with_partition(3, name="x" * 37)
    with pytest.raises(EnvironmentFailure):
        table.with_partition(4, name="state")


def test_a_write_that_is_cut_anywhere_leaves_a_valid_primary_that_is_old_or_new() -> None:
    # Linux finds no partition at all behind a damaged primary: see the module.
    for sector, first_usable in ((512, 2048), (4096, 16)):
        disk = made_by_hand(sector, first_usable=first_usable)
        for turn in range(3):
            old = disk.table()
            before = bytes(disk.content)
            new = old.with_partition(3, unique_guid=UUID(int=77 + turn))
            disk.effects.clear()
            written = write_table(disk, new)
            assert written.partitions == new.partitions
            seen = set()
            for state in states_at_cuts(before, disk, random.Random(turn)):
                found = MemoryDisk(state, sector).table()
                assert found.primary_ok
                assert found.partitions in (old.partitions, new.partitions)
                seen.add(found.partitions)
                mended = MemoryDisk(bytearray(state), sector)
                assert write_table(mended, found).consistent
                assert write_table(mended, new.with_partition(3)).partitions == new.partitions
            assert len(seen) == 2


def test_without_room_for_a_second_array_one_copy_is_whole_at_every_cut() -> None:
    disk = made_by_hand(first_usable=34)
    old = disk.table()
    assert old.spare_array_lba is None
    before = bytes(disk.content)
    new = changed(old)
    write_table(disk, new)
    for state in states_at_cuts(before, disk, random.Random(7)):
        assert MemoryDisk(state).table().partitions in (old.partitions, new.partitions)


def test_firmware_in_the_gap_is_left_alone() -> None:
    disk = made_by_hand()
    blob = random.Random(3).randbytes(32 * 512)
    disk.content[34 * 512 : 66 * 512] = blob
    write_table(disk, changed(disk.table()))
    assert disk.content[34 * 512 : 66 * 512] == blob
    assert disk.table().named("root-b-new") is not None


def test_a_table_that_is_there_already_is_not_written_again() -> None:
    disk = made_by_hand()
    write_table(disk, changed(disk.table()))
    disk.effects.clear()
    write_table(disk, changed(disk.table()))
    assert disk.effects == []


def test_a_table_that_was_changed_by_others_meanwhile_is_not_overwritten() -> None:
    disk = made_by_hand()
    stale = changed(disk.table())
    struct.pack_into("<Q", disk.content, 2 * 512 + 2 * 128 + 40, 2300)
    resealed(disk, 1)
    before = bytes(disk.content)
    with pytest.raises(EnvironmentFailure, match="changed by someone else"):
        write_table(disk, stale)
    assert disk.content == before


def test_a_disk_that_forgets_is_found() -> None:
    class Forgetful(MemoryDisk):
        def write(self, offset: int, data: bytes) -> None:
            if offset != 512:
                super().write(offset, data)

    disk = Forgetful(made_by_hand().content)
    with pytest.raises(EnvironmentFailure, match="does not read back"):
        write_table(disk, changed(disk.table()))


@pytest.mark.parametrize(
    ("field_at", "value"),
    [(24, 2), (40, 1), (40, 1 << 60), (48, 1 << 62), (48, 3), (72, 1), (72, 1 << 63), (72, 2040), (80, 0),
     (80, 1 << 31), (84, 64), (84, 256), (8, 0x20000), (12, 91), (12, 1 << 20)],
)  # fmt: skip
def test_a_header_that_lies_with_right_checksums_is_no_header(field_at: int, value: int) -> None:
    disk = made_by_hand()
    honest = disk.table()
    wide = field_at in (24, 40, 48, 72)
    struct.pack_into("<Q" if wide else "<I", disk.content, 512 + field_at, value)
    struct.pack_into("<I", disk.content, 512 + 16, 0)
    struct.pack_into("<I", disk.content, 512 + 16, zlib.crc32(disk.content[512 : 512 + 92]))
    table = disk.table()
    assert (table.primary_ok, table.backup_ok) == (False, True)
    assert table.partitions == honest.partitions


@pytest.mark.parametrize(
    ("entry", "first", "last", "why"),
    [
        (2, 2100, 2347, "partitions 2 and 3 overlap|partitions 1 and 3 overlap"),
        (2, 2348, 2347, "partition 3 lies at sectors"),
        (1, 10, 2100, "partition 2 lies at sectors"),
        (2, 2248, 1 << 40, "partition 3 lies at sectors"),
    ],
)
def test_impossible_partitions_are_refused_by_name(entry: int, first: int, last: int, why: str) -> None:
    disk = made_by_hand()
    struct.pack_into("<QQ", disk.content, 2 * 512 + entry * 128 + 32, first, last)
    resealed(disk, 1)
    with pytest.raises(EnvironmentFailure, match=why) as caught:
        disk.table()
    assert caught.value.reason == "gpt-invalid"


def test_two_partitions_of_one_partuuid_are_refused() -> None:
    disk = made_by_hand()
    disk.content[1024 + 256 + 16 : 1024 + 256 + 32] = disk.content[1024 + 128 + 16 : 1024 + 128 + 32]
    resealed(disk, 1)
    with pytest.raises(EnvironmentFailure, match="partitions 2 and 3 both have the PARTUUID"):
        disk.table()


def test_two_partitions_of_one_label_are_ambiguous() -> None:
    table = made_by_hand().table().with_partition(3, name="root-a")
    with pytest.raises(EnvironmentFailure, match="partitions 2 and 3 are both labelled 'root-a'"):
        table.named("root-a")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_bytes_that_are_overwritten_at_random_never_surprise_the_parser(data: st.DataObject) -> None:
    disk = made_by_hand(first_usable=80)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(512, 512 + 92), st.integers(1024, 1024 + 512), st.integers(1, 92)))
        at = at if at >= 512 else len(disk.content) - 512 + at
        piece = data.draw(st.binary(min_size=1, max_size=16))
        disk.content[at : min(at + len(piece), len(disk.content))] = piece[: len(disk.content) - at]
    if data.draw(st.booleans()):
        count, size = struct.unpack_from("<II", disk.content, 512 + 80)
        array = struct.unpack_from("<Q", disk.content, 512 + 72)[0]
        if array < 1000 and count * size < 1 << 20:
            resealed(disk, 1)
    refused, table = False, None
    try:
        table = disk.table()
    except EnvironmentFailure as error:
        refused = error.reason == "gpt-invalid" and bool(error.mend)
    assert refused or table is not None
    for partition in table.partitions if table else ():
        assert 0 < partition.offset_bytes < partition.offset_bytes + partition.length_bytes < disk.length_bytes


@given(raw=st.binary(max_size=20_000))
def test_garbage_is_no_table(raw: bytes) -> None:
    with pytest.raises(EnvironmentFailure):
        parse(lambda offset, length: raw[offset : offset + length], len(raw))


def sfdisk_image(folder: Path) -> Path:
    """Return a disk image with sfdisk's table."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    script = (
        f"label: gpt\nlabel-id: {DISK}\n"
        f"type={ESP}, size=8MiB, name=esp\n"
        f'type={ROOT}, size=16MiB, name=root-a, attrs="GUID:60"\n'
        f'type={ROOT}, size=16MiB, name=root-b, attrs="GUID:60"\n'
        "type=4d21b016-b534-45c2-a9fb-5c16e091fd2d, name=state\n"
    )
    run(["sfdisk", "--quiet", image], stdin=script.encode())
    return image


@needs_sfdisk
def test_sfdisk_and_we_read_the_same_before_and_after_we_write(tmp_path: Path) -> None:
    image = sfdisk_image(tmp_path)
    for turn in range(3):
        with WholeDisk(image, writable=True) as disk:
            table = parse(disk.read, disk.length_bytes, disk.sector_bytes)
            assert table.consistent
            theirs = json.loads(run(["sfdisk", "--json", image]).stdout)["partitiontable"]
            assert theirs["id"].lower() == str(table.disk_guid)
            assert [
                (one["start"], one["size"], one["type"].lower(), one["uuid"].lower(), one["name"])
                for one in theirs["partitions"]
            ] == [
                (one.first_lba, one.last_lba - one.first_lba + 1, str(one.type_guid), str(one.unique_guid), one.name)
                for one in table.partitions
            ]
            assert [one.get("attrs", "") for one in theirs["partitions"]] == ["", "GUID:60", "GUID:60", ""]
            write_table(disk, table.with_partition(3, unique_guid=UUID(int=0x1000 + turn), name=f"root-b{turn}"))
        checked = run(["sfdisk", "--verify", image])
        assert b"No errors detected" in checked.stdout
        assert checked.stderr == b""


@needs_sfdisk
@needs_sgdisk
def test_sgdisk_finds_nothing_to_complain_about_in_what_we_wrote(tmp_path: Path) -> None:
    image = sfdisk_image(tmp_path)
    for turn in range(2):
        with WholeDisk(image, writable=True) as disk:
            table = parse(disk.read, disk.length_bytes)
            write_table(disk, table.with_partition(3, unique_guid=UUID(int=0x1000 + turn)))
        shown = run(["sgdisk", "--verify", "--info=3", image]).stdout.decode()
        assert "No problems found" in shown
        assert str(UUID(int=0x1000 + turn)).upper() in shown


@needs_sfdisk
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=18))
def test_labels_in_any_script_survive(tmp_path: Path, name: str) -> None:
    image = sfdisk_image(tmp_path)
    with WholeDisk(image, writable=True) as disk:
        table = parse(disk.read, disk.length_bytes)
        write_table(disk, table.with_partition(4, name=name))
        assert parse(disk.read, disk.length_bytes).partition(4).name == name
