"""Filling a slot by delta, reuse and frames: exact bytes and requests, kills, damage, fallbacks."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.disks import Cut, MemoryBlocks
from tests.hostile_server import Handler, hostile
from tests.transported import Repository, filled
from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted, UpdaterError
from updater.fill.filler import Filled, Filler
from updater.fill.landing import State, upper_bytes
from updater.fill.reuse import INDEX_BYTES_A_BLOCK, Sought
from updater.fill.source_slot import SourceSlot
from updater.format.blockmap import BlockMap, Candidates, Runs, encode_candidates, parse_candidates, parse_map
from updater.format.recipe import encode_recipe, parse_recipe
from updater.format.transport import ImageTransport, Index
from updater.manifest import BLOCK_BYTES
from updater.release.blobs import BlobFolder
from updater.verity import GROUP_BLOCKS
from updater.ways import Choice, Way, choose_way

WAYS = [Way.DELTA, Way.REUSE, Way.FULL]
Barred = list[tuple[Way, str]]
Slot = tuple[MemoryBlocks, MemoryBlocks]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


def run(filler: Filler, slot: Slot, *order: Way, barred: Barred | None = None) -> Filled:
    """Work out, choose, unless an order is told, and fill; a way that is barred unexpectedly fails the test."""
    costs = filler.work_out(*slot, thorough=True)

    def on_barred(way: Way, error: UpdaterError) -> None:
        assert barred is not None, f"{way} was barred: {error}"
        barred.append((way, error.reason))

    return filler.fill(*slot, Choice(order, "told") if order else choose_way(costs), on_barred=on_barred)


def only_true_blocks(repository: Repository, slot: Slot, before: bytes = b"") -> bool:
    """Tell whether all that was written to the image is the new image's."""
    data, image = slot[0], repository.new.content
    written = {at for offset, length in data.writes for at in range(offset, offset + length, BLOCK_BYTES)}
    return all(data.content[at : at + BLOCK_BYTES] == image[at : at + BLOCK_BYTES] for at in written)


def served(folder: Path) -> Callable[[Handler], None]:
    """Return a play that serves a folder as a good server does."""

    def play(handler: Handler) -> None:
        path = folder / handler.path.removeprefix("/repo/")
        if path.is_file():
            handler.serve(path.read_bytes())
        else:
            handler.answer(404)

    return play


def slots(repository: Repository) -> dict[str, Slot]:
    """Return other slots as they are found: wiped, with the old release, half written, with garbage."""
    half, garbage = repository.running_blocks(), repository.wiped()
    middle = 700 * BLOCK_BYTES
    half[0].content[:middle] = repository.new.content[:middle]
    for blocks in garbage:
        blocks.content[:] = b"\xee" * len(blocks.content)
    return {"wiped": repository.wiped(), "old": repository.running_blocks(), "half": half, "garbage": garbage}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("held", ["wiped", "old", "half", "garbage"])
def test_each_way_takes_the_bytes_and_requests_that_it_said(repository: Repository, way: Way, held: str) -> None:
    slot = slots(repository)[held]
    with hostile(served(repository.folder)) as server:
        fetcher = repository.fetcher(server.url)
        filler = repository.filler(repository.running(), only=way, fetcher=fetcher)
        costs = {cost.way: cost for cost in filler.work_out(*slot, thorough=True)}
        done = filler.fill(*slot, Choice((way,), ""), on_barred=lambda way, error: None)
        asked = len(server.seen)
    assert filled(*slot, repository.new)
    assert only_true_blocks(repository, slot)
    upper = upper_bytes(repository.new.root)
    assert done.fetched_bytes == costs[way].fetch_bytes + upper == fetcher.counters.bytes_fetched
    assert done.requests == asked == costs[way].requests + 1
    assert done.written_bytes <= costs[way].write_bytes + upper + 2 * BLOCK_BYTES
    total = len(repository.new.content) + len(repository.new.tree) + BLOCK_BYTES
    assert done.written_bytes + done.kept_bytes == total
    assert done.written_bytes == sum(length for blocks in slot for _, length in blocks.writes)


def test_ways_cost_what_they_promise(repository: Repository) -> None:
    slot = repository.wiped()
    costs = {cost.way: cost for cost in repository.filler(repository.running()).work_out(*slot, thorough=True)}
    # 47 blocks were changed by nine bytes each; eight others are new, of which four twice.
    assert costs[Way.DELTA].fetch_bytes < 10 * BLOCK_BYTES
    assert 50 * BLOCK_BYTES < costs[Way.REUSE].fetch_bytes < 65 * BLOCK_BYTES
    assert costs[Way.FULL].fetch_bytes < len(repository.new.content)
    assert choose_way(list(costs.values())).order == (Way.DELTA, Way.REUSE, Way.FULL, Way.PLAIN)


