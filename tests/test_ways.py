"""The choice among ways: bytes first, caps, bars, and the reasons that are given."""

from __future__ import annotations

import pytest

from updater.errors import Refused
from updater.ways import Cost, Way, choose_way, worth_working_out

DELTA = Cost(Way.DELTA, 2_000, 900_000, 2, 90_000)
REUSE = Cost(Way.REUSE, 28_000, 900_000, 9, 40_000)
FULL = Cost(Way.FULL, 160_000, 900_000, 21, 60_000)
PLAIN = Cost(Way.PLAIN, 700_000, 900_000, 23, 24_000)
ALL = [DELTA, REUSE, FULL, PLAIN]


def test_the_way_that_fetches_least_is_taken_and_the_others_follow() -> None:
    choice = choose_way(ALL)
    assert choice.order == (Way.DELTA, Way.REUSE, Way.FULL, Way.PLAIN)
    assert choice.why.startswith("reuse would fetch 28000 bytes, not 2000; full would fetch")
    small = Cost(Way.FULL, 1_000, 900_000, 1, 60_000)
    assert choose_way([DELTA, REUSE, small, PLAIN]).order[0] is Way.FULL


def test_equal_ways_stand_in_their_usual_order() -> None:
    equal = [Cost(way, 5) for way in reversed(Way)]
    assert choose_way(equal).order == tuple(Way)


def test_barred_and_absent_ways_are_left_out_and_named() -> None:
    barred = Cost(Way.DELTA, barred="its operation 3 is corrupt")
    absent = Cost(Way.REUSE, absent="no packs are published")
    choice = choose_way([barred, absent, FULL, PLAIN])
    assert choice.order == (Way.FULL, Way.PLAIN)
    assert "delta: its operation 3 is corrupt" in choice.why
    assert "reuse: no packs are published" in choice.why
    alone = choose_way([barred, absent, Cost(Way.FULL, absent="no frames are published"), PLAIN])
    assert alone.why.startswith("it is the only one")


def test_policy_caps_the_bytes() -> None:
    assert choose_way(ALL, most_bytes=30_000).order == (Way.DELTA, Way.REUSE)
    assert choose_way(ALL, most_bytes=2_000).order == (Way.DELTA,)
    with pytest.raises(Refused) as caught:
        choose_way(ALL, most_bytes=1_999)
    assert caught.value.reason == "download-cap"
    assert "2000 bytes" in caught.value.message
    assert "1999" in caught.value.message
    assert choose_way(ALL, most_bytes=30_000, beside_bytes=2_000).order == (Way.DELTA, Way.REUSE)
    assert choose_way(ALL, most_bytes=30_000, beside_bytes=2_001).order == (Way.DELTA,)
    with pytest.raises(Refused) as caught:
        choose_way(ALL, most_bytes=2_500, beside_bytes=501)
    assert "2000 bytes, the least of all, with 501 of other files, and policy allows 2500" in caught.value.message


def test_a_way_that_needs_too_much_memory_is_left_out() -> None:
    choice = choose_way(ALL, most_memory_bytes=50_000)
    assert choice.order == (Way.REUSE, Way.PLAIN)
    assert "delta: it needs 90000 bytes of memory, and 50000 can be spared" in choice.why
    with pytest.raises(Refused) as caught:
        choose_way(ALL, most_memory_bytes=10)
    assert caught.value.reason == "no-way"


def test_reuse_is_worked_out_only_where_its_indexes_leave_it_a_chance() -> None:
    assert not worth_working_out([DELTA, FULL, PLAIN], 2_000)
    assert worth_working_out([DELTA, FULL, PLAIN], 1_999)
    assert worth_working_out([Cost(Way.DELTA, barred="corrupt"), FULL, PLAIN], 2_000)
    assert worth_working_out([], 2_000)
