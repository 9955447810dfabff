"""Likeness of blocks: which old blocks a stretch of new ones resembles, found by sampled windows of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from updater.manifest import BLOCK_BYTES

_WINDOW_BYTES = 16
_SAMPLED_ONE_IN = 32
# A window that stands in more old blocks than this (padding, tables) says nothing about likeness.
_MOST_HOLDERS = 8
_LEAST_VOTES = 2
_CHUNK_BLOCKS = 512


class Likeness:
    """An index of the windows of old blocks; asked for the blocks that resemble new ones.

    Windows of 16 bytes are hashed at every byte, and one in 32 is kept, chosen by its hash: the same bytes are chosen
    wherever they stand, so that shifted content is still found.
    """

    def __init__(self, content: memoryview, blocks: Sequence[int]) -> None:
        """Index these blocks of `content`."""
        import numpy as np

        hashes, holders = _windows(content, blocks)
        order = np.argsort(hashes, kind="stable")
        self._hashes: Any = hashes[order]
        self._holders: Any = holders[order]

    def resembling(self, content: memoryview, blocks: Sequence[int], most: int) -> list[int]:
        """Return up to `most` old blocks that resemble these blocks of `content`, in ascending order."""
        import numpy as np

        if not len(self._hashes):
            return []
        hashes, _ = _windows(content, blocks)
        hashes = np.unique(hashes)
        first = np.searchsorted(self._hashes, hashes, side="left")
        holders = np.searchsorted(self._hashes, hashes, side="right") - first
        telling = (holders > 0) & (holders <= _MOST_HOLDERS)
        first, holders = first[telling], holders[telling]
        if not len(first):
            return []
        votes: Any = np.concatenate([self._holders[first[holders > n] + n] for n in range(_MOST_HOLDERS)])
        found, counts = np.unique(votes, return_counts=True)
        found, counts = found[counts >= _LEAST_VOTES], counts[counts >= _LEAST_VOTES]
        best = np.argsort(-counts, kind="stable")[:most]
        return [int(block) for block in np.sort(found[best])]


def _windows(content: memoryview, blocks: Sequence[int]) -> tuple[Any, Any]:
    """Return (hashes, blocks that hold them) of the windows sampled from `blocks`."""
    import numpy as np

    hashes, holders = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    for at in range(0, len(blocks), _CHUNK_BLOCKS):
        some = blocks[at : at + _CHUNK_BLOCKS]
        raw = b"".join(content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] for block in some)
        raw = raw.ljust(len(some) * BLOCK_BYTES, b"\0") + bytes(_WINDOW_BYTES)
        count = len(some) * BLOCK_BYTES
        words = np.ndarray((count + 8,), "<u8", raw, strides=(1,))
        low, high = words[:count], words[8 : 8 + count]
        mixed = (low * np.uint64(0x9E3779B97F4A7C15)) ^ (high * np.uint64(0xC2B2AE3D27D4EB4F))
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        sampled = np.nonzero((mixed >> np.uint64(59)) == 0)[0]
        # Runs of one byte are everywhere.
        sampled = sampled[low[sampled] != high[sampled]]
        hashes.append(((mixed[sampled] >> np.uint64(20)) & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        holders.append(np.asarray(some, np.int64)[sampled // BLOCK_BYTES])
    return np.concatenate(hashes), np.concatenate(holders)