def test_a_slot_that_holds_the_image_takes_the_upper_tree_only(repository: Repository) -> None:
    slot = repository.wiped()
    run(repository.filler(repository.running()), slot)
    writes = [list(blocks.writes) for blocks in slot]
    done = run(repository.filler(repository.running()), slot)
    assert done.ways == ()
    assert done.written_bytes == 0
    assert [blocks.writes for blocks in slot] == writes


def test_reuse_without_a_running_slot_fetches_the_packs(repository: Repository) -> None:
    slot = repository.wiped()
    done = run(repository.filler(None, only=Way.REUSE), slot, Way.REUSE)
    assert filled(*slot, repository.new)
    assert done.ways == (Way.REUSE,)


def test_what_the_other_slot_holds_in_its_place_is_reused(repository: Repository) -> None:
    slot = repository.running_blocks()
    alone = repository.filler(None, only=Way.REUSE).work_out(*slot, thorough=True)[1]
    wiped = repository.filler(None, only=Way.REUSE).work_out(*repository.wiped(), thorough=True)[1]
    assert alone.fetch_bytes < wiped.fetch_bytes * 2 // 3


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 257])
def test_images_of_odd_sizes_are_filled_by_each_way(tmp_path: Path, blocks: int) -> None:
    small = Repository(tmp_path, blocks=blocks)
    for way in WAYS:
        slot = small.wiped()
        slot[0].content[:] = b"\x11" * len(slot[0].content)
        assert run(small.filler(small.running(), only=way), slot, way).ways == (way,)
        assert filled(*slot, small.new)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("held", ["wiped", "half"])
