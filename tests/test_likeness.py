"""Which old blocks are taken for like new ones."""

from __future__ import annotations

import random

from updater.manifest import BLOCK_BYTES
from updater.release.likeness import Likeness

OLD = random.Random(4).randbytes(600 * BLOCK_BYTES)


def resembling(new: bytes, most: int, indexed: range = range(600)) -> list[int]:
    likeness = Likeness(memoryview(OLD), indexed)
    return likeness.resembling(memoryview(new), range(len(new) // BLOCK_BYTES), most)


def test_shifted_content_is_found_where_it_stood() -> None:
    new = OLD[300 * BLOCK_BYTES + 77 : 310 * BLOCK_BYTES + 77]
    assert set(resembling(new, 14)) >= set(range(300, 311))


def test_blocks_around_a_likeness_count_before_those_far_away() -> None:
    new = OLD[300 * BLOCK_BYTES : 302 * BLOCK_BYTES]
    assert set(range(285, 317)) <= set(resembling(new, 41))
    everything = resembling(new, 600)
    assert everything == list(range(everything[0], everything[-1] + 1))
    assert 250 < everything[0] < everything[-1] < 350


def test_a_window_that_few_blocks_hold_tells_more() -> None:
    rare, common = random.Random(1).randbytes(BLOCK_BYTES), random.Random(2).randbytes(BLOCK_BYTES)
    noise = random.Random(3).randbytes(200 * BLOCK_BYTES)
    old = rare + noise + common * 6
    likeness = Likeness(memoryview(old), range(len(old) // BLOCK_BYTES))
    assert likeness.resembling(memoryview(rare + common), range(2), 1) == [0]


def test_blocks_that_are_not_indexed_are_never_named() -> None:
    new = OLD[300 * BLOCK_BYTES : 320 * BLOCK_BYTES]
    assert set(resembling(new, 600, range(310, 330))) <= set(range(310, 330))


def test_nothing_resembles_what_is_new() -> None:
    assert resembling(random.Random(8).randbytes(20 * BLOCK_BYTES), 600) == []
    assert resembling(bytes(20 * BLOCK_BYTES), 600) == []
    assert Likeness(memoryview(OLD), []).resembling(memoryview(OLD), range(3), 5) == []
