"""The read-back behind the writer: what it counts, what it finds, and that the end leaves nothing out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import MemoryBlocks, empty_slot, image_of, root_of
from tests.transported import Repository, filled
from updater.errors import EnvironmentFailure, SlotDamaged
from updater.fill.landing import Landing, leaf_digests, upper_bytes
from updater.fill.read_back import ReadBack
from updater.manifest import BLOCK_BYTES, Root
from updater.verity import GROUP_BLOCKS, GROUP_BYTES, LEAVES_A_RUN, prove
from updater.ways import Choice, Way

RUN_BLOCKS = LEAVES_A_RUN * GROUP_BLOCKS
PATIENCE_S = 60


@functools.cache
def image() -> tuple[bytes, Root, bytes]:
    content = image_of(300, seed=5) * (RUN_BLOCKS // 300 + 1)
    root, tree = root_of(content)
    return content, root, tree


class Medium(MemoryBlocks):
    """A partition that is read past the page cache, and may lose what was flushed."""

    read_back = "O_DIRECT"

    def __init__(self, length_bytes: int) -> None:
        super().__init__(length_bytes, "slot b data")
        self.on_flush: Callable[[], None] = lambda: None

    def flush(self) -> None:
        super().flush()
        self.on_flush()


def landing_on(data: MemoryBlocks, hashes: MemoryBlocks) -> Landing:
    _, root, tree = image()
    upper = tree[: upper_bytes(root)]
    landing = Landing(data, hashes, root, upper, leaf_digests(upper, root, "a mirror"))
    landing.survey()
    landing.begin()
    return landing


def land(landing: Landing) -> None:
    content = image()[0]
    for group in landing.missing():
        held = content[group * GROUP_BYTES : (group + 1) * GROUP_BYTES]
        leaves, wrong = landing.prove(group, held)
        landing.write(group, held, leaves, wrong)


def wait_for_first_run(landing: Landing, behind: ReadBack) -> None:
    with landing.placing:
        assert landing.placing.wait_for(lambda: 0 in behind.proven, PATIENCE_S), "the first run was never read back"


def test_a_run_that_is_whole_is_flushed_and_read_back_while_the_rest_is_written() -> None:
    content, root, _ = image()
    _, hashes = empty_slot(root)
    data = Medium(len(content))
    landing = landing_on(data, hashes)
    with ReadBack(landing) as behind:
        land(landing)
        wait_for_first_run(landing, behind)
        assert data.flushes, "it was read back before it was flushed"
        landing.flush()
        counted = behind.end()
    assert 0 in counted
    read = {block for at, length in data.reads for block in range(at // BLOCK_BYTES, (at + length) // BLOCK_BYTES)}
    data.reads.clear()
    prove(data, hashes, root, just_proven=counted)
    last = {block for at, length in data.reads for block in range(at // BLOCK_BYTES, (at + length) // BLOCK_BYTES)}
    assert not last & set(range(RUN_BLOCKS)), "what was read back already is read twice"
    assert read | last == set(range(len(content) // BLOCK_BYTES)), "a block was never read back"


def test_a_block_that_the_medium_loses_behind_the_writer_is_named_in_the_end() -> None:
    content, root, _ = image()
    _, hashes = empty_slot(root)
    data = Medium(len(content))

    def lose() -> None:
        data.content[77 * BLOCK_BYTES] ^= 1
        data.on_flush = lambda: None

    landing = landing_on(data, hashes)
    data.on_flush = lose
    with ReadBack(landing) as behind:
        land(landing)
        landing.flush()
        with pytest.raises(SlotDamaged, match=f"data block at byte {77 * BLOCK_BYTES} "):
            prove(data, hashes, root, just_proven=behind.end())


def test_a_flush_that_failed_behind_the_writer_is_not_lost_though_the_next_one_succeeds() -> None:
    content, root, _ = image()
    _, hashes = empty_slot(root)
    data = Medium(len(content))
    failed = threading.Event()

    def fail() -> None:
        data.on_flush = lambda: None
        failed.set()
        raise EnvironmentFailure("the disk lost writes", mend="see dmesg", reason="io-error")

    landing = landing_on(data, hashes)
    data.on_flush = fail
    with ReadBack(landing) as behind:
        land(landing)
        assert failed.wait(PATIENCE_S), "the read-back never flushed"
        landing.flush()
        with pytest.raises(EnvironmentFailure, match="lost writes"):
            behind.end()


def test_a_run_that_is_written_again_does_not_count() -> None:
    content, root, _ = image()
    _, hashes = empty_slot(root)
    data = Medium(len(content))
    landing = landing_on(data, hashes)
    with ReadBack(landing) as behind:
        land(landing)
        wait_for_first_run(landing, behind)
        landing.write_blocks(5, b"\xee" * BLOCK_BYTES)
        assert 0 not in behind.end()


def test_where_reads_may_come_from_the_cache_nothing_counts() -> None:
    content, root, _ = image()
    data, hashes = empty_slot(root)
    landing = landing_on(data, hashes)
    with ReadBack(landing) as behind:
        land(landing)
        landing.flush()
        assert not behind.end()
    assert bytes(data.content) == content


@pytest.mark.parametrize("way", [Way.DELTA, Way.REUSE, Way.FULL])
def test_each_way_fills_a_slot_that_is_read_back_meanwhile(tmp_path: Path, way: Way) -> None:
    repository = Repository(tmp_path, blocks=600)
    hashes = repository.wiped()[1]
    data = Medium(len(repository.new.content))
    filler = repository.filler(repository.running(), only=way)
    filler.work_out(data, hashes, thorough=True)
    filler.fill(data, hashes, Choice((way,), ""), on_barred=lambda way, error: None)
    assert filled(data, hashes, repository.new)
