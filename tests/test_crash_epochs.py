"""The cuts that the replay of a recorded update tries, and the log and the medium below them."""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.crash.epochs import Cut, Depth, Epoch, Kept, Kind, cuts, kept, split, whole
from integration.crash.medium import Medium, Region, split_disk
from integration.crash.replay import each_cut
from integration.crash.writelog import MAGIC, Record, WriteLog
from updater.errors import EnvironmentFailure

SECTOR = 512


def entry(sector: int, sectors: int, flags: int, content: bytes = b"", *, tells_length: bool = True) -> bytes:
    head = struct.pack("<QQQQ", sector, sectors, flags, len(content) if tells_length else 0)
    return head.ljust(SECTOR, b"\0") + content


def log_of(path: Path, *entries: bytes, count: int | None = None) -> Path:
    head = struct.pack("<QQQI", MAGIC, 1, len(entries) if count is None else count, SECTOR)
    path.write_bytes(head.ljust(SECTOR, b"\0") + b"".join(entries))
    return path


def one(byte: int) -> bytes:
    return bytes([byte]) * SECTOR


def test_a_log_gives_writes_flushes_discards_and_forced_writes(tmp_path: Path) -> None:
    path = log_of(
        tmp_path / "log",
        entry(8, 1, 0, one(1)),
        entry(0, 0, 1),
        entry(16, 4, 4),
        entry(32, 1, 8, b"mark"),
        # QEMU leaves the length of a write's content at 0.
        entry(24, 1, 2, one(2), tells_length=False),
        entry(0, 0, 1),
    )
    # A mark's text fills a whole sector.
    content = path.read_bytes().replace(b"mark", b"mark".ljust(SECTOR, b"\0"))
    path.write_bytes(content)
    with WriteLog(path) as log:
        records = list(log.records())
        assert [(r.offset, r.length_bytes, r.flushes, r.forced) for r in records] == [
            (8 * SECTOR, SECTOR, False, False),
            (0, 0, True, False),
            (16 * SECTOR, 4 * SECTOR, False, False),
            (24 * SECTOR, SECTOR, False, True),
            (0, 0, True, False),
        ]
        assert [log.content(r) for r in records if r.length_bytes] == [one(1), bytes(4 * SECTOR), one(2)]


def test_a_log_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log", entry(8, 1, 0, one(1)), count=2)
    with WriteLog(path) as log, pytest.raises(EnvironmentFailure, match="entry 1"):
        list(log.records())
    path.write_bytes(b"x" * 2 * SECTOR)
    with pytest.raises(EnvironmentFailure, match="no log of writes"):
        WriteLog(path)


STORE_AT = 1 << 30


def write(number: int, *, sectors: int = 1, flushes: bool = False, forced: bool = False) -> Record:
    return Record(number, number * 64 * SECTOR, sectors * SECTOR, 0, flushes, forced)


def to_store(number: int) -> Record:
    return Record(number, STORE_AT + number * SECTOR, SECTOR, 0, flushes=False, forced=False)


def flush(number: int) -> Record:
    return Record(number, 0, 0, None, flushes=True, forced=False)


def test_epochs_end_at_flushes_and_forced_writes() -> None:
    records = [
        flush(0),
        write(1),
        write(2),
        flush(3),
        flush(4),
        write(5, forced=True),
        write(6, flushes=True),
        write(7),
    ]
    found = [([w.number for w in epoch.writes], epoch.ends_with_flush) for epoch in split(records, STORE_AT)]
    assert found == [([1, 2], True), ([5], True), ([6, 7], False)]


def numbers(epoch: Epoch, depth: Depth) -> dict[str, list[int]]:
    return {str(cut): [item.write.number for item in kept(epoch, cut)] for cut in cuts(epoch, depth)}


def test_each_write_is_dropped_once_and_each_prefix_is_tried() -> None:
    epoch = Epoch(0, (write(1), write(2), write(3)), STORE_AT, ends_with_flush=True)
    assert numbers(epoch, Depth(subsets=0)) == {
        "without write 1": [2, 3],
        "without write 2": [1, 3],
        "without write 3": [1, 2],
        "up to write 1": [1],
        "up to write 2": [1, 2],
        "the end": [1, 2, 3],
    }


