"""A slot that is being filled group by group: what it holds already, and the proof and writing of what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from itertools import pairwise

from updater.blocks import Blocks, paged
from updater.errors import EnvironmentFailure, Untrusted
from updater.manifest import BLOCK_BYTES, Root
from updater.verity import (
    DIGEST_BYTES,
    GROUP_BLOCKS,
    GROUP_BYTES,
    Hasher,
    Progress,
    differing,
    geometry,
    pieces,
    require_room,
    superblock,
)

_ZEROS = bytes(GROUP_BYTES)
_LEAVES_A_WRITE = 64
_COMPARED_BYTES = 1 << 18


class State(IntEnum):
    """What a slot holds where a group of 128 blocks belongs."""

    OTHER = 0
    ZEROS = 1
    LEAFLESS = 2
    """The blocks are in place, and the leaf of the tree over them is not."""
    PLACED = 3


def upper_bytes(root: Root) -> int:
    """Return the length of the tree above its leaves: 43 KB for an image of 700 MB."""
    levels = geometry(root).levels
    return levels[-1].offset_bytes if levels else 0


def leaf_digests(upper: bytes, root: Root, source: str) -> bytes:
    """Prove the tree above its leaves as `source` served it; return the digests of the leaves.

    Raises Untrusted (`block-mismatch`).
    """
    hasher = Hasher(bytes.fromhex(root.salt))
    digests = bytes.fromhex(root.root_hash)
    for level in geometry(root).levels[:-1]:
        content = upper[level.offset_bytes : level.offset_bytes + level.blocks * BLOCK_BYTES]
        expected = digests[: level.blocks * DIGEST_BYTES]
        found = hasher.digests(content)
        if len(found) != len(expected) or differing(expected, found):
            raise Untrusted(
                f"{source} served a hash tree that does not hang from the signed root hash",
                mend="use another mirror, or publish the image there again; nothing unproven was written",
                reason="block-mismatch",
            )
        digests = content
    return digests


class Landing:
    """One slot on its way to hold one image.

    No group is written before its blocks hash to a leaf whose digest hangs from the root hash. Counters are bytes of
    image, tree and superblock together.
    """

    def __init__(self, data: Blocks, hashes: Blocks, root: Root, upper: bytes, leaves: bytes) -> None:
        """Take the slot's partitions, the tree above its leaves, and the proven digests of the leaves."""
        require_room(data, hashes, root)
        self.data = data
        self.hashes = hashes
        self.root = root
        self.blocks = root.length_bytes // BLOCK_BYTES
        self.groups = geometry(root).groups
        self.states = bytearray(self.groups)
        self.written = self.zeroed = self.kept = 0
        self._upper = upper
        self._leaves = leaves
        self._has_tree = bool(geometry(root).levels)
        # Leaves that are proven and wait to be written together, from that of a group on.
        self._first_leaf = 0
        self._waiting = bytearray()
        # What lies on the disk is read into it, by one thread at a time.
        self._room = paged(2 * GROUP_BYTES)
        self._hasher = Hasher(bytes.fromhex(root.salt))
        self._zero_leaf = {
            count: self._hasher.digests(self._leaf(self._hasher.of_zeros * count))
            for count in {GROUP_BLOCKS, self.blocks_of(self.groups - 1)}
        }

    def blocks_of(self, group: int) -> int:
        """Return the number of blocks of a group: the last one may be short."""
        return min(GROUP_BLOCKS, self.blocks - group * GROUP_BLOCKS)

    @property
    def placed(self) -> int:
        """Return the number of groups that are in place."""
        return self.states.count(State.PLACED)

    def missing(self) -> list[int]:
        """Return the groups that are not in place."""
        return [group for group, state in enumerate(self.states) if state < State.LEAFLESS]

    def is_zeros(self, group: int) -> bool:
        """Tell whether the image has only zeros there: the tree says so, and nothing need be fetched."""
        return self._expected(group, 1) == self._zero_leaf[self.blocks_of(group)]

    def survey(self, progress: Progress | None = None) -> None:
        """Read the slot and note what each group holds; an unreadable one counts as other content."""
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="survey") as ahead:
            for at, chunk in self._chunks(ahead):
                if progress:
                    progress(at, self.root.length_bytes)
                if chunk is None:
                    continue
                half = len(chunk) // (2 * GROUP_BYTES) * GROUP_BYTES
                second = ahead.submit(self._note, (at + half) // GROUP_BYTES, chunk[half:])
                self._note(at // GROUP_BYTES, chunk[:half])
                second.result()
        if progress:
            progress(self.root.length_bytes, self.root.length_bytes)

    def _chunks(self, ahead: ThreadPoolExecutor) -> Iterator[tuple[int, memoryview | None]]:
        try:
            yield from pieces(self.data, 0, self.root.length_bytes, ahead)
        except EnvironmentFailure as error:
            if error.reason != "io-error":
                raise
        else:
            return
        # A sector cannot be read: go on piece by piece. Writing makes the disk replace it.
        for at in range(0, self.root.length_bytes, GROUP_BYTES):
            held = _readable(self.data, at, min(GROUP_BYTES, self.root.length_bytes - at))
            yield at, None if held is None else memoryview(held)

    def _note(self, first: int, chunk: memoryview) -> None:
        for at in range(0, len(chunk), GROUP_BYTES):
            group = first + at // GROUP_BYTES
            held = chunk[at : at + self.blocks_of(group) * BLOCK_BYTES]
            if _only_zeros(held):
                digests, state = self._hasher.of_zeros * (len(held) // BLOCK_BYTES), State.ZEROS
            else:
                digests, state = self._hasher.digests(held), State.OTHER
            leaf = self._leaf(digests)
            if self._digests_of(leaf) == self._expected(group, 1):
                state = State.PLACED if self._leaf_on_disk(group) == leaf else State.LEAFLESS
            self.states[group] = state

    def begin(self) -> None:
        """Write the superblock and the tree above its leaves where they differ, then what needs no fetch."""
        self._write_differing(self.hashes, 0, superblock(self.root))
        if self._upper:
            self._write_differing(self.hashes, BLOCK_BYTES, self._upper)
        self.kept += sum(
            self.blocks_of(group) * BLOCK_BYTES for group, state in enumerate(self.states) if state >= State.LEAFLESS
        )
        if self._has_tree:
            self.kept += BLOCK_BYTES * self.states.count(State.PLACED)
        for group, state in enumerate(self.states):
            if state == State.LEAFLESS:
                content = self.data.read(group * GROUP_BYTES, self.blocks_of(group) * BLOCK_BYTES)
                leaf = self._leaf(self._hasher.digests(content))
                if self._digests_of(leaf) == self._expected(group, 1):
                    self._take_leaves(group, leaf)
                    self.states[group] = State.PLACED
                else:
                    self.states[group] = State.OTHER
        for group in self.missing():
            if self.is_zeros(group):
                length = self.blocks_of(group) * BLOCK_BYTES
                before = self.written
                leaf = self._leaf(self._hasher.of_zeros * self.blocks_of(group))
                self._write_blocks(group, group + 1, memoryview(_ZEROS)[:length], leaf)
                self.zeroed += self.written - before
                self._take_leaves(group, leaf)
                self.states[group] = State.PLACED
        self.settle()

    def prove(self, first: int, content: bytes | memoryview) -> tuple[bytes, frozenset[int]]:
        """Return (the leaves over the groups from `first` on, the groups among them that do not prove)."""
        digests = self._hasher.digests(content)
        leaves = self._leaf(digests)
        count = -(-len(content) // GROUP_BYTES)
        wrong = differing(self._expected(first, count), self._digests_of(leaves))
        return leaves, frozenset(first + index for index in wrong)

    def write(self, first: int, content: bytes | memoryview, leaves: bytes, wrong: frozenset[int]) -> None:
        """Write the blocks that differ from what lies there, those of `wrong` groups left out.

        Their leaves follow, at the latest when `settle` is called: many at a time.
        """
        count = -(-len(content) // GROUP_BYTES)
        view = memoryview(content)
        for start, end in runs_of(group for group in range(first, first + count) if group not in wrong):
            low, high = (start - first) * GROUP_BYTES, min((end - first) * GROUP_BYTES, len(content))
            run = leaves[(start - first) * BLOCK_BYTES : (end - first) * BLOCK_BYTES]
            self._write_blocks(start, end, view[low:high], run)
            self._take_leaves(start, run)
            self.states[start:end] = bytes([State.PLACED]) * (end - start)

    def settle(self) -> None:
        """Write the leaves that wait."""
        if self._waiting and self._has_tree:
            at = BLOCK_BYTES + len(self._upper) + self._first_leaf * BLOCK_BYTES
            self._write_differing(self.hashes, at, bytes(self._waiting))
        self._waiting.clear()

    def held_into(self, group: int, room: memoryview) -> bool:
        """Fill `room`, which begins on a page, with what lies where a group belongs; return False if it is unreadable.

        What is in `room` then is not to be relied on.
        """
        if self.states[group] == State.ZEROS:
            room[:] = _ZEROS[: len(room)]
            return True
        try:
            self.data.read_into(group * GROUP_BYTES, room)
        except EnvironmentFailure as error:
            if error.reason != "io-error":
                raise
            return False
        return True

    def write_blocks(self, first: int, content: bytes | memoryview) -> None:
        """Write blocks that are proven by a hash of their own; the group's proof is still to come."""
        self.data.write(first * BLOCK_BYTES, content)
        self.written += len(content)
        # The group's turn finds them in place.
        self.kept -= len(content)
        for group in range(first // GROUP_BLOCKS, (first + len(content) // BLOCK_BYTES - 1) // GROUP_BLOCKS + 1):
            self.states[group] = State.OTHER

    def flush(self) -> None:
        """Make it all durable."""
        self.settle()
        self.data.flush()
        self.hashes.flush()

    def _write_blocks(self, start: int, end: int, content: memoryview, leaves: bytes) -> None:
        """Write proven groups' blocks where they differ from what lies on the disk."""
        if all(state == State.ZEROS for state in self.states[start:end]):
            # The proof has told already which blocks are zeros.
            zeros = self._hasher.of_zeros
            chosen = [
                at
                for at in range(len(content) // BLOCK_BYTES)
                if leaves[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] != zeros
            ]
            self._write_chosen(self.data, start * GROUP_BYTES, content, chosen)
            return
        self._write_differing(self.data, start * GROUP_BYTES, content)

    def _take_leaves(self, first: int, leaves: bytes) -> None:
        if self._waiting and first * BLOCK_BYTES != self._first_leaf * BLOCK_BYTES + len(self._waiting):
            self.settle()
        if not self._waiting:
            self._first_leaf = first
        self._waiting += leaves
        if len(self._waiting) >= _LEAVES_A_WRITE * BLOCK_BYTES:
            self.settle()

    def _write_differing(self, blocks: Blocks, offset: int, content: bytes | memoryview) -> None:
        """Write the blocks that differ from what lies on the disk, all of them where it cannot be read."""
        view, room = memoryview(content), self._room[: min(len(content), len(self._room))]
        chosen: list[int] = []
        for at in range(0, len(view), len(room)):
            wanted, held = view[at : at + len(room)], room[: len(view) - at]
            try:
                blocks.read_into(offset + at, held)
            except EnvironmentFailure as error:
                if error.reason != "io-error":
                    raise
                chosen += range(at // BLOCK_BYTES, (at + len(wanted)) // BLOCK_BYTES)
            else:
                chosen += (at // BLOCK_BYTES + block for block in _differing_blocks(wanted, held))
        self._write_chosen(blocks, offset, view, chosen)

    def _write_chosen(self, blocks: Blocks, offset: int, content: bytes | memoryview, chosen: Sequence[int]) -> None:
        view = memoryview(content)
        for low, high in runs_of(chosen):
            blocks.write(offset + low * BLOCK_BYTES, view[low * BLOCK_BYTES : high * BLOCK_BYTES])
        self.written += len(chosen) * BLOCK_BYTES
        self.kept += len(content) - len(chosen) * BLOCK_BYTES

    def _leaf_on_disk(self, group: int) -> bytes | None:
        if not self._has_tree:
            return self._leaves
        return _readable(self.hashes, BLOCK_BYTES + len(self._upper) + group * BLOCK_BYTES, BLOCK_BYTES)

    def _leaf(self, digests: bytes) -> bytes:
        """Return the leaf blocks that hold digests; an image of one block has none, and is its own proof."""
        if not self._has_tree:
            return digests
        return digests.ljust(-(-len(digests) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")

    def _digests_of(self, leaves: bytes) -> bytes:
        return self._hasher.digests(leaves) if self._has_tree else leaves

    def _expected(self, group: int, count: int) -> bytes:
        return self._leaves[group * DIGEST_BYTES : (group + count) * DIGEST_BYTES]


def _readable(blocks: Blocks, offset: int, length: int) -> bytes | None:
    """Return what lies on the disk, None where it cannot be read."""
    try:
        return blocks.read(offset, length)
    except EnvironmentFailure as error:
        if error.reason != "io-error":
            raise
        return None


def _differing_blocks(wanted: memoryview, held: memoryview) -> Iterator[int]:
    for at in range(0, len(wanted), _COMPARED_BYTES):
        # Views compare byte by byte, copies at once.
        one, other = bytes(wanted[at : at + _COMPARED_BYTES]), bytes(held[at : at + _COMPARED_BYTES])
        if one == other:
            continue
        for low in range(0, len(one), BLOCK_BYTES):
            if one[low : low + BLOCK_BYTES] != other[low : low + BLOCK_BYTES]:
                yield (at + low) // BLOCK_BYTES


def _only_zeros(view: memoryview) -> bool:
    """Tell whether there are only zeros, from the first block in most cases."""
    steps = [0, *range(BLOCK_BYTES, len(view), _COMPARED_BYTES), len(view)]
    return all(bytes(view[low:high]) == _ZEROS[: high - low] for low, high in pairwise(steps))


def runs_of(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of consecutive numbers in a sorted series."""
    start: int | None = None
    end = 0
    for index in indexes:
        if start is not None and index != end:
            yield start, end
            start = None
        if start is None:
            start = index
        end = index + 1
    if start is not None:
        yield start, end
