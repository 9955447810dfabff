"""An image beyond 4 GiB, nearly all of it zeros: positions that 32 bits cannot hold, and memory that stays small."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disks import UUID_TEXT, root_of, slot_of
from updater.fetch import Fetcher
from updater.fill.filler import Filler
from updater.fill.source_slot import SourceSlot
from updater.format.blockmap import ZEROS, BlockMap, Candidates, Placed, encode_candidates, encode_map
from updater.format.patch import encode_zstd
from updater.format.recipe import Codec, Copy, Operation, Recipe, Run, encode_recipe
from updater.format.transport import Delta, Framed, ImageTransport, Reuse
from updater.manifest import BLOCK_BYTES, Root
from updater.partition import FileBlocks
from updater.release.blobs import BlobFolder
from updater.release.frames import Framing, make_framed
from updater.repository import RepositoryImage
from updater.verity import DIGEST_BYTES, Hasher
from updater.ways import Choice, Way

MIB, GIB = 1 << 20, 1 << 30
LENGTH = 5 * GIB
BLOCKS = LENGTH // BLOCK_BYTES
BEYOND = 4 * GIB // BLOCK_BYTES
SALT = b"\x5a" * 32
# Where the image is not zeros: at its start, across the 4 GiB mark, and at its very end.
RUNS = (Run(0, 4), Run(BEYOND - 2, 4), Run(BLOCKS - 300, 300))
FRAME = 256 << 20


@dataclass(frozen=True)
class Large:
    """The image, its tree's upper part as mirrors serve it, and how it travels."""

    folder: Path
    old: bytes
    content: dict[int, bytes]
    root: Root
    transport: ImageTransport


