"""The reuse way: blocks that the slots hold already, found by short digests, and the others from packs."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from updater.blocks import paged
from updater.errors import InvalidDocument
from updater.fetch import Fetcher
from updater.fill.framed import FRAME_BYTES_AHEAD, Located, fetch_frames, frame_spans
from updater.fill.landing import Landing, State
from updater.fill.pipeline import Pipeline
from updater.fill.source_slot import SourceSlot
from updater.fill.ways import fetch_index, most_written
from updater.format.blockmap import ZEROS, BlockMap, Candidates, Placed, parse_candidates, parse_map
from updater.format.frames import Frame, FrameIndex, parse_frames
from updater.format.transport import Framed, Reuse
from updater.manifest import BLOCK_BYTES
from updater.prefetch import most_held_bytes
from updater.verity import GROUP_BLOCKS, READ_BYTES
from updater.ways import Cost, Way

INDEX_BYTES_A_BLOCK = 24
"""What looking for blocks takes for each: 20, and the runs of the map."""

_IN_PLACE = _NOT_SOUGHT = 0xFFFFFFFF


class _Piece(NamedTuple):
    """A frame of a pack, and the runs of wanted blocks that begin or go on in it."""

    pack: int
    frame: Frame
    runs: tuple[Placed, ...]


class ReuseWay:
    """Blocks of the slots, and packs.

    Short digests only select: a group is written when it proves, so that a digest that two blocks share costs a fetch
    and never a wrong block. What only the other slot holds at another place counts as fetched: it would be overwritten
    before it is read.
    """

    way = Way.REUSE

    def __init__(self, fetcher: Fetcher, reuse: Reuse, source: SourceSlot | None, image_bytes: int, what: str) -> None:
        """Take the packs of an image of `image_bytes` bytes, and the running slot if it can be read."""
        self._fetcher = fetcher
        self._reuse = reuse
        self._source = source
        self._blocks = image_bytes // BLOCK_BYTES
        self._what = what
        self._map: BlockMap | None = None
        self._held: array[int] = array("I")
        self._indexes: dict[int, FrameIndex] = {}

    @property
    def least_bytes(self) -> int:
        """Return what the indexes alone take."""
        return self._reuse.map.length_bytes + self._reuse.candidates.length_bytes

    def cost(self, landing: Landing) -> Cost:
        """Fetch the map and the candidates, look for every missing block in the slots, and add up the rest."""
        groups = landing.missing()
        pieces = self._pieces(landing, groups)
        wanted = list(frame_spans(self._located(pieces)))
        indexes = sum(self._framed(pack).index.length_bytes for pack in self._indexes)
        largest = max((index.memory_bytes for index in self._indexes.values()), default=0)
        return Cost(
            self.way,
            fetch_bytes=self.least_bytes + indexes + sum(span.length for span in wanted),
            write_bytes=most_written(landing, groups),
            requests=2 + len(self._indexes) + len(wanted),
            memory_bytes=largest
            + most_held_bytes(wanted, FRAME_BYTES_AHEAD)
            + Pipeline.memory_bytes
            + 30 * self._blocks,
        )

    def fill(self, landing: Landing, pipeline: Pipeline) -> None:
        """Write the fetched blocks, each frame proven by its hash; then bring the groups together and prove them.

        Killed in between, the next run finds what was fetched in its place.
        """
        groups = landing.missing()
        pieces = self._pieces(landing, groups)
        with closing(fetch_frames(self._fetcher, list(self._located(pieces)))) as arriving:
            for piece, (frame, chunks) in zip(pieces, arriving, strict=True):
                content = b"".join(frame.unpack(chunks, f"{self._what}, pack {piece.pack - 1}"))
                for run in piece.runs:
                    low = run.at * BLOCK_BYTES - frame.content_offset
                    landing.write_blocks(run.first, content[low : low + run.blocks * BLOCK_BYTES])
        for group in groups:
            self._assemble(landing, group, pipeline.room(group))
            pipeline.filled(group)

    def _assemble(self, landing: Landing, group: int, content: memoryview) -> None:
        """Bring a group's blocks together: those in place from the slot itself, the others from the running slot."""
        assert self._map is not None
        first, count = group * GROUP_BLOCKS, landing.blocks_of(group)
        landing.held_into(group, content)
        for run in self._map.within(first, count):
            if run.pack == ZEROS:
                low = (run.first - first) * BLOCK_BYTES
                content[low : low + run.blocks * BLOCK_BYTES] = bytes(run.blocks * BLOCK_BYTES)
        for block, source, length in self._copies(first, count):
            assert self._source is not None
            low = (block - first) * BLOCK_BYTES
            self._source.read_into(source, content[low : low + length * BLOCK_BYTES])

    def _copies(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block, source block, count) of what the running slot holds of a run."""
        at = first
        while at < first + count:
            held = self._held[at]
            if held in (0, _IN_PLACE):
                at += 1
                continue
            end = at + 1
            while end < first + count and self._held[end] == held + end - at:
                end += 1
            yield at, held - 1, end - at
            at = end

    def _pieces(self, landing: Landing, groups: list[int]) -> list[_Piece]:
        """Return the frames that hold what no slot does, in the packs' order."""
        blockmap = self._looked_up(landing, groups)
        wanted = sorted(self._wanted(landing, blockmap, groups), key=lambda run: (run.pack, run.at))
        found: dict[tuple[int, int], tuple[Frame, list[Placed]]] = {}
        for run in wanted:
            index = self._index(run.pack)
            if (run.at + run.blocks) * BLOCK_BYTES > index.content_bytes:
                raise InvalidDocument(self._what, "", f"its map leaves pack {run.pack - 1}", "publish the release anew")
            for frame in index.covering(run.at * BLOCK_BYTES, run.blocks * BLOCK_BYTES):
                low = max(run.at, frame.content_offset // BLOCK_BYTES)
                high = min(run.at + run.blocks, (frame.content_offset + frame.content_bytes) // BLOCK_BYTES)
                part = Placed(run.first + low - run.at, high - low, run.pack, low)
                found.setdefault((run.pack, frame.number), (frame, []))[1].append(part)
        return [_Piece(pack, frame, tuple(runs)) for (pack, _), (frame, runs) in found.items()]

    def _wanted(self, landing: Landing, blockmap: BlockMap, groups: Iterable[int]) -> Iterator[Placed]:
        for group in groups:
            for run in blockmap.within(group * GROUP_BLOCKS, landing.blocks_of(group)):
                if run.pack == ZEROS:
                    continue
                start = run.first
                for block in range(run.first, run.first + run.blocks + 1):
                    if block == run.first + run.blocks or self._held[block]:
                        if block > start:
                            yield Placed(start, block - start, run.pack, run.at + start - run.first)
                        start = block + 1

    def _looked_up(self, landing: Landing, groups: list[int]) -> BlockMap:
        if self._map is None:
            what = f"{self._what}, block map"
            blockmap = parse_map(fetch_index(self._fetcher, self._reuse.map), self._reuse, self._blocks, (), what)
            raw = fetch_index(self._fetcher, self._reuse.candidates)
            candidates = parse_candidates(raw, self._reuse, blockmap, f"{self._what}, candidates")
            self._held = find_held(blockmap, candidates, landing, groups, self._source)
            self._map = blockmap
        return self._map

    def _index(self, pack: int) -> FrameIndex:
        if pack not in self._indexes:
            framed = self._framed(pack)
            index = parse_frames(fetch_index(self._fetcher, framed.index), framed, f"{self._what}, pack {pack - 1}")
            if index.frame_bytes % BLOCK_BYTES or index.content_bytes % BLOCK_BYTES:
                raise InvalidDocument(self._what, "", f"pack {pack - 1} cuts blocks in two", "publish the release anew")
            self._indexes[pack] = index
        return self._indexes[pack]

    def _framed(self, pack: int) -> Framed:
        return self._reuse.packs[pack - 1]

    def _located(self, pieces: Iterable[_Piece]) -> Iterator[Located]:
        return ((self._framed(piece.pack).file.path, piece.frame) for piece in pieces)


def find_held(
    blockmap: BlockMap, candidates: Candidates, landing: Landing, groups: list[int], source: SourceSlot | None
) -> array[int]:
    """Return for each block of the image where it is held: 0 nowhere, 0xffffffff in its place, n + 1 in block n.

    Memory: the candidates, 9 bytes for each block, and a table of 6 for each that is sought. Blocks of zeros and of
    groups that are in place are not looked for.
    """
    in_place = bytearray(blockmap.blocks)
    held = array("I", [0]) * blockmap.blocks
    sought = Sought(candidates, blockmap, set(groups))
    room = paged(READ_BYTES)
    for group in groups:
        content = room[: landing.blocks_of(group) * BLOCK_BYTES]
        if landing.states[group] != State.OTHER or not landing.held_into(group, content):
            continue
        for block, short in _shorts(content, group * GROUP_BLOCKS, candidates.digest_bytes):
            if sought.is_at(block, short):
                in_place[block] = 1
    for first in range(0, source.blocks if source else 0, READ_BYTES // BLOCK_BYTES):
        assert source is not None
        content = room[: (source.blocks - first) * BLOCK_BYTES]
        source.read_into(first, content)
        for old, short in _shorts(content, first, candidates.digest_bytes):
            block = sought.first_with(short)
            if block >= 0 and not held[block]:
                held[block] = old + 1
    # Before what is in place is marked: the first of several equal blocks may be, and the others not.
    sought.tell_twins(held)
    for block, there in enumerate(in_place):
        if there:
            held[block] = _IN_PLACE
    return held


def _shorts(content: memoryview, first: int, size: int) -> Iterator[tuple[int, bytes]]:
    sha256 = hashlib.sha256
    for at in range(0, len(content), BLOCK_BYTES):
        yield first + at // BLOCK_BYTES, sha256(content[at : at + BLOCK_BYTES]).digest()[:size]


class Sought:
    """The short digests of the blocks that are looked for, as a table with open addressing."""

    def __init__(self, candidates: Candidates, blockmap: BlockMap, groups: set[int]) -> None:
        """Look for the blocks of `groups`."""
        self._size = candidates.digest_bytes
        self._digests = candidates.digests
        # Where the digest of each block that is looked for stands: blocks of zeros have none.
        self._ordinals = array("I", [_NOT_SOUGHT]) * blockmap.blocks
        ordinal = count = 0
        for run in blockmap.runs:
            if run.pack == ZEROS:
                continue
            for block in range(run.first, run.first + run.blocks):
                if block // GROUP_BLOCKS in groups:
                    self._ordinals[block] = ordinal
                    count += 1
                ordinal += 1
        self._slots = count * 3 // 2 + 1
        self._table = array("I", [0]) * self._slots
        self._has_twins = False
        for block in self._blocks():
            self._insert(block)

    def is_at(self, block: int, short: bytes) -> bool:
        """Tell whether `short` is the digest of the block that belongs there."""
        return self._ordinals[block] != _NOT_SOUGHT and self._digest(block) == short

    def first_with(self, short: bytes) -> int:
        """Return the first block that is looked for and has this digest, -1 if none."""
        return self._table[self._slot_of(short)] - 1

    def tell_twins(self, held: array[int]) -> None:
        """Let blocks with equal digests share what was found for the first of them."""
        if self._has_twins:
            for block in self._blocks():
                held[block] = held[self.first_with(self._digest(block))]

    def _blocks(self) -> Iterator[int]:
        return (block for block, ordinal in enumerate(self._ordinals) if ordinal != _NOT_SOUGHT)

    def _insert(self, block: int) -> None:
        slot = self._slot_of(self._digest(block))
        if self._table[slot]:
            self._has_twins = True
        else:
            self._table[slot] = block + 1

    def _slot_of(self, short: bytes) -> int:
        """Return the slot of a digest, or the empty one where it belongs.

        Python's own hash has a secret seed: nobody can publish digests that all fall into one place.
        """
        slot = hash(short) % self._slots
        while (block := self._table[slot]) and self._digest(block - 1) != short:
            slot = slot + 1 if slot + 1 < self._slots else 0
        return slot

    def _digest(self, block: int) -> bytes:
        at = self._ordinals[block] * self._size
        return self._digests[at : at + self._size]
