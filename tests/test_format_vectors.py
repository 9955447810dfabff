"""The vectors of format 1 are read for ever, whatever the encoders of today would write."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from tests.framed_images import Reader
from updater.format.blockmap import parse_candidates, parse_map
from updater.format.frames import parse_frames
from updater.format.pins import pins
from updater.format.recipe import Codec, parse_recipe
from updater.format.transport import Transport
from updater.manifest import BLOCK_BYTES
from updater.release.packs import block_digests
from updater.release.transport import Ways

VECTORS = Path(__file__).parent / "vectors"
BLOCKS = 24


def old_content() -> bytes:
    """Return the older content: sparse noise, so that the vectors stay small."""
    noise = random.Random(2026)
    content = bytearray(BLOCKS * BLOCK_BYTES)
    for at in range(0, len(content), 32):
        content[at] = noise.randrange(256)
    content[4 * BLOCK_BYTES : 6 * BLOCK_BYTES] = bytes(2 * BLOCK_BYTES)
    return bytes(content)


def new_content() -> bytes:
    """Return the newer content: blocks kept, blocks moved by some bytes, bytes that all grew, blocks of zeros."""
    old = old_content()
    grown = bytes((byte + 3) & 255 if at % 29 == 0 else byte for at, byte in enumerate(old[6 * BLOCK_BYTES :]))
    moved = b"moved" + old[: 3 * BLOCK_BYTES]
    parts = [old[: 10 * BLOCK_BYTES], moved.ljust(4 * BLOCK_BYTES, b"\0"), grown[: 6 * BLOCK_BYTES]]
    return b"".join(parts) + bytes(2 * BLOCK_BYTES) + old[20 * BLOCK_BYTES :]


def vector() -> Transport:
    """Return the transport of the vectors; its image is the newer content, and its UKI the same without 100 bytes."""
    return msgspec.json.decode((VECTORS / "transport.json").read_bytes(), type=Transport)


READER = Reader(VECTORS / "blobs")


def test_the_vectors_are_complete() -> None:
    wanted = pins(vector())
    assert {at.name: at.stat().st_size for at in (VECTORS / "blobs").iterdir()} == wanted
    assert vector().root.frames is not None
    assert len(vector().root.deltas) == len(vector().uki.deltas) == 1


def test_frames_make_the_content() -> None:
    image, uki = vector().root.frames, vector().uki.frames
    assert image is not None
    assert uki is not None
    assert READER.framed(image) == new_content()
    assert READER.framed(uki) == new_content()[:-100]
    index = parse_frames(READER.blobs.read(image.index), image, "index")
    assert (index.count, index.frame_bytes, index.window_log) == (4, 8 * BLOCK_BYTES, 15)
    assert [len(index.frame(number).chunks) for number in range(index.count)] == [2, 2, 2, 1]


def test_packs_make_the_content() -> None:
    reuse = vector().root.reuse
    assert reuse is not None
    blocks = len(new_content()) // BLOCK_BYTES
    assert len(reuse.packs) == 2
    assert READER.reused(reuse, blocks) == new_content()
    found = parse_map(READER.blobs.read(reuse.map), reuse, blocks, (), "map")
    candidates = parse_candidates(READER.blobs.read(reuse.candidates), reuse, found, "candidates")
    digests = block_digests(memoryview(new_content()))
    assert dict(candidates.of(found.runs)) == {at: digest[:5] for at, digest in enumerate(digests) if digest}


def test_deltas_make_the_content_with_either_codec() -> None:
    (delta,) = vector().root.deltas
    assert READER.patched(delta, old_content(), len(new_content())) == new_content()
    recipe = parse_recipe(READER.blobs.read(delta.recipe), delta, len(new_content()), "recipe")
    assert {step.codec for step in recipe.operations} == set(Codec)
    (delta,) = vector().uki.deltas
    assert READER.patched(delta, old_content()[:-7], len(new_content()) - 100) == new_content()[:-100]


def make_vectors(folder: Path) -> None:
    """Write the vectors anew: only for a new version of the format."""
    from updater.format.transport import FileTransport, ImageTransport
    from updater.release.blobs import BlobFolder
    from updater.release.delta import Content, OperationSizes, make_delta
    from updater.release.frames import Framing, cut, make_framed
    from updater.release.packs import EarlierPacks, make_reuse
    from updater.release.transport import quiet
    from updater.schema import encode_json

    blobs = BlobFolder(folder / "blobs")
    framing = Framing(8 * BLOCK_BYTES, 15, 19, chunk_bytes=1024)
    old, new = Content.of(memoryview(old_content())), Content.of(memoryview(new_content()))
    old_uki, new_uki = Content.of(old.raw[:-7]), Content.of(new.raw[:-100])
    first = make_reuse(old.raw, old.digests, [], blobs, quiet, framing=framing)
    runs = parse_map(blobs.read(first.map), first, BLOCKS, (), "map")
    earlier = EarlierPacks(old.digests, runs, first.packs)
    sizes = OperationSizes(4, 8)
    made = Transport(
        ImageTransport(
            make_framed(cut(new.raw, framing.frame_bytes), len(new.raw), framing, blobs, "frames", quiet),
            make_reuse(new.raw, new.digests, [earlier], blobs, quiet, framing=framing),
            [make_delta(old, new, "ab" * 32, "1.0.0", blobs, quiet, sizes=sizes)],
        ),
        FileTransport(
            make_framed(cut(new_uki.raw, framing.frame_bytes), len(new_uki.raw), framing, blobs, "frames", quiet),
            [make_delta(old_uki, new_uki, "cd" * 32, "1.0.0", blobs, quiet, sizes=sizes)],
        ),
    )
    (folder / "transport.json").write_bytes(encode_json(made))
    for at in (folder / "blobs").iterdir():
        if at.name not in pins(made):
            at.unlink()


def test_the_default_ways_fit_the_limits_of_the_format() -> None:
    ways = Ways()
    from updater.format.frames import MOST_FRAME_BYTES
    from updater.format.recipe import MOST_OUTPUT_BYTES, MOST_SOURCE_BYTES

    assert ways.framing.frame_bytes <= MOST_FRAME_BYTES
    assert ways.sizes.output_blocks * BLOCK_BYTES <= MOST_OUTPUT_BYTES
    assert ways.sizes.source_blocks * BLOCK_BYTES <= MOST_SOURCE_BYTES