def _tree(content: dict[int, bytes]) -> tuple[bytes, str]:
    """Return (tree, root hash) without hashing five GiB: a block of zeros has a digest that is known."""
    hasher = Hasher(SALT)
    digests = bytearray(hasher.of_zeros * BLOCKS)
    for block, raw in content.items():
        digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = hasher.digests(raw)
    levels = []
    level = bytes(digests)
    while len(level) > DIGEST_BYTES:
        levels.append(level.ljust(-(-len(level) // BLOCK_BYTES) * BLOCK_BYTES, b"\0"))
        level = hasher.digests(levels[-1])
    return b"".join(reversed(levels)), level.hex()


def _pieces(content: dict[int, bytes]) -> Iterator[bytes]:
    zeros = bytes(FRAME)
    for at in range(0, LENGTH, FRAME):
        first, last = at // BLOCK_BYTES, (at + FRAME) // BLOCK_BYTES
        here = {block: raw for block, raw in content.items() if first <= block < last}
        if not here:
            yield zeros
            continue
        piece = bytearray(zeros)
        for block, raw in here.items():
            piece[(block - first) * BLOCK_BYTES : (block - first + 1) * BLOCK_BYTES] = raw
        yield bytes(piece)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    folder = tmp_path_factory.mktemp("large")
    draw = random.Random(1)
    old = draw.randbytes(200 * BLOCK_BYTES)
    blocks = [block for run in RUNS for block in range(run.first, run.first + run.blocks)]
    content = {block: draw.randbytes(BLOCK_BYTES) for block in blocks}
    # A hundred blocks of the last run are the old image's.
    for number in range(100):
        content[BLOCKS - 250 + number] = old[(50 + number) * BLOCK_BYTES :][:BLOCK_BYTES]
    tree, root_hash = _tree(content)
    root = Root(LENGTH, len(tree), root_hash, SALT.hex(), UUID_TEXT)
    (folder / "images" / root_hash).mkdir(parents=True)
    (folder / "images" / root_hash / "tree").write_bytes(tree)
    blobs = BlobFolder(folder / "made")
    transport = ImageTransport(_frames(content, blobs), _reuse(content, blobs), [_delta(old, content, blobs)])
    for made in (folder / "made").iterdir():
        place = folder / "blobs" / made.name[:2]
        place.mkdir(parents=True, exist_ok=True)
        made.rename(place / made.name)
    return Large(folder, old, content, root, transport)


def _frames(content: dict[int, bytes], blobs: BlobFolder) -> Framed:
    return make_framed(_pieces(content), LENGTH, Framing(FRAME, 20, 1), blobs, "frames", lambda *told: None)


def _reuse(content: dict[int, bytes], blobs: BlobFolder) -> Reuse:
    raw = b"".join(content.values())
    pack = make_framed([raw], len(raw), Framing(2 << 20, 20, 1), blobs, "pack", lambda *told: None)
    runs, at, first = [], 0, 0
    for run in RUNS:
        if run.first > first:
            runs.append(Placed(first, run.first - first, ZEROS, 0))
        runs.append(Placed(run.first, run.blocks, 1, at))
        at, first = at + run.blocks, run.first + run.blocks
    shorts = b"".join(hashlib.sha256(block).digest()[:5] for block in content.values())
    return Reuse(
        blobs.put_index(encode_map(BlockMap(BLOCKS, tuple(runs))), packed=False),
        blobs.put_index(encode_candidates(Candidates(5, shorts)), packed=False),
        [pack],
    )


def _delta(old: bytes, content: dict[int, bytes], blobs: BlobFolder) -> Delta:
    outputs = (RUNS[0], RUNS[1], Run(BLOCKS - 300, 50), Run(BLOCKS - 150, 150))
    output = b"".join(content[block] for run in outputs for block in range(run.first, run.first + run.blocks))
    sources = (Run(0, 10),)
    payload = encode_zstd(old[: 10 * BLOCK_BYTES], output, 1)
    operation = Operation(
        0,
        Codec.ZSTD,
        0,
        len(payload),
        hashlib.sha256(payload).digest(),
        hashlib.sha256(output).digest(),
        outputs,
        sources,
    )
    zeros = (Run(4, BEYOND - 6), Run(BEYOND + 2, BLOCKS - 300 - BEYOND - 2))
    recipe = Recipe(LENGTH, len(old), (Copy(BLOCKS - 250, 100, 50),), zeros, (operation,))
    table = blobs.put_index(encode_recipe(recipe), packed=False)
    return Delta(root_of(old)[0].root_hash, "1.0.0", table, blobs.put([payload]), recipe.memory_bytes)


@pytest.mark.parametrize("way", [Way.DELTA, Way.REUSE])
def test_an_image_beyond_four_gib_is_planned_and_filled(large: Large, tmp_path: Path, way: Way) -> None:
    for name, length in (("data", LENGTH), ("hashes", BLOCK_BYTES + large.root.tree_length_bytes)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(length)
    fetcher = Fetcher([str(large.folder)])
    root, tree = root_of(large.old)
    running = SourceSlot(*slot_of(large.old, root, tree), root)
    with (
        FileBlocks(tmp_path / "data", writable=True) as data,
        FileBlocks(tmp_path / "hashes", writable=True) as hashes,
    ):
        sources = [RepositoryImage(fetcher, large.root)]
        filler = Filler(
            fetcher, sources, large.root, large.transport, source_slot=running, barred={}, what="release 2.0.0"
        )
        costs = {cost.way: cost for cost in filler.work_out(data, hashes, thorough=True)}
        done = filler.fill(data, hashes, Choice((way,), ""), on_barred=lambda way, error: None)
        assert (done.ways, done.requests) == ((way,), 0)
        for block, raw in large.content.items():
            assert data.read(block * BLOCK_BYTES, BLOCK_BYTES) == raw, block
    # Zeros cost nothing: neither bytes to write nor room on the disk.
    assert done.written_bytes < 2 * len(large.content) * BLOCK_BYTES + large.root.tree_length_bytes + MIB
    assert (tmp_path / "data").stat().st_blocks * 512 < 64 * MIB
    assert costs[way].fetch_bytes < 4 * MIB
    # What each way says that it needs does not grow with the image, but for the tables of reuse.
    assert costs[Way.DELTA].memory_bytes < 64 * MIB
    assert costs[Way.FULL].memory_bytes < 64 * MIB
    assert costs[Way.REUSE].memory_bytes < 64 * MIB + 24 * BLOCKS
