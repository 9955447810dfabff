"""Packs: the blocks that no earlier kept release has, framed for ranges, and the map of all blocks of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from updater.format.blockmap import (
    ZEROS,
    BlockMap,
    Candidates,
    Placed,
    encode_candidates,
    encode_map,
)
from updater.format.transport import Framed, Reuse
from updater.manifest import BLOCK_BYTES
from updater.release.blobs import BlobFolder
from updater.release.frames import PACK, Framing, Progress, make_framed

DIGEST_BYTES = 5
MOST_PACKS = 12
# Above this much content a pack is one that hardly any node reads, and takes minutes at the highest level.
_LARGE_PACK_BYTES = 192 << 20
_LARGE_PACK_LEVEL = 9
_ZERO_BLOCK = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class EarlierPacks:
    """An earlier kept release: its image's blocks by digest, its map and its packs."""

    digests: Sequence[bytes]
    blockmap: BlockMap
    packs: Sequence[Framed]


def block_digests(image: memoryview) -> list[bytes]:
    """Return the SHA-256 of each block; empty for a block of zeros."""
    found: list[bytes] = []
    zeros = hashlib.sha256(_ZERO_BLOCK).digest()
    for at in range(0, len(image), BLOCK_BYTES):
        digest = hashlib.sha256(image[at : at + BLOCK_BYTES]).digest()
        found.append(b"" if digest == zeros else digest)
    return found


def make_reuse(
    image: memoryview,
    digests: Sequence[bytes],
    earlier: Sequence[EarlierPacks],
    blobs: BlobFolder,
    progress: Progress,
    *,
    framing: Framing = PACK,
) -> Reuse:
    """Pack the blocks of `image` that no earlier release has; return the pins of map, candidates and packs.

    `earlier` is ordered from the newest release on. When more than 12 packs were needed, all blocks are packed anew.
    """
    packs: list[Framed] = []
    numbers: dict[str, int] = {}
    held: dict[bytes, tuple[int, int]] = {}
    wanted = set(digests)
    for release in earlier:
        for run in release.blockmap.runs:
            if run.pack == ZEROS:
                continue
            pack = release.packs[run.pack - 1]
            for index in range(run.blocks):
                digest = release.digests[run.first + index]
                if digest not in wanted or digest in held:
                    continue
                if pack.file.sha256 not in numbers:
                    packs.append(pack)
                    numbers[pack.file.sha256] = len(packs)
                held[digest] = (numbers[pack.file.sha256], run.at + index)
    if len(packs) >= MOST_PACKS:
        packs, held = [], {}
    fresh: list[int] = []
    number = len(packs) + 1
    for block, digest in enumerate(digests):
        if digest and digest not in held:
            held[digest] = (number, len(fresh))
            fresh.append(block)
    if fresh:
        length = len(fresh) * BLOCK_BYTES
        if length > _LARGE_PACK_BYTES:
            framing = replace(framing, level=min(framing.level, _LARGE_PACK_LEVEL))
        pieces = _gathered(image, fresh, framing.frame_bytes // BLOCK_BYTES)
        packs.append(make_framed(pieces, length, framing, blobs, "pack", progress))
    blockmap = BlockMap(len(digests), tuple(_placed(digests, held)))
    short = b"".join(digest[:DIGEST_BYTES] for digest in digests)
    return Reuse(
        blobs.put_index(encode_map(blockmap), packed=True),
        blobs.put_index(encode_candidates(Candidates(DIGEST_BYTES, short)), packed=False),
        packs,
    )


def _gathered(image: memoryview, blocks: Sequence[int], count: int) -> Iterator[bytes]:
    for at in range(0, len(blocks), count):
        yield b"".join(image[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] for block in blocks[at : at + count])


def _placed(digests: Sequence[bytes], held: dict[bytes, tuple[int, int]]) -> Iterator[Placed]:
    run: Placed | None = None
    for block, digest in enumerate(digests):
        pack, at = held[digest] if digest else (ZEROS, 0)
        if run is not None and run.pack == pack and (pack == ZEROS or run.at + run.blocks == at):
            run = Placed(run.first, run.blocks + 1, pack, run.at)
            continue
        if run is not None:
            yield run
        run = Placed(block, 1, pack, at)
    if run is not None:
        yield run
