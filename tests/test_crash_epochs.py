"""The cuts that the replay of a recorded update tries, and the log and the medium below them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from integration.crash.epochs import Epoch, Kept, cuts, split, whole
from integration.crash.medium import Medium, Region, split_disk
from integration.crash.writelog import MAGIC, Record, WriteLog
from updater.errors import EnvironmentFailure

SECTOR = 512


def entry(sector: int, sectors: int, flags: int, content: bytes = b"") -> bytes:
    head = struct.pack("<QQQQ", sector, sectors, flags, len(content))
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
        entry(24, 1, 2, one(2)),
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
        ]
        assert [log.content(r) for r in records if r.length_bytes] == [one(1), bytes(4 * SECTOR), one(2)]


def test_a_log_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log", entry(8, 1, 0, one(1)), count=2)
    with WriteLog(path) as log, pytest.raises(EnvironmentFailure, match="entry 1"):
        list(log.records())
    path.write_bytes(b"x" * 2 * SECTOR)
    with pytest.raises(EnvironmentFailure, match="no log of writes"):
        WriteLog(path)


def write(number: int, *, sectors: int = 1, flushes: bool = False, forced: bool = False) -> Record:
    return Record(number, number * 64 * SECTOR, sectors * SECTOR, 0, flushes, forced)


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
    found = [([w.number for w in epoch.writes], epoch.ends_with_flush) for epoch in split(records)]
    assert found == [([1, 2], True), ([5], True), ([6, 7], False)]


def test_each_write_is_dropped_once_and_each_prefix_is_tried() -> None:
    epoch = Epoch(0, (write(1), write(2), write(3)), ends_with_flush=True)
    kept = {cut.how: [item.write.number for item in cut.kept] for cut in cuts(epoch, subsets=0)}
    assert kept == {
        "without write 1": [2, 3],
        "without write 2": [1, 3],
        "without write 3": [1, 2],
        "up to write 1": [1],
        "up to write 2": [1, 2],
    }


def test_seeded_cuts_tear_at_sectors_and_are_the_same_every_time() -> None:
    epoch = Epoch(7, tuple(write(n, sectors=8) for n in range(40)), ends_with_flush=True)
    found = list(cuts(epoch, subsets=3, most_dropped=0))
    assert found == list(cuts(epoch, subsets=3, most_dropped=0))
    assert len(found) == 3
    torn = [item for cut in found for item in cut.kept if item.ranges != ((0, item.write.length_bytes),)]
    assert torn
    for item in torn:
        ((start, length),) = item.ranges
        assert start % SECTOR == length % SECTOR == 0
        assert 0 < length < item.write.length_bytes


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
