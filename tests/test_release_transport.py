"""What a release travels in makes the very bytes of its image and UKI again, and costs what it should."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.framed_images import BLOCKS, Reader, new_image, old_image
from updater.format.blockmap import ZEROS, parse_candidates, parse_map
from updater.format.frames import parse_frames
from updater.format.recipe import Codec, parse_recipe
from updater.format.transport import Delta, Reuse
from updater.manifest import BLOCK_BYTES
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, OperationSizes, make_delta
from updater.release.frames import Framing, cut, make_framed
from updater.release.packs import MOST_PACKS, EarlierPacks, block_digests, make_reuse
from updater.release.transport import quiet

SMALL = Framing(16 * BLOCK_BYTES, 16, 3)


def reuse_of(image: bytes, earlier: Sequence[EarlierPacks], blobs: BlobFolder) -> Reuse:
    view = memoryview(image)
    return make_reuse(view, block_digests(view), earlier, blobs, quiet, framing=SMALL)


def earlier(image: bytes, reuse: Reuse, blobs: BlobFolder) -> EarlierPacks:
    digests = block_digests(memoryview(image))
    return EarlierPacks(digests, parse_map(blobs.read(reuse.map), reuse, len(digests), (), "map"), reuse.packs)


def delta_of(old: bytes, new: bytes, blobs: BlobFolder, sizes: OperationSizes | None = None) -> Delta:
    both = Content.of(memoryview(old)), Content.of(memoryview(new))
    return make_delta(*both, "ab" * 32, "1.0.0", blobs, quiet, sizes=sizes)


def test_frames_make_the_image_again(tmp_path: Path) -> None:
    image = old_image()
    blobs = BlobFolder(tmp_path)
    told: list[int] = []
    framed = make_framed(
        cut(memoryview(image), SMALL.frame_bytes),
        len(image),
        SMALL,
        blobs,
        "frames",
        lambda *seen: told.append(seen[1]),
    )
    assert Reader(tmp_path).framed(framed) == image
    index = parse_frames(blobs.read(framed.index), framed, "index")
    assert index.count == BLOCKS // 16
    assert framed.file.length_bytes < len(image)
    assert told == [at * SMALL.frame_bytes for at in range(1, 26)]


def test_the_first_pack_holds_each_block_once_and_no_zeros(tmp_path: Path) -> None:
    image = old_image() + old_image()[: 50 * BLOCK_BYTES]
    blobs = BlobFolder(tmp_path)
    reuse = reuse_of(image, [], blobs)
    (pack,) = reuse.packs
    assert parse_frames(blobs.read(pack.index), pack, "index").content_bytes == (BLOCKS - 20) * BLOCK_BYTES
    assert Reader(tmp_path).reused(reuse, BLOCKS + 50) == image


def test_a_later_pack_holds_what_no_earlier_release_has(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    images = [old_image()]
    packed = [reuse_of(images[0], [], blobs)]
    for seed in (2, 3, 4):
        images.append(new_image(images[-1], seed))
        held = [earlier(image, reuse, blobs) for image, reuse in zip(images[-2::-1], packed[::-1], strict=True)]
        packed.append(reuse_of(images[-1], held, blobs))
        known = {digest for image in images[:-1] for digest in block_digests(memoryview(image))}
        fresh = {digest for digest in block_digests(memoryview(images[-1])) if digest not in known}
        newest = packed[-1].packs[-1]
        assert parse_frames(blobs.read(newest.index), newest, "index").content_bytes == len(fresh) * BLOCK_BYTES
        assert packed[0].packs[0] in packed[-1].packs
    for image, reuse in zip(images, packed, strict=True):
        assert Reader(tmp_path).reused(reuse, len(image) // BLOCK_BYTES) == image


def test_a_block_that_comes_back_is_not_packed_again(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    first = old_image()
    second = new_image(first)
    one = reuse_of(first, [], blobs)
    two = reuse_of(second, [earlier(first, one, blobs)], blobs)
    three = reuse_of(first, [earlier(second, two, blobs), earlier(first, one, blobs)], blobs)
    assert three.packs == one.packs or set(map(str, three.packs)) == set(map(str, one.packs))


def test_too_many_packs_are_packed_anew(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    noise = old_image()
    image = noise[: 40 * BLOCK_BYTES]
    reuse = reuse_of(image, [], blobs)
    counts = [len(reuse.packs)]
    for step in range(1, MOST_PACKS + 3):
        changed = hashlib.sha256(bytes([step])).digest() * (BLOCK_BYTES // 32)
        following = image[: step * BLOCK_BYTES] + changed + image[(step + 1) * BLOCK_BYTES :]
        reuse = reuse_of(following, [earlier(image, reuse, blobs)], blobs)
        image = following
        counts.append(len(reuse.packs))
        assert Reader(tmp_path).reused(reuse, 40) == image
    assert max(counts) == MOST_PACKS
    assert 1 in counts[1:]


def test_candidates_name_each_block_that_is_not_zeros(tmp_path: Path) -> None:
    image = old_image()
    blobs = BlobFolder(tmp_path)
    reuse = reuse_of(image, [], blobs)
    found = parse_map(blobs.read(reuse.map), reuse, BLOCKS, (), "map")
    short = dict(parse_candidates(blobs.read(reuse.candidates), reuse, found, "candidates").of(found.runs))
    zeros = {block for run in found.runs if run.pack == ZEROS for block in range(run.first, run.first + run.blocks)}
    assert zeros == set(range(100, 120))
    assert short.keys() == set(range(BLOCKS)) - zeros
    for block, digest in short.items():
        content = image[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        assert hashlib.sha256(content).digest().startswith(digest)
        assert len(digest) == 5


@pytest.mark.parametrize("sizes", [None, OperationSizes(8, 16), OperationSizes(1, 1)])
def test_a_delta_makes_the_new_image(tmp_path: Path, sizes: OperationSizes | None) -> None:
    old = old_image()
    new = new_image(old)
    delta = delta_of(old, new, BlobFolder(tmp_path), sizes)
    assert Reader(tmp_path).patched(delta, old, len(new)) == new


def test_a_delta_costs_what_really_is_new(tmp_path: Path) -> None:
    old = old_image()
    new = new_image(old)
    blobs = BlobFolder(tmp_path)
    delta = delta_of(old, new, blobs)
    recipe = parse_recipe(blobs.read(delta.recipe), delta, len(new), "recipe")
    assert delta.payload is not None
    # 9 random blocks, 500 random bytes and 60 changed ones cannot be smaller.
    assert 9 * BLOCK_BYTES + 500 < delta.payload.length_bytes < 9 * BLOCK_BYTES + 2000
    assert (
        sum(copy.blocks for copy in recipe.copies)
        + sum(step.output_bytes for step in recipe.operations) // 4096
        + (sum(run.blocks for run in recipe.zeros))
        == len(new) // BLOCK_BYTES
    )
    assert recipe.memory_bytes == delta.memory_bytes < 16 << 20


def test_a_delta_reads_only_blocks_that_the_new_image_does_not_hold(tmp_path: Path) -> None:
    old = old_image()
    new = new_image(old)
    blobs = BlobFolder(tmp_path)
    delta = delta_of(old, new, blobs)
    recipe = parse_recipe(blobs.read(delta.recipe), delta, len(new), "recipe")
    held = set(block_digests(memoryview(new)))
    digests = block_digests(memoryview(old))
    for step in recipe.operations:
        for run in step.sources:
            assert not held.intersection(digests[run.first : run.first + run.blocks])


def test_a_delta_between_equal_contents_has_no_payload(tmp_path: Path) -> None:
    image = old_image()
    delta = delta_of(image, image, BlobFolder(tmp_path))
    assert delta.payload is None
    assert Reader(tmp_path).patched(delta, image, len(image)) == image


@pytest.mark.parametrize(("old_bytes", "new_bytes"), [(10_000, 9_999), (1, 5_000), (300_001, 299_000), (8192, 1)])
def test_files_may_end_in_the_middle_of_a_block(tmp_path: Path, old_bytes: int, new_bytes: int) -> None:
    old = old_image()[:old_bytes]
    new = (b"header" + old_image())[:new_bytes]
    delta = delta_of(old, new, BlobFolder(tmp_path))
    assert Reader(tmp_path).patched(delta, old, new_bytes) == new


def test_both_codecs_are_used_where_each_is_smaller(tmp_path: Path) -> None:
    old = old_image()
    # Addresses that all moved by as much are what bsdiff is for; zstd is better at what was only moved.
    shifted = bytearray(old[: 8 * BLOCK_BYTES])
    for at in range(0, len(shifted), 41):
        shifted[at] = (shifted[at] + 8) & 255
    new = bytes(shifted) + b"moved" + old[8 * BLOCK_BYTES :]
    new = new[: 16 * BLOCK_BYTES]
    blobs = BlobFolder(tmp_path)
    delta = delta_of(old, new, blobs, OperationSizes(8, 16))
    recipe = parse_recipe(blobs.read(delta.recipe), delta, len(new), "recipe")
    assert Reader(tmp_path).patched(delta, old, len(new)) == new
    assert {step.codec for step in recipe.operations} == set(Codec)


@given(
    old=st.lists(st.integers(0, 5), min_size=1, max_size=30), new=st.lists(st.integers(0, 7), min_size=1, max_size=30)
)
def test_any_blocks_come_out_of_any_others(
    old: list[int], new: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    def image(kinds: list[int]) -> bytes:
        return b"".join(bytes([kind]) * BLOCK_BYTES for kind in kinds)

    folder = tmp_path_factory.mktemp("blobs")
    delta = delta_of(image(old), image(new), BlobFolder(folder), OperationSizes(4, 4))
    assert Reader(folder).patched(delta, image(old), len(new) * BLOCK_BYTES) == image(new)
    reuse = reuse_of(image(new), [], BlobFolder(folder))
    assert Reader(folder).reused(reuse, len(new)) == image(new)


def test_the_same_inputs_make_the_same_bytes(tmp_path: Path) -> None:
    old = old_image()
    new = new_image(old)
    first = delta_of(old, new, BlobFolder(tmp_path / "a"), OperationSizes(8, 16))
    second = delta_of(old, new, BlobFolder(tmp_path / "b"), OperationSizes(8, 16))
    assert first == second