def test_a_kill_before_any_write_is_resumed_with_what_is_still_missing(
    repository: Repository, way: Way, held: str
) -> None:
    whole = slots(repository)[held]
    first = run(repository.filler(repository.running(), only=way), whole, way)
    least = min(_indexes(repository, way), first.fetched_bytes)
    later = [first.fetched_bytes]
    writes = sum(len(blocks.writes) for blocks in whole)
    for count in sorted({*range(0, writes, max(1, writes // 16)), writes - 2, writes - 1}):
        slot = slots(repository)[held]
        _cut_after(slot, count)
        with pytest.raises(Cut):
            run(repository.filler(repository.running(), only=way), slot, way)
        for blocks in slot:
            blocks.before_write = lambda offset, length: None
        assert only_true_blocks(repository, slot)
        if way is Way.DELTA:
            assert _begun_operations(repository, slot) <= 1
        done = run(repository.filler(repository.running(), only=way), slot, way)
        assert filled(*slot, repository.new)
        # The more was written, the less is fetched again.
        assert done.fetched_bytes <= later[-1]
        later.append(done.fetched_bytes)
    assert later[-1] <= least + upper_bytes(repository.new.root)


def _cut_after(slot: Slot, count: int) -> None:
    left = [count]

    def before(offset: int, length: int) -> None:
        if not left[0]:
            raise Cut
        left[0] -= 1

    for blocks in slot:
        blocks.before_write = before


def _begun_operations(repository: Repository, slot: Slot) -> int:
    """Return how many operations would be fetched again although a part of their output was written."""
    filler = repository.filler(repository.running(), only=Way.DELTA)
    filler.work_out(*slot, thorough=True)
    landing = filler._landing
    assert landing is not None
    delta = repository.new.transport.deltas[0]
    raw = (repository.folder / delta.recipe.path).read_bytes()
    recipe = parse_recipe(raw, delta, len(repository.new.content), "recipe")
    found = 0
    for operation in recipe.operations:
        groups = {
            block // GROUP_BLOCKS
            for output in operation.outputs
            for block in range(output.first, output.first + output.blocks)
        }
        placed = [landing.states[group] == State.PLACED for group in groups]
        was = [
            slot[0].content[g << 19 : (g << 19) + 8] == repository.new.content[g << 19 : (g << 19) + 8] for g in groups
        ]
        found += any(placed) and not all(placed) and any(was)
    return found


def _indexes(repository: Repository, way: Way) -> int:
    transport = repository.new.transport
    assert transport.frames is not None
    assert transport.reuse is not None
    return {
        Way.DELTA: transport.deltas[0].recipe.length_bytes,
        Way.REUSE: transport.reuse.map.length_bytes + transport.reuse.candidates.length_bytes,
        Way.FULL: transport.frames.index.length_bytes,
    }[way]


def _spoilt(repository: Repository, folder: Path, path: str) -> Path:
    """Return a copy of the repository in which one file has a wrong byte in its middle."""
    shutil.copytree(repository.folder, folder)
    content = bytearray((folder / path).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / path).write_bytes(content)
    return folder


def _files(repository: Repository, way: Way) -> list[str]:
    transport = repository.new.transport
    delta, reuse, frames = transport.deltas[0], transport.reuse, transport.frames
    assert delta.payload is not None
    assert reuse is not None
    assert frames is not None
    return {
        Way.DELTA: [delta.recipe.path, delta.payload.path],
        Way.REUSE: [reuse.map.path, reuse.candidates.path, reuse.packs[-1].index.path, reuse.packs[-1].file.path],
        Way.FULL: [frames.index.path, frames.file.path],
    }[way]


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_mirror_is_passed_over_at_every_stage(repository: Repository, tmp_path: Path, way: Way) -> None:
    for number, path in enumerate(_files(repository, way)):
        wrong = _spoilt(repository, tmp_path / str(number), path)
        slot = repository.wiped()
        fetcher = repository.fetcher(str(wrong), str(repository.folder))
        done = run(repository.filler(repository.running(), only=way, fetcher=fetcher), slot, way)
        assert done.ways == (way,)
        assert fetcher.mirrors[-1] == str(wrong)
        assert filled(*slot, repository.new)


@pytest.mark.parametrize("way", WAYS)
def test_wrong_bytes_everywhere_are_never_written_nor_bar_a_way(
    repository: Repository, tmp_path: Path, way: Way
) -> None:
    for number, path in enumerate(_files(repository, way)):
        fetcher = repository.fetcher(str(_spoilt(repository, tmp_path / str(number), path)))
        slot = repository.wiped()
        filler = repository.filler(repository.running(), fetcher=fetcher)
        costs = {cost.way: cost for cost in filler.work_out(*slot, thorough=True)}
        assert not costs[way].barred
        order = tuple(kind for kind in (way, Way.PLAIN) if costs[kind].possible)
        filler.fill(*slot, Choice(order, ""), on_barred=_nothing_is_barred)
        assert only_true_blocks(repository, slot)
        assert filled(*slot, repository.new)


def _nothing_is_barred(way: Way, error: UpdaterError) -> None:
    raise AssertionError(f"{way} was barred: {error}")


def test_a_wrong_upper_tree_is_refused_before_the_first_write(tmp_path: Path) -> None:
    # Its own repository: an image large enough to have a tree of two levels.
    own = Repository(tmp_path / "own", blocks=1500)
    wrong = _spoilt(own, tmp_path / "wrong", f"images/{own.new.root.root_hash}/tree")
    tree = bytearray(own.new.tree)
    tree[7] ^= 1
    (wrong / f"images/{own.new.root.root_hash}/tree").write_bytes(tree)
    slot = own.wiped()
    with pytest.raises(Untrusted) as caught:
        run(own.filler(own.running(), fetcher=own.fetcher(str(wrong))), slot)
    assert caught.value.reason == "block-mismatch"
    assert slot[0].writes == slot[1].writes == []
    honest = own.fetcher(str(wrong), str(own.folder))
    run(own.filler(own.running(), fetcher=honest), slot)
    assert filled(*slot, own.new)


def test_a_failing_network_ends_the_work_and_the_way_is_taken_again(repository: Repository) -> None:
    payload = repository.new.transport.deltas[0].payload
    assert payload is not None
    dead = [True]

    def play(handler: Handler) -> None:
        if dead[0] and payload.sha256 in handler.path:
            handler.answer(503)
        else:
            served(repository.folder)(handler)

    slot = repository.wiped()
    with hostile(play) as server:
        with pytest.raises(NetworkFailure):
            run(repository.filler(repository.running(), fetcher=repository.fetcher(server.url)), slot)
        dead[0] = False
        done = run(repository.filler(repository.running(), fetcher=repository.fetcher(server.url)), slot)
    assert done.ways == (Way.DELTA,)
    assert filled(*slot, repository.new)


def test_a_network_that_fails_while_ways_are_worked_out_does_not_lead_to_a_dearer_one(repository: Repository) -> None:
    recipe = repository.new.transport.deltas[0].recipe

    def play(handler: Handler) -> None:
        if recipe.sha256 in handler.path:
            handler.answer(503)
        else:
            served(repository.folder)(handler)

    slot = repository.wiped()
    with hostile(play) as server, pytest.raises(NetworkFailure) as caught:
        run(repository.filler(repository.running(), fetcher=repository.fetcher(server.url)), slot)
    assert caught.value.reason == "server-busy"
    assert slot[0].writes == slot[1].writes == []


def test_a_delta_that_is_gone_from_the_server_is_left_for_the_next_way(repository: Repository, tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    shutil.copytree(repository.folder, lacking)
    payload = repository.new.transport.deltas[0].payload
    assert payload is not None
    (lacking / payload.path).unlink()
    slot = repository.wiped()
    done = run(repository.filler(repository.running(), fetcher=repository.fetcher(str(lacking))), slot)
    assert done.ways == (Way.DELTA, Way.REUSE)
    assert filled(*slot, repository.new)


class WeakBlocks(MemoryBlocks):
    """A partition with one block that cannot be read."""

    weak = 0

    def read(self, offset: int, length: int) -> bytes:
        """Fail on that block."""
        if offset <= self.weak < offset + length:
            raise EnvironmentFailure(f"cannot read {self.name} at byte {self.weak}", reason="io-error")
        return super().read(offset, length)


def test_a_source_block_of_an_operation_that_rotted_bars_the_delta_and_the_next_way_does_it(
    repository: Repository,
) -> None:
    data, hashes = repository.running_blocks()
    data.content[210 * BLOCK_BYTES + 5] ^= 1
    slot, barred = repository.wiped(), Barred()
    done = run(repository.filler(SourceSlot(data, hashes, repository.old.root)), slot, barred=barred)
    assert barred == [(Way.DELTA, "source-damaged")]
    assert done.ways[0] is Way.DELTA
    assert filled(*slot, repository.new)
    assert only_true_blocks(repository, slot)


def test_a_copied_block_that_rotted_is_found_by_the_proof_and_never_written(repository: Repository) -> None:
    data, hashes = repository.running_blocks()
    data.content[1200 * BLOCK_BYTES + 5] ^= 1
    slot, barred = repository.wiped(), Barred()
    run(repository.filler(SourceSlot(data, hashes, repository.old.root)), slot, barred=barred)
    assert barred == [(Way.DELTA, "group-mismatch")]
    assert filled(*slot, repository.new)
    assert only_true_blocks(repository, slot)


def test_an_unreadable_source_bars_the_ways_that_need_it(repository: Repository) -> None:
    sound, hashes = repository.running_blocks()
    data = WeakBlocks(len(sound.content), "slot a data")
    data.content[:] = sound.content
    data.weak = 1200 * BLOCK_BYTES
    slot, barred = repository.wiped(), Barred()
    done = run(repository.filler(SourceSlot(data, hashes, repository.old.root)), slot, barred=barred)
    assert (Way.DELTA, "source-unreadable") in barred
    assert done.ways[-1] is Way.FULL
    assert filled(*slot, repository.new)


def test_an_unreadable_sector_of_the_other_slot_is_written_anew(repository: Repository) -> None:
    class Healing(WeakBlocks):
        def write(self, offset: int, content: bytes | memoryview) -> None:
            super().write(offset, content)
            if offset <= self.weak < offset + len(content):
                self.weak = -1

    for way in WAYS:
        wiped, hashes = repository.wiped()
        data = Healing(len(wiped.content), "slot b data")
        data.weak = 1200 * BLOCK_BYTES
        run(repository.filler(repository.running(), only=way), (data, hashes), way)
        assert filled(data, hashes, repository.new)


def _with_index(repository: Repository, folder: Path, content: bytes) -> Index:
    """Publish a table as it would be signed, whatever is in it."""
    made = BlobFolder(folder / "made").put_index(content, packed=False)
    place = repository.folder / made.path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes((folder / "made" / made.sha256).read_bytes())
    return made


def test_a_signed_operation_that_makes_something_else_bars_the_delta(repository: Repository, tmp_path: Path) -> None:
    delta = repository.new.transport.deltas[0]
    length = len(repository.new.content)
    recipe = parse_recipe((repository.folder / delta.recipe.path).read_bytes(), delta, length, "recipe")
    from dataclasses import replace

    broken = replace(recipe.operations[-1], output_sha256=bytes(32))
    table = encode_recipe(replace(recipe, operations=(*recipe.operations[:-1], broken)))
    index = _with_index(repository, tmp_path, table)
    transport = msgspec.structs.replace(repository.new.transport, deltas=[msgspec.structs.replace(delta, recipe=index)])
    slot, barred = repository.wiped(), Barred()
    done = run(repository.filler(repository.running(), transport=transport), slot, barred=barred)
    assert barred == [(Way.DELTA, "operation-failed")]
    assert done.ways == (Way.DELTA, Way.REUSE)
    assert filled(*slot, repository.new)


def test_a_signed_table_that_makes_no_sense_bars_its_way_before_anything_is_written(
    repository: Repository, tmp_path: Path
) -> None:
    delta = repository.new.transport.deltas[0]
    index = _with_index(repository, tmp_path, b"ACLRCP\0\1" + bytes(80))
    transport = ImageTransport(deltas=[msgspec.structs.replace(delta, recipe=index)])
    slot = repository.wiped()
    filler = repository.filler(repository.running(), transport=transport)
    costs = {cost.way: cost for cost in filler.work_out(*slot, thorough=True)}
    assert costs[Way.DELTA].barred
    assert choose_way(list(costs.values())).order == (Way.PLAIN,)
    assert slot[0].writes == []
    barred = Barred()
    filler.fill(*slot, Choice((Way.PLAIN,), ""), on_barred=lambda way, error: barred.append((way, error.reason)))
    assert barred == [(Way.DELTA, "invalid-document")]
    assert filled(*slot, repository.new)


def test_two_blocks_with_one_short_digest_cost_a_leaf_and_a_block(repository: Repository, tmp_path: Path) -> None:
    reuse = repository.new.transport.reuse
    assert reuse is not None
    blocks = len(repository.new.content) // BLOCK_BYTES
    blockmap = parse_map((repository.folder / reuse.map.path).read_bytes(), reuse, blocks, (), "map")
    raw = (repository.folder / reuse.candidates.path).read_bytes()
    candidates = parse_candidates(raw, reuse, blockmap, "candidates")
    size = candidates.digest_bytes
    # The second block's digest now finds the running release's fifth block.
    digests = bytearray(candidates.digests)
    digests[size : 2 * size] = digests[4 * size : 5 * size]
    index = _with_index(repository, tmp_path, encode_candidates(Candidates(size, bytes(digests))))
    transport = ImageTransport(reuse=msgspec.structs.replace(reuse, candidates=index))
    slot = repository.wiped()
    filler = repository.filler(repository.running(), transport=transport)
    cost = filler.work_out(*slot, thorough=True)[1]
    done = filler.fill(*slot, Choice((Way.REUSE, Way.PLAIN), ""), on_barred=_nothing_is_barred)
    assert done.ways == (Way.REUSE, Way.PLAIN)
    assert filled(*slot, repository.new)
    spoilt = done.fetched_bytes - cost.fetch_bytes - upper_bytes(repository.new.root)
    assert spoilt <= (1 + GROUP_BLOCKS) * BLOCK_BYTES


def test_a_barred_way_is_not_worked_out_again(repository: Repository) -> None:
    used = repository.fetcher()
    filler = Filler(
        used,
        [],
        repository.new.root,
        None,
        source_slot=repository.running(),
        barred={Way.DELTA: "its operation 3 is corrupt"},
        what="release 2.0.0",
    )
    costs = filler.work_out(*repository.wiped(), thorough=True)
    assert costs[0].barred == "its operation 3 is corrupt"
    assert not costs[0].possible


def test_without_a_delta_reuse_is_worked_out_and_taken(repository: Repository) -> None:
    without = msgspec.structs.replace(repository.new.transport, deltas=[])
    filler = repository.filler(repository.running(), transport=without)
    costs = {cost.way: cost for cost in filler.work_out(*repository.wiped(), thorough=False)}
    assert not costs[Way.REUSE].at_least
    assert choose_way(list(costs.values())).taken is Way.REUSE


def test_looking_for_blocks_takes_no_more_memory_than_was_said() -> None:
    blocks = 1 << 16
    digests = random.Random(5).randbytes(5 * blocks)
    # The second half of the image repeats the first, and the map has a run for every third block.
    doubled = Candidates(5, digests[: 5 * blocks // 2] * 2)
    lengths = array("I", [3] * (blocks // 3) + [blocks % 3])
    tracemalloc.start()
    try:
        runs = Runs(array("I", [1] * len(lengths)), array("I", range(0, blocks, 3)), lengths)
        sought = Sought(doubled, BlockMap(blocks, runs), set(range(blocks // GROUP_BLOCKS)))
        held = array("I", [0]) * blocks
        held[7] = 9
        sought.tell_twins(held)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Beside these: the candidates themselves, and a mark for each block that is in its place.
    assert most <= (INDEX_BYTES_A_BLOCK - 5 - 1) * blocks + 10_000
    assert (held[7], held[blocks // 2 + 7], sum(map(bool, held))) == (9, 9, 2)
    assert sought.first_with(digests[35:40]) == 7
    assert sought.first_with(b"other") == -1
    assert sought.is_at(blocks // 2 + 7, digests[35:40])
    assert not sought.is_at(8, digests[35:40])