def test_the_store_is_cut_at_each_of_its_writes_with_and_without_what_the_disk_has_not_flushed() -> None:
    epoch = Epoch(0, (to_store(1), write(2), to_store(3), write(4)), STORE_AT, ends_with_flush=True)
    assert numbers(epoch, Depth(subsets=0)) == {
        "only variables up to write 3": [1, 3],
        "variables up to write 1": [1],
        "up to write 2": [1, 2],
        "variables up to write 3": [1, 2, 3],
        "without write 2": [1, 3, 4],
        "without write 4": [1, 2, 3],
        "the end": [1, 2, 3, 4],
    }


def test_what_the_store_was_told_survives_every_seeded_choice() -> None:
    epoch = Epoch(3, (write(1), to_store(2), write(3), to_store(4), write(5)), STORE_AT, ends_with_flush=True)
    for cut in (Cut(Kind.SEED, seed) for seed in range(8)):
        assert {2, 4} <= {item.write.number for item in kept(epoch, cut)}


def test_seeded_cuts_tear_at_sectors_and_are_the_same_every_time() -> None:
    epoch = Epoch(7, tuple(write(n, sectors=8) for n in range(40)), STORE_AT, ends_with_flush=True)
    seeds = [cut for cut in cuts(epoch, Depth(3, 0)) if cut.kind is Kind.SEED]
    assert len(seeds) == 3
    found = [kept(epoch, cut) for cut in seeds]
    assert found == [kept(epoch, cut) for cut in seeds]
    torn = [item for choice in found for item in choice if item.ranges != ((0, item.write.length_bytes),)]
    assert torn
    for item in torn:
        ((start, length),) = item.ranges
        assert start % SECTOR == length % SECTOR == 0
        assert 0 < length < item.write.length_bytes


PLACES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_the_walk_leaves_the_medium_as_each_cut_says(places: list[tuple[int, int]]) -> None:
    """Writes may overlap; from sector 24 on lies the store."""
    records = tuple(
        Record(n, start * SECTOR, length * SECTOR, 0, flushes=False, forced=False)
        for n, (start, length) in enumerate(places)
        if start + length <= 24 or start >= 24
    )
    epoch = Epoch(0, records, 24 * SECTOR, ends_with_flush=True)
    with TemporaryDirectory() as folder:
        disk = Path(folder) / "disk.raw"
        disk.write_bytes(bytes(range(1, 33)) * (SECTOR // 32) * 32)
        parts = (Region("low", 0, 11 * SECTOR), Region("high", 11 * SECTOR, 21 * SECTOR))
        split_disk(disk, Path(folder) / "walked", parts)
        split_disk(disk, Path(folder) / "plain", parts)
        with Medium(Path(folder) / "walked", parts) as walked, Medium(Path(folder) / "plain", parts) as plain:
            seen = []
            for cut in each_cut(walked, epoch, Depth(2), stamped):
                undo = plain.keep(kept(epoch, cut), stamped)
                assert walked.read(0, 32 * SECTOR) == plain.read(0, 32 * SECTOR), str(cut)
                assert walked.prints == plain.prints, str(cut)
                plain.take_back(undo)
                seen.append(cut)
            assert sorted(map(str, seen)) == sorted(map(str, cuts(epoch, Depth(2))))


def stamped(record: Record) -> bytes:
    return bytes([100 + record.number]) * record.length_bytes


def test_a_medium_takes_writes_back_and_knows_equal_states(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(range(256)) * 64)
    parts = (Region("low", 0, 4608), Region("high", 4608, 12288 - 4608), Region("store", 12288, 4096))
    split_disk(disk, tmp_path / "medium", parts)
    item = Record(0, 4096, 1024, 0, flushes=False, forced=False)
    with Medium(tmp_path / "medium", parts) as medium:
        before = dict(medium.prints)
        undo = medium.keep([whole(item)], lambda _: b"x" * 1024)
        assert medium.read(4090, 1040) == disk.read_bytes()[4090:4096] + b"x" * 1024 + disk.read_bytes()[5120:5130]
        assert [name for name in before if medium.prints[name] != before[name]] == ["low", "high"]
        medium.take_back(undo)
        assert medium.prints == before
        medium.keep([Kept(item, ((512, 512),))], lambda _: b"y" * 1024)
        assert medium.prints["low"] == before["low"]
        frozen, store = medium.freeze(tmp_path / "frozen", 12288, 4096)
    content = disk.read_bytes()
    assert frozen.read_bytes() == content[:4608] + b"y" * 512 + content[5120:12288]
    assert store.read_bytes() == content[12288:]
