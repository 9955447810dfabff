"""The on-disk format of dm-verity: superblock, tree geometry and proofs against a root hash.

Source: the kernel's Documentation/admin-guide/device-mapper/verity.rst, format version 1 as cryptsetup writes it:
SHA-256 of salt, then block; 4096-byte blocks; 128 digests to a hash block, the rest of the last one zero. Levels lie
behind the superblock from the root's level down to the leaves. An image of one block has no tree: the root hash is
that block's digest.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from updater.blocks import Blocks, paged
from updater.errors import EnvironmentFailure, SlotDamaged
from updater.manifest import BLOCK_BYTES, Root, tree_length_bytes

if TYPE_CHECKING:
    from concurrent.futures import Executor

DIGEST_BYTES = 32
GROUP_BLOCKS = BLOCK_BYTES // DIGEST_BYTES
GROUP_BYTES = GROUP_BLOCKS * BLOCK_BYTES
READ_BYTES = 2 << 20
LEAVES_A_RUN = 64

_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
_MAGIC = b"verity\0\0"
_MOST_DATA_BLOCKS = 1 << 34
# hashlib lets go of the interpreter's lock for 2048 bytes and more, for as long as a block takes: 3 microseconds. Two
# threads that do so hinder each other more than they help. With a salt of 32 bytes these end at SHA-256's own blocks.
_FIRST_PIECE, _SECOND_PIECE = 2016, 4000

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from zero to the end; the unit of work is a phase's own."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a verity superblock says; `salt` is hex."""

    uuid: str
    data_blocks: int
    salt: str

    @property
    def length_bytes(self) -> int:
        """Return the image's length."""
        return self.data_blocks * BLOCK_BYTES

    @property
    def tree_length_bytes(self) -> int:
        """Return the tree's length, the superblock not counted."""
        return tree_length_bytes(self.data_blocks)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the tree: `blocks` hash blocks from block `start` of the tree on (the superblock not counted)."""

    start: int
    blocks: int

    @property
    def offset_bytes(self) -> int:
        """Return where the level begins in the tree."""
        return self.start * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where each block of a tree over `data_blocks` lies; `levels` run from the root's level to the leaves."""

    data_blocks: int
    levels: tuple[Level, ...]

    @property
    def tree_blocks(self) -> int:
        """Return the number of hash blocks."""
        return sum(level.blocks for level in self.levels)

    @property
    def groups(self) -> int:
        """Return the number of groups: runs of up to 128 data blocks whose digests share a leaf."""
        return -(-self.data_blocks // GROUP_BLOCKS)


def geometry(root: Root) -> Geometry:
    """Return the tree's geometry for an image; raise EnvironmentFailure when the manifest's lengths disagree."""
    found = geometry_of(root.length_bytes // BLOCK_BYTES)
    if root.length_bytes % BLOCK_BYTES or found.tree_blocks * BLOCK_BYTES != root.tree_length_bytes:
        raise EnvironmentFailure(
            f"a tree of {root.tree_length_bytes} bytes does not fit an image of {root.length_bytes} bytes",
            mend="build the release anew",
            reason="bad-geometry",
        )
    return found


def geometry_of(data_blocks: int) -> Geometry:
    """Return the tree's geometry for `data_blocks` blocks of data, one at least."""
    counts: list[int] = []
    count = data_blocks
    while count > 1:
        count = -(-count // GROUP_BLOCKS)
        counts.append(count)
    levels: list[Level] = []
    start = 0
    for count in reversed(counts):
        levels.append(Level(start, count))
        start += count
    return Geometry(data_blocks, tuple(levels))


def superblock(root: Root) -> bytes:
    """Return the block that cryptsetup writes at the start of the hash partition: 512 bytes, then zeros."""
    salt = bytes.fromhex(root.salt)
    packed = _SUPERBLOCK.pack(
        _MAGIC,
        1,
        1,
        UUID(root.uuid).bytes,
        b"sha256",
        BLOCK_BYTES,
        BLOCK_BYTES,
        root.length_bytes // BLOCK_BYTES,
        len(salt),
        salt,
    )
    return packed.ljust(BLOCK_BYTES, b"\0")


def parse_superblock(raw: bytes) -> Superblock:
    """Return what a superblock says; raise SlotDamaged when it is none of ours: another algorithm or block size."""
    if len(raw) >= _SUPERBLOCK.size:
        magic, version, kind, uuid, algorithm, data_size, hash_size, blocks, salt_bytes, salt = _SUPERBLOCK.unpack_from(
            raw
        )
        fixed = (magic, version, kind, algorithm.rstrip(b"\0"), data_size, hash_size)
        sound = fixed == (_MAGIC, 1, 1, b"sha256", BLOCK_BYTES, BLOCK_BYTES)
        if sound and salt_bytes <= len(salt) and 0 < blocks <= _MOST_DATA_BLOCKS:
            return Superblock(str(UUID(bytes=uuid)), blocks, salt[:salt_bytes].hex())
    raise SlotDamaged(
        "the hash partition does not begin with a dm-verity superblock (version 1, sha256, blocks of 4096 bytes)",
        mend="stage a release into this slot",
        reason="no-superblock",
    )


class Hasher:
    """Digests of blocks under one salt."""

    def __init__(self, salt: bytes) -> None:
        """Prepare the salted state: copying it is faster than hashing salt and block joined."""
        self._copy = hashlib.sha256(salt).copy
        self.of_zeros = self.digests(bytes(BLOCK_BYTES))

    def digests(self, blocks: bytes | memoryview) -> bytes:
        """Return the digests of whole blocks, one after the other; keeps the interpreter's lock (decision 0015)."""
        view = memoryview(blocks)
        copy = self._copy
        found: list[bytes] = []
        for at in range(0, len(view), BLOCK_BYTES):
            state = copy()
            state.update(view[at : at + _FIRST_PIECE])
            state.update(view[at + _FIRST_PIECE : at + _SECOND_PIECE])
            state.update(view[at + _SECOND_PIECE : at + BLOCK_BYTES])
            found.append(state.digest())
        return b"".join(found)


def differing(expected: bytes | memoryview, found: bytes | memoryview) -> list[int]:
    """Return the indexes at which two equally long runs of digests differ."""
    if expected == found:
        return []
    return [
        at // DIGEST_BYTES
        for at in range(0, len(expected), DIGEST_BYTES)
        if expected[at : at + DIGEST_BYTES] != found[at : at + DIGEST_BYTES]
    ]


def read_level(hashes: Blocks, level: Level, digests: bytes, hasher: Hasher) -> bytes:
    """Read one level of the tree, prove it by the digests that the level above holds, and return it.

    Raises SlotDamaged that names the first bad block and counts the others.
    """
    base = BLOCK_BYTES + level.offset_bytes
    bad = _Tally(hashes, "hash block")
    content = bytearray()
    for at, chunk in pieces(hashes, base, level.blocks * BLOCK_BYTES):
        wanted = digests[at // GROUP_BLOCKS :][: len(chunk) // GROUP_BLOCKS]
        for index in differing(wanted, hasher.digests(chunk)):
            bad.add(base + at + index * BLOCK_BYTES)
        content += chunk
    bad.settle()
    return bytes(content)


def upper_digests(hashes: Blocks, root: Root, hasher: Hasher) -> bytes:
    """Prove the tree above its leaves and return the digests of the leaf blocks (64 KiB for a GiB of data).

    For an image of one block, which has no tree, the result is that block's digest. Raises SlotDamaged.
    """
    digests = bytes.fromhex(root.root_hash)
    for level in geometry(root).levels[:-1]:
        digests = read_level(hashes, level, digests, hasher)
    return digests


def prove(
    data: Blocks,
    hashes: Blocks,
    root: Root,
    progress: Progress | None = None,
    *,
    just_proven: Container[int] = frozenset(),
) -> None:
    """Read a whole slot from the medium and prove its superblock, every hash block and every data block.

    The data of runs of 64 groups that were read back meanwhile (`updater.fill.read_back`) is left out.
    Progress counts data bytes. Memory stays below some megabytes. Raises SlotDamaged that names the first bad block,
    its offset and how many there are; EnvironmentFailure when the slot is too small or cannot be read.
    """
    require_room(data, hashes, root)
    hasher = Hasher(bytes.fromhex(root.salt))
    head = paged(BLOCK_BYTES)
    hashes.read_into(0, head)
    if head[: _SUPERBLOCK.size] != superblock(root)[: _SUPERBLOCK.size]:
        raise damage(hashes, "superblock", 0, 1)
    digests = upper_digests(hashes, root, hasher)
    leaf = _Tally(hashes, "hash block")
    block = _Tally(data, "data block")
    # Not with the module: every start of the updater imports it for a superblock, and few prove a slot.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prove") as ahead:
        for first, expected in leaf_runs(hashes, root, digests, hasher, leaf.add):
            if progress:
                progress(first * BLOCK_BYTES, root.length_bytes)
            if first // (LEAVES_A_RUN * GROUP_BLOCKS) in just_proven:
                continue
            base = first * BLOCK_BYTES
            for at, chunk in pieces(data, base, len(expected) * GROUP_BLOCKS, ahead):
                wanted = expected[at // GROUP_BLOCKS :][: len(chunk) // GROUP_BLOCKS]
                for index in differing(wanted, hasher.digests(chunk)):
                    block.add(base + at + index * BLOCK_BYTES)
    leaf.settle()
    block.settle()
    if progress:
        progress(root.length_bytes, root.length_bytes)


def leaf_runs(
    hashes: Blocks, root: Root, digests: bytes, hasher: Hasher, damaged: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """Yield (first data block, digests of the data blocks from it on) for runs of up to 8192 data blocks.

    Each leaf is proven by `digests` (see `upper_digests`); `damaged` is told the offset of one that is not, and the
    digests that it carries are given nevertheless: they prove nothing.
    """
    shape = geometry(root)
    if not shape.levels:
        yield 0, digests
        return
    base = BLOCK_BYTES + shape.levels[-1].offset_bytes
    room = paged(LEAVES_A_RUN * BLOCK_BYTES)
    for first in range(0, shape.groups, LEAVES_A_RUN):
        count = min(LEAVES_A_RUN, shape.groups - first)
        hashes.read_into(base + first * BLOCK_BYTES, room[: count * BLOCK_BYTES])
        chunk = bytes(room[: count * BLOCK_BYTES])
        wanted = digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]
        for bad in differing(wanted, hasher.digests(chunk)):
            damaged(base + (first + bad) * BLOCK_BYTES)
        blocks = min(count * GROUP_BLOCKS, shape.data_blocks - first * GROUP_BLOCKS)
        yield first * GROUP_BLOCKS, chunk[: blocks * DIGEST_BYTES]


def require_room(data: Blocks, hashes: Blocks, root: Root) -> None:
    """Refuse a slot that cannot hold the image, its superblock and its tree."""
    for blocks, what, needed in (
        (data, "the image", root.length_bytes),
        (hashes, "the hash tree", BLOCK_BYTES + root.tree_length_bytes),
    ):
        if blocks.length_bytes < needed:
            raise EnvironmentFailure(
                f"{blocks.name} holds {blocks.length_bytes} bytes, {what} needs {needed}",
                mend="choose a smaller image or a layout with larger slots",
                reason="slot-too-small",
            )


def build_tree(chunks: Iterable[bytes], salt: bytes) -> tuple[bytes, str]:
    """Return (tree as it lies behind the superblock, root hash) over data fed in chunks of whole blocks."""
    hasher = Hasher(salt)
    digests = b"".join(hasher.digests(chunk) for chunk in chunks)
    if not digests:
        raise ValueError("no data to build a tree over")
    levels: list[bytes] = []
    while len(digests) > DIGEST_BYTES:
        levels.append(digests.ljust(-(-len(digests) // BLOCK_BYTES) * BLOCK_BYTES, b"\0"))
        digests = hasher.digests(levels[-1])
    return b"".join(reversed(levels)), digests.hex()


def root_hash_of_tree(tree: bytes, salt: bytes) -> str:
    """Return the root hash that a tree of one level or more hangs from: the digest of its first block."""
    return Hasher(salt).digests(memoryview(tree)[:BLOCK_BYTES]).hex()


def pieces(blocks: Blocks, offset: int, length: int, ahead: Executor | None = None) -> Iterator[tuple[int, memoryview]]:
    """Yield (distance from `offset`, bytes) of a range in large reads; a piece's memory is that of the one after next.

    With an executor the next read is under way while the caller works; the executor must end before `blocks` closes.
    """
    rooms = [paged(min(READ_BYTES, length)) for _ in range(2 if ahead else 1)]

    def read(at: int) -> memoryview:
        room = rooms[at // READ_BYTES % len(rooms)][: min(READ_BYTES, length - at)]
        blocks.read_into(offset + at, room)
        return room

    steps = range(0, length, READ_BYTES)
    if ahead is None:
        for at in steps:
            yield at, read(at)
        return
    following = ahead.submit(read, 0) if steps else None
    for at in steps:
        assert following is not None
        found = following.result()
        following = ahead.submit(read, at + READ_BYTES) if at + READ_BYTES < length else None
        yield at, found


class _Tally:
    """Counts bad blocks of one partition."""

    def __init__(self, blocks: Blocks, what: str) -> None:
        self.blocks = blocks
        self.what = what
        self.first: int | None = None
        self.count = 0

    def add(self, offset: int) -> None:
        self.first = offset if self.first is None else self.first
        self.count += 1

    def settle(self) -> None:
        if self.first is not None:
            raise damage(self.blocks, self.what, self.first, self.count)


def damage(blocks: Blocks, what: str, offset: int, count: int) -> SlotDamaged:
    """Return the error for `count` bad blocks of a partition, the first at `offset`."""
    others = f" and {count - 1} more" if count > 1 else ""
    return SlotDamaged(
        f"{blocks.name}: the {what} at byte {offset}{others} does not match the root hash",
        mend="stage a release into this slot again; if it happens again, replace the disk",
        reason="block-mismatch",
    )
