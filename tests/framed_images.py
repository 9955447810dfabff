"""Small images that resemble one another as releases do, and a plain reader of what they travel in."""

from __future__ import annotations

import random
from pathlib import Path

from updater.format import patch
from updater.format.blockmap import ZEROS, parse_map
from updater.format.frames import parse_frames
from updater.format.recipe import parse_recipe
from updater.format.transport import Delta, Framed, Reuse
from updater.manifest import BLOCK_BYTES
from updater.release.blobs import BlobFolder

BLOCKS = 400


def old_image(seed: int = 1) -> bytes:
    """Return an image of text-like blocks, some of zeros."""
    noise = random.Random(seed)
    words = [noise.randbytes(noise.randrange(3, 12)) for _ in range(4000)]
    content = b"".join(noise.choice(words) for _ in range(BLOCKS * BLOCK_BYTES // 7))[: BLOCKS * BLOCK_BYTES]
    image = bytearray(content.ljust(BLOCKS * BLOCK_BYTES, b"x"))
    image[100 * BLOCK_BYTES : 120 * BLOCK_BYTES] = bytes(20 * BLOCK_BYTES)
    return bytes(image)


def new_image(old: bytes, seed: int = 2) -> bytes:
    """Return the next release: a file that grew, one that moved, one that is new, and bytes changed here and there."""
    noise = random.Random(seed)
    block = BLOCK_BYTES
    grown = old[30 * block : 45 * block] + noise.randbytes(500) + old[45 * block : 60 * block]
    grown = grown.ljust(31 * block, b"\0")
    patched = bytearray(old[150 * block : 200 * block])
    for _ in range(60):
        patched[noise.randrange(len(patched))] ^= 1 + noise.randrange(255)
    parts = [old[: 30 * block], grown, old[60 * block : 150 * block], bytes(patched), noise.randbytes(9 * block)]
    return b"".join(parts) + old[300 * block :] + old[200 * block : 290 * block] + bytes(3 * block)


class Reader:
    """Makes contents from a folder of blobs as simply as the format allows."""

    def __init__(self, folder: Path) -> None:
        """Read the blobs of `folder`."""
        self.blobs = BlobFolder(folder)

    def framed(self, framed: Framed) -> bytes:
        """Return the whole content of a framed file."""
        index = parse_frames(self.blobs.read(framed.index), framed, "index")
        file = self.blobs.read(framed.file)
        frames = [index.frame(number) for number in range(index.count)]
        return b"".join(
            piece
            for frame in frames
            for piece in frame.unpack(frame.prove(file[frame.offset :][: frame.length_bytes], "frames"), "frames")
        )

    def reused(self, reuse: Reuse, blocks: int) -> bytes:
        """Return an image made of packs alone."""
        packs = [self.framed(pack) for pack in reuse.packs]
        sizes = [len(pack) // BLOCK_BYTES for pack in packs]
        found = parse_map(self.blobs.read(reuse.map), reuse, blocks, sizes, "map")
        return b"".join(
            bytes(run.blocks * BLOCK_BYTES)
            if run.pack == ZEROS
            else packs[run.pack - 1][run.at * BLOCK_BYTES : (run.at + run.blocks) * BLOCK_BYTES]
            for run in found.runs
        )

    def patched(self, delta: Delta, old: bytes, length_bytes: int) -> bytes:
        """Return the content that a delta makes of `old`."""
        recipe = parse_recipe(self.blobs.read(delta.recipe), delta, length_bytes, "recipe")
        payload = self.blobs.read(delta.payload) if delta.payload else b""
        old = old.ljust(-(-len(old) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")

        def read(first: int, blocks: int) -> bytes:
            return old[first * BLOCK_BYTES : (first + blocks) * BLOCK_BYTES]

        made = bytearray(recipe.blocks * BLOCK_BYTES)

        def write(first: int, content: bytes) -> None:
            made[first * BLOCK_BYTES : first * BLOCK_BYTES + len(content)] = content

        for copy in recipe.copies:
            write(copy.first, read(copy.source, copy.blocks))
        for step in recipe.operations:
            source = b"".join(read(run.first, run.blocks) for run in step.sources)
            output = patch.apply(step, payload[step.offset :][: step.length_bytes], source, "delta")
            at = 0
            for run in step.outputs:
                write(run.first, output[at : at + run.blocks * BLOCK_BYTES])
                at += run.blocks * BLOCK_BYTES
        return bytes(made[:length_bytes])
