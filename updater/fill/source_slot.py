"""The running slot as a source of blocks: read as it lies, or proven block by block against its own root hash."""

from __future__ import annotations

from collections.abc import Iterable

from updater.blocks import Blocks
from updater.errors import EnvironmentFailure, SlotDamaged
from updater.fill.ways import WayFailed
from updater.manifest import BLOCK_BYTES, Root
from updater.verity import DIGEST_BYTES, GROUP_BLOCKS, Hasher, differing, geometry, upper_digests

_LEAVES_KEPT = 256
"""Proven leaves that are kept: 1 MiB over 128 MiB of image."""


class SourceSlot:
    """The running slot, which is never written."""

    def __init__(self, data: Blocks, hashes: Blocks, root: Root) -> None:
        """Take its partitions and the release that it is proven to hold."""
        self.root = root
        self.blocks = root.length_bytes // BLOCK_BYTES
        self._data = data
        self._hashes = hashes
        self._hasher = Hasher(bytes.fromhex(root.salt))
        self._upper: bytes | None = None
        self._leaves: dict[int, bytes] = {}

    @property
    def name(self) -> str:
        """Return what to call it in messages."""
        return self._data.name

    def read(self, first: int, count: int) -> bytes:
        """Return blocks as they lie: the proof of whatever they are used for must follow.

        Raises WayFailed (`source-unreadable`).
        """
        try:
            return self._data.read(first * BLOCK_BYTES, count * BLOCK_BYTES)
        except EnvironmentFailure as error:
            raise _unreadable(error) from error

    def read_into(self, first: int, room: memoryview) -> None:
        """Fill `room`, which begins on a page, with blocks as they lie; otherwise like `read`."""
        try:
            self._data.read_into(first * BLOCK_BYTES, room)
        except EnvironmentFailure as error:
            raise _unreadable(error) from error

    def proven(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """Return the blocks of runs (first, count), joined, each proven; raise WayFailed (`source-damaged`)."""
        return b"".join(self._proven(first, count) for first, count in runs)

    def _proven(self, first: int, count: int) -> bytes:
        content = self.read(first, count)
        found = self._hasher.digests(content)
        bad = differing(self._expected(first, count), found)
        if bad:
            raise WayFailed(
                f"{self.name}: the block at byte {(first + bad[0]) * BLOCK_BYTES} is not what the running release has",
                mend="this disk is failing; the release can still be fetched whole",
                reason="source-damaged",
            )
        return content

    def _expected(self, first: int, count: int) -> bytes:
        if not geometry(self.root).levels:
            return bytes.fromhex(self.root.root_hash)
        found = []
        for group in range(first // GROUP_BLOCKS, (first + count - 1) // GROUP_BLOCKS + 1):
            low = max(first, group * GROUP_BLOCKS) - group * GROUP_BLOCKS
            high = min(first + count, (group + 1) * GROUP_BLOCKS) - group * GROUP_BLOCKS
            found.append(self._leaf(group)[low * DIGEST_BYTES : high * DIGEST_BYTES])
        return b"".join(found)

    def _leaf(self, group: int) -> bytes:
        kept = self._leaves.get(group)
        if kept is not None:
            return kept
        try:
            if self._upper is None:
                self._upper = upper_digests(self._hashes, self.root, self._hasher)
            start = geometry(self.root).levels[-1].start + group
            leaf = self._hashes.read(BLOCK_BYTES + start * BLOCK_BYTES, BLOCK_BYTES)
        except SlotDamaged as error:
            raise WayFailed(error.message, mend=error.mend, reason="source-damaged") from error
        except EnvironmentFailure as error:
            raise _unreadable(error) from error
        if self._hasher.digests(leaf) != self._upper[group * DIGEST_BYTES : (group + 1) * DIGEST_BYTES]:
            raise WayFailed(
                f"{self._hashes.name}: the hash block of group {group} is not what the running release has",
                mend="this disk is failing; the release can still be fetched whole",
                reason="source-damaged",
            )
        while len(self._leaves) >= _LEAVES_KEPT:
            del self._leaves[next(iter(self._leaves))]
        self._leaves[group] = leaf
        return leaf


def _unreadable(error: EnvironmentFailure) -> EnvironmentFailure:
    if error.reason != "io-error":
        return error
    return WayFailed(error.message, mend=error.mend, reason="source-unreadable")
