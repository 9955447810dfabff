"""Filling a slot: hostile mirrors, cuts at any point, resumption, odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disks import Cut, MemoryBlocks, empty_slot, image_of, root_of, slot_of
from updater import verity, writer
from updater.errors import EnvironmentFailure, NetworkFailure, SlotDamaged, Untrusted
from updater.manifest import BLOCK_BYTES, Root
from updater.writer import Written, fill_slot

CHUNK = 37_000  # on purpose no multiple of anything


class Mirror:
    """A source in memory that can serve wrong bytes, stop short, or run over."""

    name = "https://mirror.example"

    def __init__(self, image: bytes, tree: bytes) -> None:
        """Serve an image and its tree."""
        self.image = bytearray(image)
        self.trunk = bytearray(tree)
        self.asked: list[tuple[str, int, int]] = []
        self.chunks_left: int | None = None
        self.cut: Callable[[bytes], bytes] = lambda body: body
        self.closed = 0

    def tree(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range of the tree."""
        return self._serve("tree", self.trunk, offset, length)

    def data(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range of the image."""
        return self._serve("data", self.image, offset, length)

    def _serve(self, what: str, content: bytearray, offset: int, length: int) -> Iterator[bytes]:
        self.asked.append((what, offset, length))
        body = self.cut(bytes(content[offset : offset + length]))
        try:
            for at in range(0, len(body), CHUNK):
                if self.chunks_left is not None:
                    if not self.chunks_left:
                        raise NetworkFailure("the mirror is gone", reason="reset")
                    self.chunks_left -= 1
                yield body[at : at + CHUNK]
        finally:
            self.closed += 1


def assert_holds(data: MemoryBlocks, hashes: MemoryBlocks, image: bytes, root: Root, tree: bytes) -> None:
    """Assert that a slot holds an image whole."""
    assert data.content[: len(image)] == image
    assert hashes.content[: BLOCK_BYTES + len(tree)] == verity.superblock(root) + tree


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 1000, 16385])
def test_an_empty_slot_holds_the_image_afterwards(blocks: int) -> None:
    image = image_of(blocks)
    root, tree = root_of(image)
    data, hashes = empty_slot(root, spare_blocks=5)
    mirror = Mirror(image, tree)
    done = fill_slot(mirror, data, hashes, root)
    assert_holds(data, hashes, image, root, tree)
    assert done.fetched_bytes == len(image) + len(tree)
    assert done.written_bytes == len(image) + len(tree) + BLOCK_BYTES
    assert (done.kept_bytes, done.zeroed_bytes) == (0, 0)
    assert mirror.closed == len(mirror.asked) == done.requests
    assert data.flushes
    assert hashes.flushes
    assert not any(data.content[len(image) :])


def test_requests_are_few_and_large() -> None:
    image = image_of(16385)
    root, tree = root_of(image)
    mirror = Mirror(image, tree)
    fill_slot(mirror, *empty_slot(root), root)
    lengths = [length for what, _, length in mirror.asked if what == "data"]
    assert lengths == [32 << 20, 32 << 20, BLOCK_BYTES]
    assert len(mirror.asked) == len(lengths) + 3


def test_a_slot_that_holds_the_image_is_read_only() -> None:
    image = image_of(700)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    mirror = Mirror(image, tree)
    done = fill_slot(mirror, data, hashes, root)
    assert done == Written(0, 0, len(image) + len(tree) + BLOCK_BYTES, 0, 0)
    assert mirror.asked == []
    assert data.writes == hashes.writes == []


def test_only_blocks_that_differ_are_written_and_near_ones_share_a_request() -> None:
    image = image_of(2000)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    for block in (3, 20, 1500):
        data.content[block * BLOCK_BYTES + 1] ^= 1
    mirror = Mirror(image, tree)
    done = fill_slot(mirror, data, hashes, root)
    assert data.writes == [(block * BLOCK_BYTES, BLOCK_BYTES) for block in (3, 20, 1500)]
    assert mirror.asked == [
        ("data", 3 * BLOCK_BYTES, 18 * BLOCK_BYTES),
        ("data", 1500 * BLOCK_BYTES, BLOCK_BYTES),
    ]
    assert done.written_bytes == 3 * BLOCK_BYTES
    assert_holds(data, hashes, image, root, tree)


def test_zero_blocks_are_never_fetched() -> None:
    image = image_of(3000, zero_share=0.5)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    data.content[:] = b"\xee" * len(data.content)
    hollow = bytes(400 * BLOCK_BYTES)
    image = image[: 1000 * BLOCK_BYTES] + hollow + image[1400 * BLOCK_BYTES :]
    root, tree = root_of(image)
    mirror = Mirror(image, tree)
    done = fill_slot(mirror, data, hashes, root)
    assert_holds(data, hashes, image, root, tree)
    assert done.zeroed_bytes >= len(hollow)
    asked = [(offset, offset + length) for what, offset, length in mirror.asked if what == "data"]
    middle = 1200 * BLOCK_BYTES
    assert not any(start <= middle < end for start, end in asked)


@settings(max_examples=80, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), where=st.sampled_from(["tree", "data"]))
def test_a_wrong_byte_anywhere_is_refused_and_never_written(share: float, flip: int, where: str) -> None:
    image = image_of(600)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    mirror = Mirror(image, tree)
    served = mirror.trunk if where == "tree" else mirror.image
    at = int(share * len(served))
    served[at] ^= flip
    with pytest.raises(Untrusted, match=r"https://mirror\.example") as caught:
        fill_slot(mirror, data, hashes, root)
    assert caught.value.reason == "block-mismatch"
    assert f"byte {at - at % BLOCK_BYTES} of" in caught.value.message
    for blocks, true in ((data, image), (hashes, verity.superblock(root) + tree)):
        for offset, length in blocks.writes:
            assert blocks.content[offset : offset + length] == true[offset : offset + length]


def test_after_a_hostile_mirror_an_honest_one_serves_only_the_rest() -> None:
    image = image_of(4000)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    hostile = Mirror(image, tree)
    hostile.image[2500 * BLOCK_BYTES] ^= 1
    with pytest.raises(Untrusted):
        fill_slot(hostile, data, hashes, root)
    honest = Mirror(image, tree)
    done = fill_slot(honest, data, hashes, root)
    assert_holds(data, hashes, image, root, tree)
    assert done.kept_bytes >= 2499 * BLOCK_BYTES
    assert {what for what, _, _ in honest.asked} == {"data"}


@pytest.mark.parametrize("shorter_by", [1, BLOCK_BYTES, 100_000])
def test_a_short_body_is_a_network_failure_and_what_came_is_kept(shorter_by: int) -> None:
    image = image_of(600)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    mirror = Mirror(image, tree)
    mirror.cut = lambda body: body[:-shorter_by] if len(body) == len(image) else body
    with pytest.raises(NetworkFailure) as caught:
        fill_slot(mirror, data, hashes, root)
    assert caught.value.reason == "short-body"
    whole = (len(image) - shorter_by) // BLOCK_BYTES * BLOCK_BYTES
    assert data.content[:whole] == image[:whole]
    mirror.cut = lambda body: body
    done = fill_slot(mirror, data, hashes, root)
    assert done.fetched_bytes == len(image) - whole


def test_a_body_longer_than_asked_is_refused() -> None:
    image = image_of(600)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    mirror = Mirror(image, tree)
    mirror.cut = lambda body: body + bytes(50_000_000)
    with pytest.raises(NetworkFailure) as caught:
        fill_slot(mirror, data, hashes, root)
    assert caught.value.reason == "range-ignored"
    assert mirror.closed == len(mirror.asked)


def test_an_interruption_at_any_chunk_resumes_with_only_what_is_missing() -> None:
    image = image_of(500)
    root, tree = root_of(image)
    whole = len(image) + len(tree)
    for chunks in range(whole // CHUNK + 2):
        data, hashes = empty_slot(root)
        mirror = Mirror(image, tree)
        mirror.chunks_left = chunks
        with pytest.raises(NetworkFailure):
            fill_slot(mirror, data, hashes, root)
        mirror.chunks_left = None
        done = fill_slot(mirror, data, hashes, root)
        assert_holds(data, hashes, image, root, tree)
        # A chunk that ends inside a block costs that block again, once for the tree and once for the image.
        assert done.fetched_bytes <= whole - chunks * CHUNK + 2 * CHUNK + 2 * BLOCK_BYTES


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 12), torn=st.integers(0, 600))
def test_a_power_cut_at_any_write_is_resumed(count: int, torn: int) -> None:
    image = image_of(1700)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    left = [count]

    def cut(blocks: MemoryBlocks) -> Callable[[int, int], None]:
        def before(offset: int, length: int) -> None:
            if not left[0]:
                # Some sectors of the write in flight arrive, others do not.
                blocks.content[offset : offset + min(length, torn * 512)] = b"\xcc" * min(length, torn * 512)
                raise Cut
            left[0] -= 1

        return before

    data.before_write, hashes.before_write = cut(data), cut(hashes)
    try:
        fill_slot(Mirror(image, tree), data, hashes, root)
    except Cut:
        data.before_write = hashes.before_write = lambda offset, length: None
        fill_slot(Mirror(image, tree), data, hashes, root)
    assert_holds(data, hashes, image, root, tree)


def test_a_slot_that_is_too_small_is_refused_before_the_first_byte() -> None:
    image = image_of(300)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    mirror = Mirror(image, tree)
    with pytest.raises(EnvironmentFailure) as caught:
        fill_slot(mirror, MemoryBlocks(len(image) - BLOCK_BYTES), hashes, root)
    assert caught.value.reason == "slot-too-small"
    with pytest.raises(EnvironmentFailure):
        fill_slot(mirror, data, MemoryBlocks(len(tree)), root)
    assert mirror.asked == []
    assert data.writes == hashes.writes == []


class WeakDisk(MemoryBlocks):
    """A disk with a sector that cannot be read until it is written."""

    weak: int | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Fail on the weak sector."""
        if self.weak is not None and offset <= self.weak < offset + length:
            raise EnvironmentFailure("cannot read slot b data", reason="io-error")
        return super().read(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Heal what is written."""
        super().write(offset, data)
        if self.weak is not None and offset <= self.weak < offset + len(data):
            self.weak = None


def test_an_unreadable_sector_of_the_other_slot_is_written_anew() -> None:
    image = image_of(600)
    root, tree = root_of(image)
    sound, hashes = slot_of(image, root, tree)
    data = WeakDisk(len(image), "slot b data")
    data.content[:] = sound.content
    data.weak = 777_000
    fill_slot(Mirror(image, tree), data, hashes, root)
    assert_holds(data, hashes, image, root, tree)


class LyingDisk(MemoryBlocks):
    """A disk that acknowledges writes to one block and forgets them."""

    forgotten = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all but one block."""
        super().write(offset, data)
        self.content[self.forgotten * BLOCK_BYTES : (self.forgotten + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)


def test_a_disk_that_forgets_writes_is_found_by_the_read_back() -> None:
    image = image_of(600)
    root, tree = root_of(image)
    _, hashes = empty_slot(root)
    data = LyingDisk(len(image), "slot b data")
    data.forgotten = 321
    with pytest.raises(SlotDamaged, match=f"slot b data: the data block at byte {321 * BLOCK_BYTES} "):
        fill_slot(Mirror(image, tree), data, hashes, root)


def test_a_hash_partition_that_forgets_writes_is_found_too() -> None:
    image = image_of(600)
    root, tree = root_of(image)
    data, _ = empty_slot(root)
    hashes = LyingDisk(BLOCK_BYTES + len(tree), "slot b hashes")
    for hashes.forgotten in range(len(tree) // BLOCK_BYTES + 1):
        with pytest.raises(SlotDamaged, match="slot b hashes"):
            fill_slot(Mirror(image, tree), data, hashes, root)


def test_a_power_cut_costs_no_more_than_one_window() -> None:
    image = image_of(2 * writer.WINDOW_BLOCKS + 1)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    flushed_before: dict[int, int] = {}

    def note(offset: int, length: int) -> None:
        flushed_before.setdefault(offset // BLOCK_BYTES, data.flushes)

    data.before_write = note
    fill_slot(Mirror(image, tree), data, hashes, root)
    windows = [flushed_before[window * writer.WINDOW_BLOCKS] for window in range(3)]
    assert windows == [0, 1, 2]


def test_the_slot_is_flushed_before_it_is_read_back() -> None:
    image = image_of(64)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    order: list[str] = []
    flush, read = data.flush, data.read

    class Watched(MemoryBlocks):
        def flush(self) -> None:
            order.append("flush")
            flush()

        def read(self, offset: int, length: int) -> bytes:
            order.append("read")
            return read(offset, length)

        def write(self, offset: int, content: bytes | memoryview) -> None:
            order.append("write")
            data.write(offset, content)

    fill_slot(Mirror(image, tree), Watched(len(image)), hashes, root)
    last_write = len(order) - 1 - order[::-1].index("write")
    after = order[last_write + 1 :]
    assert after[0] == "flush"
    assert after[-1] == "read"
    assert "read" not in after[:-1]


def test_progress_runs_from_zero_to_the_end_twice() -> None:
    image = image_of(9000)
    root, tree = root_of(image)
    data, hashes = empty_slot(root)
    filling: list[int] = []
    proving: list[int] = []
    fill_slot(
        Mirror(image, tree),
        data,
        hashes,
        root,
        progress=lambda done, total: filling.append(done),
        proving=lambda done, total: proving.append(done),
    )
    for seen in (filling, proving):
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0, len(image))
    assert len(filling) > 10


@given(indexes=st.sets(st.integers(0, 300)), gap=st.integers(0, 40))
def test_runs_cover_their_indexes_and_join_only_small_gaps(indexes: set[int], gap: int) -> None:
    runs = list(writer._joined(sorted(indexes), gap))
    covered = {index for start, end in runs for index in range(start, end)}
    assert indexes <= covered
    assert all(start in indexes and end - 1 in indexes for start, end in runs)
    assert all(later[0] - earlier[1] > gap for earlier, later in pairwise(runs))
