"""The block map: in which pack each block of an image lies, and the short digests that find blocks already held."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import eq
from typing import NamedTuple, overload

from updater.format.columns import Reader, encoded, opened
from updater.format.transport import Reuse
from updater.manifest import BLOCK_BYTES

MAP_MAGIC = b"ACLMAP\x00\x01"
CANDIDATES_MAGIC = b"ACLCND\x00\x01"
MOST_BLOCKS = (1 << 32) - 2
ZEROS = 0
"""The pack number of blocks of zeros, which lie nowhere; pack n of the manifest's list has number n + 1."""


class Placed(NamedTuple):
    """A run of image blocks from `first` on: blocks `at` onwards of `pack`, or zeros."""

    first: int
    blocks: int
    pack: int
    at: int


class Runs(Sequence[Placed]):
    """Runs of a whole image, in 12 bytes each: an image may have as many as blocks."""

    def __init__(self, packs: array[int], at: array[int], lengths: Iterable[int]) -> None:
        """Take the columns of a map, equally long."""
        self._firsts = array("I", accumulate(lengths, initial=0))
        self._packs = packs
        self._at = at

    def __len__(self) -> int:
        return len(self._packs)

    @overload
    def __getitem__(self, index: int) -> Placed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Placed]: ...
    def __getitem__(self, index: int | slice) -> Placed | list[Placed]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        first = self._firsts[at]
        return Placed(first, self._firsts[at + 1] - first, self._packs[at], self._at[at])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class BlockMap:
    """The runs of an image in image order, without a gap."""

    blocks: int
    runs: Sequence[Placed]

    def within(self, first: int, count: int) -> Iterator[Placed]:
        """Yield the runs of the image blocks `first` to `first + count`, cut to them."""
        start = bisect_right(self.runs, first, key=lambda run: run.first) - 1
        for index in range(max(0, start), len(self.runs)):
            run = self.runs[index]
            if run.first >= first + count:
                return
            low, high = max(run.first, first), min(run.first + run.blocks, first + count)
            if low < high:
                yield Placed(low, high - low, run.pack, run.at + (low - run.first) if run.pack != ZEROS else 0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The first `digest_bytes` bytes of the unsalted SHA-256 of each image block that is not zeros, in image order."""

    digest_bytes: int
    digests: bytes

    def of(self, placed: Iterable[Placed]) -> Iterator[tuple[int, bytes]]:
        """Yield (image block, short digest) over the runs of the whole map, zeros left out."""
        at, size = 0, self.digest_bytes
        for run in placed:
            if run.pack == ZEROS:
                continue
            for block in range(run.first, run.first + run.blocks):
                yield block, self.digests[at : at + size]
                at += size


def parse_map(raw: bytes, reuse: Reuse, blocks: int, pack_blocks: Sequence[int], what: str) -> BlockMap:
    """Return the map of an image of `blocks` blocks; `pack_blocks` are the packs' lengths in blocks, if known.

    With an empty `pack_blocks` positions are not checked: check them before a pack is read. Raises Untrusted
    (`wrong-bytes`) or InvalidDocument.
    """
    table = Reader(opened(raw, reuse.map, what), what, MAP_MAGIC)
    if table.number(1, MOST_BLOCKS, "the number of blocks") != blocks:
        raise table.malformed(f"it is not the map of an image of {blocks} blocks")
    count = table.number(1, blocks, "the number of runs")
    packs, at, lengths = (table.column(count) for _ in range(3))
    table.end()
    first = 0
    for pack, start, length in zip(packs, at, lengths, strict=True):
        if pack > len(reuse.packs) or not length or (pack == ZEROS and start):
            raise table.malformed(f"its run at block {first} is malformed")
        if pack_blocks and pack != ZEROS and start + length > pack_blocks[pack - 1]:
            raise table.malformed(f"its run at block {first} leaves pack {pack - 1}")
        first += length
    if first != blocks:
        raise table.malformed(f"its runs have {first} blocks, and the image {blocks}")
    return BlockMap(blocks, Runs(packs, at, lengths))


def encode_map(blockmap: BlockMap) -> bytes:
    """Return the table of a map."""
    runs = blockmap.runs
    return encoded(
        MAP_MAGIC,
        (blockmap.blocks, len(runs)),
        ([run.pack for run in runs], [run.at for run in runs], [run.blocks for run in runs]),
    )


def parse_candidates(raw: bytes, reuse: Reuse, blockmap: BlockMap, what: str) -> Candidates:
    """Return the candidates of a map; raise Untrusted (`wrong-bytes`) or InvalidDocument."""
    table = Reader(opened(raw, reuse.candidates, what), what, CANDIDATES_MAGIC)
    size = table.number(4, 8, "the digests' length")
    count = sum(run.blocks for run in blockmap.runs if run.pack != ZEROS)
    digests = table.octets(count * size)
    table.end()
    return Candidates(size, digests)


def encode_candidates(candidates: Candidates) -> bytes:
    """Return the table of candidates."""
    return encoded(CANDIDATES_MAGIC, (candidates.digest_bytes,), (candidates.digests,))


def content_range(run: Placed) -> tuple[int, int]:
    """Return (offset, length) in bytes of a run in its pack's content."""
    return run.at * BLOCK_BYTES, run.blocks * BLOCK_BYTES
