"""Pairs of images with all that the release tools make of them, in a repository's folder, at a size for tests."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.disks import MemoryBlocks, empty_slot, image_of, root_of, slot_of
from updater.blocks import Blocks
from updater.fetch import Fetcher, Retries, Timeouts
from updater.fill.filler import Filler
from updater.fill.source_slot import SourceSlot
from updater.format.blockmap import parse_map
from updater.format.transport import ImageTransport
from updater.manifest import BLOCK_BYTES, Root
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, OperationSizes, make_delta
from updater.release.frames import Framing, cut, make_framed
from updater.release.packs import EarlierPacks, make_reuse
from updater.repository import RepositoryImage
from updater.ways import Way

FRAMES = Framing(200 * BLOCK_BYTES, 20, 1)
PACKS = Framing(16 * BLOCK_BYTES, 16, 1)
SIZES = OperationSizes(12, 24)


@dataclass(frozen=True)
class Cuts:
    """How long frames and operations are."""

    frames: Framing = FRAMES
    packs: Framing = PACKS
    operations: OperationSizes = SIZES


@dataclass(frozen=True)
class Image:
    """An image, its tree and how it travels."""

    content: bytes
    root: Root
    tree: bytes
    transport: ImageTransport


def old_and_new(seed: int = 3, blocks: int = 1500) -> tuple[bytes, bytes]:
    """Return an image and its successor: blocks in place, moved, changed by some bytes, new, doubled, and zeros."""
    draw = random.Random(seed)
    old = bytearray(image_of(blocks, seed=seed))
    if blocks < 1500:
        new = bytearray(old)
        new[-1] ^= 1
        return bytes(old), bytes(new)
    old[40 * BLOCK_BYTES : 90 * BLOCK_BYTES] = bytes(50 * BLOCK_BYTES)
    old[700 * BLOCK_BYTES : 970 * BLOCK_BYTES] = bytes(270 * BLOCK_BYTES)
    new = bytearray(old)
    # Everything from here on moves by three blocks.
    new[1000 * BLOCK_BYTES :] = draw.randbytes(3 * BLOCK_BYTES) + bytes(old[1000 * BLOCK_BYTES : -3 * BLOCK_BYTES])
    for block in (*range(200, 240), *range(500, 503), 1300, blocks - 1):
        at = block * BLOCK_BYTES + draw.randrange(4000)
        new[at : at + 9] = draw.randbytes(9)
    new[300 * BLOCK_BYTES : 310 * BLOCK_BYTES] = bytes(10 * BLOCK_BYTES)
    new[45 * BLOCK_BYTES : 47 * BLOCK_BYTES] = new[600 * BLOCK_BYTES : 602 * BLOCK_BYTES]
    new[1100 * BLOCK_BYTES : 1108 * BLOCK_BYTES] = draw.randbytes(4 * BLOCK_BYTES) * 2
    return bytes(old), bytes(new)


class Repository:
    """A folder with two releases' images as a publisher lays them out."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 3,
        blocks: int = 1500,
        pair: tuple[bytes, bytes] | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        """Make both images, those of `pair` if it is given, and everything about them."""
        self.folder = folder
        self._cuts = cuts or Cuts()
        old, new = pair or old_and_new(seed, blocks)
        self._blobs = BlobFolder(folder / "made")
        self.old = self._image(old, None)
        self.new = self._image(new, self.old)
        for made in (folder / "made").iterdir():
            place = folder / "blobs" / made.name[:2]
            place.mkdir(parents=True, exist_ok=True)
            made.rename(place / made.name)

    def _image(self, content: bytes, before: Image | None) -> Image:
        root, tree = root_of(content, salt="5a" * 32 if before is None else "c3" * 32)
        place = self.folder / "images" / root.root_hash
        place.mkdir(parents=True)
        (place / "data").write_bytes(content)
        (place / "tree").write_bytes(tree)
        sides = Content.of(memoryview(content))
        earlier: list[EarlierPacks] = []
        deltas = []
        if before is not None:
            old = Content.of(memoryview(before.content))
            reuse = before.transport.reuse
            assert reuse is not None
            blockmap = parse_map(self._blobs.read(reuse.map), reuse, len(old.digests), (), "map")
            earlier = [EarlierPacks(old.digests, blockmap, reuse.packs)]
            deltas = [
                make_delta(old, sides, before.root.root_hash, "1.0.0", self._blobs, _quiet, sizes=self._cuts.operations)
            ]
        framing = self._cuts.frames
        frames = make_framed(cut(sides.raw, framing.frame_bytes), len(content), framing, self._blobs, "frames", _quiet)
        packs = make_reuse(sides.raw, sides.digests, earlier, self._blobs, _quiet, framing=self._cuts.packs)
        return Image(content, root, tree, ImageTransport(frames, packs, deltas))

    def fetcher(self, *addresses: str) -> Fetcher:
        """Return a fetcher for the folder itself, or for servers that serve it."""
        return Fetcher(
            addresses or (str(self.folder),),
            timeouts=Timeouts(connect_s=60, stall_s=60),
            retries=Retries(attempts=2),
            sleep=lambda seconds: None,
        )

    def running(self) -> SourceSlot:
        """Return a slot that holds the old image."""
        return SourceSlot(*self.running_blocks(), self.old.root)

    def running_blocks(self) -> tuple[MemoryBlocks, MemoryBlocks]:
        """Return the partitions of a slot that holds the old image."""
        data, hashes = slot_of(self.old.content, self.old.root, self.old.tree)
        data.name, hashes.name = "slot a data", "slot a hashes"
        return data, hashes

    def wiped(self) -> tuple[MemoryBlocks, MemoryBlocks]:
        """Return a slot of zeros."""
        return empty_slot(self.new.root)

    def filler(
        self,
        source: SourceSlot | None,
        *,
        only: Way | None = None,
        fetcher: Fetcher | None = None,
        transport: ImageTransport | None = None,
    ) -> Filler:
        """Return what fills a slot with the new image; with `only`, all other compressed ways are missing."""
        way = transport or self.new.transport
        if only is not None:
            way = ImageTransport(
                frames=way.frames if only is Way.FULL else None,
                reuse=way.reuse if only is Way.REUSE else None,
                deltas=way.deltas if only is Way.DELTA else [],
            )
        used = fetcher or self.fetcher()
        sources = [RepositoryImage(alone, self.new.root) for alone in used.per_mirror()]
        return Filler(used, sources, self.new.root, way, source_slot=source, barred={}, what="release 2.0.0")


def filled(data: Blocks, hashes: Blocks, image: Image) -> bool:
    """Tell whether a slot holds an image and its tree to the last byte."""
    from updater.verity import superblock

    found = data.read(0, len(image.content)), hashes.read(0, BLOCK_BYTES + len(image.tree))
    return found == (image.content, superblock(image.root) + image.tree)


def _quiet(what: str, done_bytes: int, total_bytes: int) -> None:
    """Say nothing."""
