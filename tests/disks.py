"""Slots, images and trees in memory for tests."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from updater.errors import EnvironmentFailure
from updater.manifest import BLOCK_BYTES, Root
from updater.verity import build_tree, superblock

UUID_TEXT = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"


class MemoryBlocks:
    """A `Blocks` in memory that keeps a record of its accesses and can be made to fail."""

    read_back = "memory"

    def __init__(self, length_bytes: int, name: str = "memory") -> None:
        """Make a partition of zeros."""
        self.content = bytearray(length_bytes)
        self.name = name
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.flushes = 0
        self.closed = False
        self.before_write: Callable[[int, int], None] = lambda offset, length: None

    @property
    def length_bytes(self) -> int:
        """Return the partition's length."""
        return len(self.content)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > len(self.content) or offset % BLOCK_BYTES or length % BLOCK_BYTES:
            raise ValueError(f"bytes {offset} to {offset + length} of {self.name}")

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`."""
        self._check(offset, length)
        self.reads.append((offset, length))
        return bytes(self.content[offset : offset + length])

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` with the bytes at `offset`."""
        room[:] = self.read(offset, len(room))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`."""
        self._check(offset, len(data))
        self.before_write(offset, len(data))
        self.writes.append((offset, len(data)))
        self.content[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Count the call."""
        self.flushes += 1

    def close(self) -> None:
        """Remember the call."""
        self.closed = True


class Cut(EnvironmentFailure):
    """The power went away."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("power cut", reason="io-error")


@functools.lru_cache(maxsize=16)
def image_of(blocks: int, *, seed: int = 0, zero_share: float = 0.0) -> bytes:
    """Return an image of random blocks, a share of them zero."""
    source = random.Random(seed)
    return b"".join(
        bytes(BLOCK_BYTES) if source.random() < zero_share else source.randbytes(BLOCK_BYTES) for _ in range(blocks)
    )


def root_of(image: bytes, *, salt: str = "5a" * 32, uuid: str = UUID_TEXT) -> tuple[Root, bytes]:
    """Return (what a manifest says of the image, its hash tree)."""
    tree, root_hash = build_tree([image], bytes.fromhex(salt))
    return Root(len(image), len(tree), root_hash, salt, uuid), tree


def slot_of(image: bytes, root: Root, tree: bytes, *, spare_blocks: int = 0) -> tuple[MemoryBlocks, MemoryBlocks]:
    """Return a slot's two partitions that hold the image."""
    data, hashes = empty_slot(root, spare_blocks=spare_blocks)
    data.content[: len(image)] = image
    hashes.content[: BLOCK_BYTES + len(tree)] = superblock(root) + tree
    return data, hashes


def empty_slot(root: Root, *, spare_blocks: int = 0) -> tuple[MemoryBlocks, MemoryBlocks]:
    """Return a slot's two partitions, all zeros, with room for the image and `spare_blocks` more."""
    spare = spare_blocks * BLOCK_BYTES
    return (
        MemoryBlocks(root.length_bytes + spare, "slot b data"),
        MemoryBlocks(BLOCK_BYTES + root.tree_length_bytes + spare, "slot b hashes"),
    )
