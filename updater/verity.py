"""The on-disk format of dm-verity: superblock, tree geometry and the proof of a slot's blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from updater.blocks import Blocks
from updater.manifest import Root

Progress = Callable[[int, int], None]


def superblock(root: Root) -> bytes:
    """Return the 4096 bytes that cryptsetup writes at the start of the hash partition."""
    raise NotImplementedError


def prove(data: Blocks, hashes: Blocks, root: Root, progress: Progress | None = None) -> None:
    """Read a whole slot and prove every block against the root hash; raise SlotDamaged."""
    raise NotImplementedError


def build_tree(chunks: Iterable[bytes], salt: bytes) -> tuple[bytes, str]:
    """Return (tree as it lies behind the superblock, root hash) over data that is fed in chunks."""
    raise NotImplementedError
