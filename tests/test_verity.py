"""The verity format against cryptsetup's own tool, and proofs against flipped bits."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.disks import MemoryBlocks, image_of, root_of, slot_of
from updater import verity
from updater.errors import EnvironmentFailure, SlotDamaged
from updater.manifest import BLOCK_BYTES, tree_length_bytes
from updater.run import run, search_path

needs_veritysetup = pytest.mark.skipif(
    shutil.which("veritysetup", path=search_path()) is None, reason="veritysetup (cryptsetup-bin) is not installed"
)
SIZES = [1, 2, 127, 128, 129, 255, 256, 128 * 128, 128 * 128 + 1]


@needs_veritysetup
@pytest.mark.parametrize("blocks", SIZES)
@pytest.mark.parametrize("salt", ["", "5a" * 32, "c3" * 256])
def test_trees_and_superblocks_equal_those_of_veritysetup(tmp_path: Path, blocks: int, salt: str) -> None:
    image = image_of(blocks, seed=blocks)
    data, hashes = tmp_path / "data", tmp_path / "hashes"
    data.write_bytes(image)
    uuid = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
    root_hash = tmp_path / "root"
    options = [f"--salt={salt or '-'}", f"--uuid={uuid}", f"--root-hash-file={root_hash}"]
    run(["veritysetup", "format", data, hashes, *options])
    root, tree = root_of(image, salt=salt, uuid=uuid)
    assert root.root_hash == root_hash.read_text()
    assert verity.superblock(root) + tree == hashes.read_bytes()


@needs_veritysetup
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blocks=st.integers(2, 700), seed=st.integers(0, 2**16), salt=st.binary(max_size=64))
def test_veritysetup_verifies_what_we_built(tmp_path: Path, blocks: int, seed: int, salt: bytes) -> None:
    image = image_of(blocks, seed=seed)
    root, tree = root_of(image, salt=salt.hex())
    data, hashes = tmp_path / "data", tmp_path / "hashes"
    data.write_bytes(image)
    hashes.write_bytes(verity.superblock(root) + tree)
    run(["veritysetup", "verify", data, hashes, root.root_hash])


def test_a_superblock_is_read_back() -> None:
    root, _ = root_of(image_of(3), salt="00ff10")
    found = verity.parse_superblock(verity.superblock(root))
    assert found == verity.Superblock(root.uuid, 3, "00ff10")
    assert (found.length_bytes, found.tree_length_bytes) == (root.length_bytes, root.tree_length_bytes)


@pytest.mark.parametrize(
    ("at", "value"), [(0, b"V"), (8, b"\2"), (12, b"\0"), (32, b"sha512"), (64, b"\0\2"), (80, b"\xff\xff")]
)
def test_a_foreign_superblock_is_refused(at: int, value: bytes) -> None:
    raw = bytearray(verity.superblock(root_of(image_of(3))[0]))
    raw[at : at + len(value)] = value
    with pytest.raises(SlotDamaged):
        verity.parse_superblock(bytes(raw))


@given(raw=st.binary(max_size=1024))
def test_garbage_is_no_superblock(raw: bytes) -> None:
    with pytest.raises(SlotDamaged):
        verity.parse_superblock(raw)


@given(blocks=st.integers(1, 1 << 34))
def test_geometry_agrees_with_the_manifest_and_lays_levels_end_to_end(blocks: int) -> None:
    shape = verity.geometry_of(blocks)
    assert shape.tree_blocks * BLOCK_BYTES == tree_length_bytes(blocks)
    at = 0
    for level in shape.levels:
        assert level.start == at
        at += level.blocks
    if shape.levels:
        assert shape.levels[0].blocks == 1
        assert shape.levels[-1].blocks == shape.groups


@pytest.mark.parametrize("blocks", SIZES)
def test_a_sound_slot_is_proven_with_progress_to_the_end(blocks: int) -> None:
    image = image_of(blocks)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree, spare_blocks=3)
    seen: list[tuple[int, int]] = []
    verity.prove(data, hashes, root, lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, len(image))
    assert seen[-1] == (len(image), len(image))
    assert seen == sorted(seen)


@settings(max_examples=80)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from([1, 2, 129, 300]))
def test_one_flipped_bit_anywhere_is_found(seed: int, blocks: int) -> None:
    image = image_of(blocks)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    pick = random.Random(seed)
    used = [(data, len(image)), (hashes, 512)] + ([(hashes, BLOCK_BYTES + len(tree))] if tree else [])
    blocks_of, length = pick.choice(used)
    at = pick.randrange(length)
    if blocks_of is hashes and 512 <= at < BLOCK_BYTES:
        at = 0
    blocks_of.content[at] ^= 1 << pick.randrange(8)
    with pytest.raises(SlotDamaged) as caught:
        verity.prove(data, hashes, root)
    assert f"byte {at - at % BLOCK_BYTES} " in str(caught.value)
    assert blocks_of.name in str(caught.value)


def test_a_flipped_bit_in_any_level_of_a_deep_tree_is_found() -> None:
    image = image_of(128 * 128 + 1)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    for level in verity.geometry(root).levels:
        at = BLOCK_BYTES + (level.start + level.blocks - 1) * BLOCK_BYTES
        hashes.content[at] ^= 1
        with pytest.raises(SlotDamaged, match=f"hash block at byte {at} "):
            verity.prove(data, hashes, root)
        hashes.content[at] ^= 1


def test_damage_names_the_first_bad_block_and_counts_the_others() -> None:
    image = image_of(1000)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    for block in (77, 400, 999):
        data.content[block * BLOCK_BYTES + 9] ^= 1
    with pytest.raises(SlotDamaged, match=f"data block at byte {77 * BLOCK_BYTES} and 2 more"):
        verity.prove(data, hashes, root)


def test_a_proof_reads_no_more_than_a_few_megabytes_at_a_time() -> None:
    image = image_of(4096)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    verity.prove(data, hashes, root)
    assert max(length for _, length in data.reads) <= verity.READ_BYTES
    assert len(data.reads) == len(image) // verity.READ_BYTES


def test_a_slot_smaller_than_its_image_is_refused_before_it_is_read() -> None:
    image = image_of(300)
    root, tree = root_of(image)
    data, hashes = slot_of(image, root, tree)
    small = MemoryBlocks(len(image) - BLOCK_BYTES, "small")
    with pytest.raises(EnvironmentFailure) as caught:
        verity.prove(small, hashes, root)
    assert caught.value.reason == "slot-too-small"
    short = MemoryBlocks(len(tree), "short")
    with pytest.raises(EnvironmentFailure) as caught:
        verity.prove(data, short, root)
    assert caught.value.reason == "slot-too-small"


def test_the_first_tree_block_gives_the_root_hash() -> None:
    root, tree = root_of(image_of(200), salt="aa")
    assert verity.root_hash_of_tree(tree, b"\xaa") == root.root_hash


def test_digests_of_a_run_are_those_of_its_blocks() -> None:
    hasher = verity.Hasher(os.urandom(32))
    image = image_of(5)
    parts = [hasher.digests(image[at : at + BLOCK_BYTES]) for at in range(0, len(image), BLOCK_BYTES)]
    assert hasher.digests(image) == b"".join(parts)
    assert hasher.of_zeros == hasher.digests(bytes(BLOCK_BYTES))
