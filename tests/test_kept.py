"""Bytes that outlive a kill: what is found again, what is let go, and that nothing in there is believed."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile_server import Handler, hostile
from updater.errors import NetworkFailure
from updater.fetch import Fetcher, Retries, Timeouts
from updater.kept import Kept
from updater.prefetch import Part, fetch_spans, spans, stream_whole

CONTENT = random.Random(11).randbytes(600_000)
KIB = 1 << 10


def parts(length: int = 50_000) -> list[Part]:
    return [
        Part("x", at, length, hashlib.sha256(CONTENT[at : at + length]).digest())
        for at in range(0, len(CONTENT), length)
    ]


def fetcher(*addresses: str, kept: Kept | None = None) -> Fetcher:
    made = Fetcher(
        addresses, sleep=lambda s: None, timeouts=Timeouts(connect_s=60, stall_s=60), retries=Retries(attempts=1)
    )
    made.kept = kept
    return made


def good(handler: Handler) -> None:
    handler.serve(CONTENT)


def fetched(source: Fetcher) -> bytes:
    return b"".join(bytes(content) for _, content in fetch_spans(source, spans(parts(), 200_000)))


def gaps(kept: Kept, offset: int, length: int) -> tuple[bytes, list[tuple[int, int]]]:
    content = bytearray(length)
    found = kept.copy("x", offset, content)
    return bytes(content), found


def test_what_was_added_is_found_again_by_another_process(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    for at in range(1000, 5000, 1000):
        kept.add("x", at, CONTENT[at : at + 1000], 1000)
    kept.add("x", 9000, CONTENT[9000:9500], 1000)
    again = Kept(tmp_path / "kept")
    content, found = gaps(again, 0, 10_000)
    assert found == [(0, 1000), (5000, 9000), (9500, 10_000)]
    assert content[1000:5000] == CONTENT[1000:5000]
    assert content[9000:9500] == CONTENT[9000:9500]
    assert gaps(again, 1500, 3000) == (CONTENT[1500:4500], [])
    assert again.copy("y", 1500, bytearray(10)) == [(0, 10)]


def test_a_transfer_that_goes_on_joins_what_was_kept(tmp_path: Path) -> None:
    Kept(tmp_path).add("x", 0, CONTENT[:1000], 1000)
    again = Kept(tmp_path)
    again.add("x", 1000, CONTENT[1000:3000], 1000)
    assert b"".join(again.prefix("x")) == CONTENT[:3000]
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_missing_bytes_are_asked_for(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.add("x", 0, CONTENT[:70_001], 50_000)
    kept.add("x", 200_000, CONTENT[200_000:400_000], 50_000)
    with hostile(good) as server:
        source = fetcher(server.url, kept=kept)
        assert fetched(source) == CONTENT
        assert sorted(seen.headers["Range"] for seen in server.seen) == ["bytes=400000-599999", "bytes=70001-199999"]
        assert source.counters.bytes_fetched == len(CONTENT) - 270_001
        # All of it is kept by now.
        assert fetched(fetcher(server.url, kept=Kept(tmp_path))) == CONTENT
        assert len(server.seen) == 2


def test_kept_bytes_that_rotted_are_fetched_again_and_no_mirror_is_blamed(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.add("x", 0, CONTENT[:110_000], 50_000)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[60_000] ^= 1
    content[105_000] ^= 1
    file.write_bytes(content)
    with hostile(good) as server:
        source = fetcher(server.url, kept=Kept(tmp_path))
        assert fetched(source) == CONTENT
        # The rest of the span, and the two parts that were wrong.
        assert source.counters.bytes_fetched == len(CONTENT) - 110_000 + 100_000
        assert fetched(fetcher(server.url, kept=Kept(tmp_path))) == CONTENT


def test_one_mirror_answers_for_its_own_bytes_only(tmp_path: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[10] ^= 1

    def breaks(handler: Handler) -> None:
        handler.serve(bytes(wrong), cut=30_000)

    with hostile(breaks) as liar, hostile(good) as honest:
        source = fetcher(liar.url, honest.url, kept=Kept(tmp_path))
        assert fetched(source) == CONTENT
        assert source.mirrors == [f"{liar.url}/", f"{honest.url}/"]
    with hostile(breaks) as liar, hostile(good) as honest:
        assert fetched(fetcher(liar.url, honest.url)) == CONTENT


def test_a_file_proven_as_a_whole_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with hostile(lambda handler: handler.serve(CONTENT, cut=200_000)) as server:
        source = fetcher(server.url, kept=Kept(tmp_path))
        with pytest.raises(NetworkFailure):
            list(stream_whole(source, "x", len(CONTENT)))
    with hostile(good) as server:
        source = fetcher(server.url, kept=Kept(tmp_path))
        assert b"".join(stream_whole(source, "x", len(CONTENT))) == CONTENT
        assert [seen.headers["Range"] for seen in server.seen] == ["bytes=200000-599999"]


def test_pieces_of_one_frame_are_let_go_together_when_it_is_used_whole(tmp_path: Path) -> None:
    kept = Kept(tmp_path, settle_bytes=100_000)
    pieces = [replace(part, unit_bytes=300_000, ends_unit=number % 6 == 5) for number, part in enumerate(parts(50_000))]
    settled: list[int] = []
    taken = 0
    with hostile(good) as server, kept.until_durable(lambda: settled.append(taken)):
        for _ in fetch_spans(fetcher(server.url, kept=kept), spans(pieces, 200_000)):
            taken += 1
    assert set(settled) == {6, 12}
    # The frame before the last settling is gone, the pieces of the last one wait for the next.
    assert b"".join(Kept(tmp_path).prefix("x")) == b""


def test_used_parts_go_when_what_was_made_of_them_is_durable(tmp_path: Path) -> None:
    kept = Kept(tmp_path, settle_bytes=100_000)
    settled: list[int] = []
    with hostile(good) as server, kept.until_durable(lambda: settled.append(len(list(tmp_path.iterdir())))):
        fetched(fetcher(server.url, kept=kept))
    # Each time the parts of the time before go: the last group of blocks may hang between two parts.
    assert len(settled) == 6
    assert 100_000 <= sum(path.stat().st_size for path in tmp_path.iterdir()) < 300_000
    kept.made_durable()
    assert list(tmp_path.iterdir()) == []


def test_tables_are_kept_until_the_end(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", settle_bytes=1)
    with hostile(good) as server:
        fetched(fetcher(server.url, kept=kept))
    kept.made_durable()
    assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) == len(CONTENT)
    kept.clear()
    assert not (tmp_path / "kept").exists()
    kept.add("x", 0, b"late", 1)
    assert not (tmp_path / "kept").exists()


def test_no_more_than_one_part_is_ever_unsynced(tmp_path: Path) -> None:
    synced: list[int] = []
    kept = Kept(tmp_path, sync=lambda handle: synced.append(os.fstat(handle).st_size))
    for at in range(0, 600_000, 100_000):
        kept.add("x", at, CONTENT[at : at + 100_000], 300_000)
    assert synced == [300_000, 600_000]
    for at in range(0, 600_000, 100_000):
        kept.add("y", at, CONTENT[at : at + 100_000], 1)
    assert synced[2:] == [300_000, 600_000]


def test_a_folder_that_fails_costs_nothing_but_the_memory_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = Kept(tmp_path / "file" / "kept")
    with hostile(good) as server:
        assert fetched(fetcher(server.url, kept=kept)) == CONTENT

    def fails(handle: int) -> None:
        raise OSError(28, "No space left on device")

    kept = Kept(tmp_path / "kept", sync=fails)
    with hostile(good) as server:
        assert fetched(fetcher(server.url, kept=kept)) == CONTENT


def test_room_that_others_need_is_left_to_them(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", spare_bytes=1 << 60)
    with hostile(good) as server:
        assert fetched(fetcher(server.url, kept=kept)) == CONTENT
    assert list((tmp_path / "kept").iterdir()) == []


def test_files_that_are_none_of_ours_go(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    Kept(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_local_folder_is_read_again_rather_than_copied(tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "x").write_bytes(CONTENT)
    assert fetched(fetcher(str(tmp_path / "stick"), kept=Kept(tmp_path / "kept"))) == CONTENT
    assert list((tmp_path / "kept").iterdir()) == []
