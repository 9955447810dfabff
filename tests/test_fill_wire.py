"""What the ways ask of a server, to the byte and request, and what they take from a slot that they overwrite."""

from __future__ import annotations

import random

import pytest

from tests.metered_server import metered
from tests.transported import Cuts, Repository, filled
from updater.fill.landing import upper_bytes
from updater.fill.source_slot import SourceSlot
from updater.manifest import BLOCK_BYTES
from updater.release.delta import OperationSizes
from updater.release.frames import Framing
from updater.ways import Choice, Way

MIB = 1 << 20
BLOCKS = 12 * MIB // BLOCK_BYTES


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    draw = random.Random(6)
    old = draw.randbytes(BLOCKS * BLOCK_BYTES)
    new = bytearray(old)
    # Six MiB that no earlier release has, in one run; all else is the old image's, and lies where it lay.
    new[2 * MIB : 8 * MIB] = draw.randbytes(6 * MIB)
    cuts = Cuts(Framing(MIB, 20, 1), Framing(MIB // 4, 18, 1), OperationSizes(128, 16))
    return Repository(tmp_path_factory.mktemp("repository"), pair=(old, bytes(new)), cuts=cuts)


@pytest.mark.parametrize(
    ("way", "tables", "content"),
    [
        # The tree above its leaves and the recipe.
        (Way.DELTA, 2, 6 * MIB),
        # The tree, the map, the candidates, and the index of the one pack that is needed.
        (Way.REUSE, 4, 6 * MIB),
        # The tree and the index.
        (Way.FULL, 2, 12 * MIB),
    ],
)
def test_requests_are_few_and_large(repository: Repository, way: Way, tables: int, content: int) -> None:
    slot = repository.wiped()
    with metered(repository.folder) as (address, meter):
        fetcher = repository.fetcher(address)
        filler = repository.filler(repository.running(), only=way, fetcher=fetcher)
        cost = {cost.way: cost for cost in filler.work_out(*slot, thorough=True)}[way]
        done = filler.fill(*slot, Choice((way,), ""), on_barred=lambda way, error: None)
        fetcher.close()
    assert filled(*slot, repository.new)
    assert done.requests == meter.requests
    assert done.fetched_bytes == meter.served
    assert 0 <= meter.served - cost.fetch_bytes <= upper_bytes(repository.new.root)
    # At least half a MiB a request, whatever the frames' and operations' lengths are: what cannot be compressed is a
    # little longer than a frame, so that its last piece begins a request of its own.
    assert meter.requests <= tables + content // (MIB // 2)
    assert content <= meter.served <= content * 1.01 + 64 * 1024


def rotated(content: bytes, blocks: int) -> bytes:
    return content[blocks * BLOCK_BYTES :] + content[: blocks * BLOCK_BYTES]


@pytest.mark.parametrize("blocks", [1, 100, 1024, -1, -1024])
def test_blocks_that_only_the_other_slot_holds_elsewhere_count_as_fetched(repository: Repository, blocks: int) -> None:
    # Every block that is needed lies there, where another one must go before it is used.
    data, hashes = repository.wiped()
    data.content[:] = rotated(repository.new.content, blocks)
    nothing = repository.wiped()
    filler = repository.filler(None, only=Way.REUSE)
    cost = filler.work_out(data, hashes, thorough=True)[1]
    assert cost.fetch_bytes == repository.filler(None, only=Way.REUSE).work_out(*nothing, thorough=True)[1].fetch_bytes
    done = filler.fill(data, hashes, Choice((Way.REUSE,), ""), on_barred=lambda way, error: None)
    assert done.ways == (Way.REUSE,)
    assert 0 <= done.fetched_bytes - cost.fetch_bytes <= upper_bytes(repository.new.root)
    assert filled(data, hashes, repository.new)


def test_what_lies_in_its_place_among_wrong_blocks_is_not_fetched(repository: Repository) -> None:
    data, hashes = repository.wiped()
    new = repository.new.content
    data.content[:] = new
    # One block of each group is another one, and it is one that another group needs.
    for block in range(0, BLOCKS, 128):
        elsewhere = (block + 64) % BLOCKS * BLOCK_BYTES
        data.content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = new[elsewhere : elsewhere + BLOCK_BYTES]
    written: list[tuple[int, int]] = []
    data.before_write = lambda offset, length: written.append((offset, length))
    filler = repository.filler(None, only=Way.REUSE)
    filler.work_out(data, hashes, thorough=True)
    filler.fill(data, hashes, Choice((Way.REUSE,), ""), on_barred=lambda way, error: None)
    assert filled(data, hashes, repository.new)
    assert sum(length for _, length in written) == BLOCKS // 128 * BLOCK_BYTES


def test_the_running_slot_is_never_written(repository: Repository) -> None:
    for way in (Way.DELTA, Way.REUSE):
        running = repository.running_blocks()
        filler = repository.filler(SourceSlot(*running, repository.old.root), only=way)
        slot = repository.wiped()
        filler.work_out(*slot, thorough=True)
        filler.fill(*slot, Choice((way,), ""), on_barred=lambda way, error: None)
        assert running[0].writes == running[1].writes == []
