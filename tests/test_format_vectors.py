"""The vectors of format 1 are read for ever, whatever the encoders of today would write."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import msgspec
import pytest

from tests import ukis
from tests.framed_images import Reader
from updater.format.blockmap import parse_candidates, parse_map
from updater.format.frames import parse_frames
from updater.format.pins import pins
from updater.format.recipe import Codec, parse_recipe
from updater.format.through import library, packed, unpacked_length, write_unpacked
from updater.format.transport import Delta, FrameWithin, Packing, Through, Transport
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


HEAD, MIDDLE, END = b"head" * 40, b"between" * 9, b"end"


def plain_file(new: bool) -> bytes:
    """Return the unpacked form of the file before or after."""
    content = (new_content if new else old_content)()
    return HEAD + content[: 8 * BLOCK_BYTES] + MIDDLE + content[8 * BLOCK_BYTES :] + END


def through_delta() -> Delta:
    """Return the delta of `through.json`: from `through.old` to `through.new`, through their unpacked forms."""
    (delta,) = through_vector().uki.deltas
    return delta


def through_vector() -> Transport:
    """Return the transport of the vector whose delta goes through unpacked forms."""
    return msgspec.json.decode((VECTORS / "through.json").read_bytes(), type=Transport)


READER = Reader(VECTORS / "blobs")


def test_the_vectors_are_complete() -> None:
    wanted = pins(vector()) | pins(through_vector())
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


def test_a_delta_through_the_unpacked_form_makes_the_unpacked_form() -> None:
    delta, old = through_delta(), (VECTORS / "through.old").read_bytes()
    through = delta.through
    assert through is not None
    assert delta.source == hashlib.sha256(old).hexdigest()
    assert unpacked_length(through.source, len(old), "old") == len(plain_file(new=False))
    unpacked = io.BytesIO()
    write_unpacked(io.BytesIO(old), len(old), through.source, unpacked, "old")
    assert unpacked.getvalue() == plain_file(new=False)
    assert through.content_bytes == len(plain_file(new=True))
    assert READER.patched(delta, unpacked.getvalue(), through.content_bytes) == plain_file(new=True)
    assert [(packing.worker, packing.sized) for packing in through.content] == [(False, False), (True, True)]


def test_the_library_that_is_named_packs_the_very_file() -> None:
    through = through_delta().through
    assert through is not None
    if through.library != library():
        pytest.skip(f"the vector names {through.library}, and {library()} is here: other versions may pack differently")
    made = b"".join(packed([plain_file(new=True)], through, "new"))
    assert made == (VECTORS / "through.new").read_bytes()


def make_through_vector(folder: Path) -> None:
    """Write the vector of the unpacked form anew: only for a new version of the format."""
    from updater.format.through import memory_bytes
    from updater.format.transport import FileTransport
    from updater.release.blobs import BlobFolder
    from updater.release.delta import Content, OperationSizes, make_delta
    from updater.release.transport import quiet
    from updater.schema import encode_json

    content = new_content()
    cut = 8 * BLOCK_BYTES
    first = Packing(len(HEAD), cut, 3, worker=False, checksum=True, sized=False)
    second_at = len(HEAD) + cut + len(MIDDLE)
    second = Packing(second_at, len(content) - cut, 9, worker=True, checksum=False, sized=True)
    old_frames = [ukis.frame(part, ukis.KERNEL) for part in (old_content()[:cut], old_content()[cut:])]
    new_frames = [ukis.frame(content[:cut], first), ukis.frame(content[cut:], second)]
    (folder / "through.old").write_bytes(HEAD + old_frames[0] + MIDDLE + old_frames[1] + END)
    (folder / "through.new").write_bytes(HEAD + new_frames[0] + MIDDLE + new_frames[1] + END)
    source = [
        FrameWithin(len(HEAD), len(old_frames[0]), cut),
        FrameWithin(len(HEAD) + len(old_frames[0]) + len(MIDDLE), len(old_frames[1]), len(old_content()) - cut),
    ]
    before, after = (Content.of(memoryview(plain_file(new=new))) for new in (False, True))
    blobs = BlobFolder(folder / "blobs")
    digest = hashlib.sha256((folder / "through.old").read_bytes()).hexdigest()
    delta = make_delta(before, after, digest, "1.0.0", blobs, quiet, sizes=OperationSizes(4, 8))
    through = Through(library(), len(after.raw), source, [first, second])
    needed = memory_bytes(through, delta.memory_bytes)
    delta = msgspec.structs.replace(delta, through=through, memory_bytes=needed)
    (folder / "through.json").write_bytes(encode_json(Transport(uki=FileTransport(deltas=[delta]))))


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
        if at.name not in pins(made) | pins(through_vector()):
            at.unlink()


def test_the_default_ways_fit_the_limits_of_the_format() -> None:
    ways = Ways()
    from updater.format.frames import MOST_FRAME_BYTES
    from updater.format.recipe import MOST_OUTPUT_BYTES, MOST_SOURCE_BYTES

    assert ways.framing.frame_bytes <= MOST_FRAME_BYTES
    assert ways.sizes.output_blocks * BLOCK_BYTES <= MOST_OUTPUT_BYTES
    assert ways.sizes.source_blocks * BLOCK_BYTES <= MOST_SOURCE_BYTES
