"""Likeness of blocks: which old blocks a stretch of new ones resembles, found by sampled windows of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from updater.manifest import BLOCK_BYTES

_WINDOW_BYTES = 16
_SAMPLED_ONE_IN = 32
# A window that stands in more old blocks than this (padding, tables) says nothing about likeness.
_MOST_HOLDERS = 8
# What resembles lies together: a file's blocks stand one after the other, and those that changed most hold no window
# that is still the same.
_REACH_BLOCKS = 48
_LEAST_SCORE = 0.3
_CHUNK_BLOCKS = 512


class Likeness:
    """An index of the windows of old blocks; asked for the blocks that resemble new ones.

    Windows of 16 bytes are hashed at every byte, and one in 32 is kept, chosen by its hash: the same bytes are chosen
    wherever they stand, so that shifted content is still found. The fewer blocks hold a window, the more it tells about
    each, and about the blocks around it.
    """

    def __init__(self, content: memoryview, blocks: Sequence[int]) -> None:
        """Index these blocks of `content`."""
        import numpy as np

        hashes, holders = _windows(content, blocks)
        order = np.argsort(hashes, kind="stable")
        self._hashes: Any = hashes[order]
        self._holders: Any = holders[order]
        self._indexed: Any = np.zeros(-(-len(content) // BLOCK_BYTES), bool)
        self._indexed[np.asarray(blocks, np.int64)] = True

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
        scores: Any = np.zeros(len(self._indexed))
        for n in range(_MOST_HOLDERS):
            held = holders > n
            np.add.at(scores, self._holders[first[held] + n], 1 / holders[held].astype(float) ** 2)
        nearby: Any = np.convolve(scores, np.bartlett(2 * _REACH_BLOCKS + 1))[_REACH_BLOCKS:-_REACH_BLOCKS]
        nearby[~self._indexed] = 0
        best = np.argsort(-nearby, kind="stable")[:most]
        best = best[nearby[best] >= _LEAST_SCORE]
        return [int(block) for block in np.sort(best)]


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
