"""The data path of one slot: fetch what is missing, prove it, write it, read the whole slot back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from updater.blocks import Blocks
from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.manifest import BLOCK_BYTES, Root
from updater.verity import (
    DIGEST_BYTES,
    READ_BYTES,
    Hasher,
    Progress,
    damage,
    differing,
    geometry,
    leaf_runs,
    prove,
    read_level,
    require_room,
    superblock,
)

log = logging.getLogger(__name__)

WINDOW_BLOCKS = 8192
"""Blocks that are scanned, and asked for, at a time: 32 MiB bound one request, and their digests 256 KiB of memory."""

JOINED_GAP_BLOCKS = 32
"""Blocks in place that are fetched again when that saves a request: 128 KiB cost less than a round trip."""

_READ_BLOCKS = READ_BYTES // BLOCK_BYTES
_WRITE_BLOCKS = 512


class Source(Protocol):
    """Where a release's blocks come from; what it yields is not trusted.

    A source raises NetworkFailure when it cannot go on. The iterators may be driven from another thread, one at a
    time.
    """

    @property
    def name(self) -> str:
        """Return what to call it in messages: the mirror's URL."""

    def tree(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield exactly `length` bytes of the hash tree from `offset` on, in chunks of any size."""

    def data(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield exactly `length` bytes of the image from `offset` on, in chunks of any size."""


@dataclass(frozen=True, slots=True)
class Written:
    """What it took to fill a slot, in bytes of image, tree and superblock together.

    `fetched_bytes` includes blocks fetched again to save requests; `zeroed_bytes` were written but needed no fetch,
    and count among `written_bytes`.
    """

    fetched_bytes: int
    written_bytes: int
    kept_bytes: int
    zeroed_bytes: int
    requests: int


def fill_slot(
    source: Source,
    data: Blocks,
    hashes: Blocks,
    root: Root,
    *,
    progress: Progress | None = None,
    proving: Progress | None = None,
) -> Written:
    """Make a slot hold `root` and read it back; what already lies there in its place is kept.

    No block is written before it hashes to a digest that hangs from the root hash; the tree goes first, from its root
    down. Interrupted anywhere, a further call resumes from what is on the disk. `progress` counts the image's bytes
    while it is filled, `proving` while it is read back.

    Raises Untrusted (reason `block-mismatch`) naming the mirror and offset of bytes that do not match, NetworkFailure
    when the source stops short, SlotDamaged when the slot does not read back as it was written.
    """
    require_room(data, hashes, root)
    hasher = Hasher(bytes.fromhex(root.salt))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch") as ahead:
        filler = _Filler(source, hasher, ahead)
        digests = _fill_tree(filler, hashes, root)
        first = superblock(root)
        if hashes.read(0, BLOCK_BYTES) != first:
            hashes.write(0, first)
            filler.written += BLOCK_BYTES
        else:
            filler.kept += BLOCK_BYTES

        def misread(offset: int) -> None:
            raise damage(hashes, "hash block", offset, 1)

        def report(start: int, done: int) -> None:
            if progress:
                progress((start + done) * BLOCK_BYTES, root.length_bytes)

        for start, expected in leaf_runs(hashes, root, digests, hasher, misread):
            report(start, 0)
            before = filler.written
            filler.fill(data, 0, start, expected, source.data, "image", partial(report, start))
            if filler.written > before:
                # A power cut costs no more than what is fetched at a time.
                data.flush()
        report(geometry(root).data_blocks, 0)
    data.flush()
    hashes.flush()
    log.info("filled %s: %d bytes fetched, %d written", data.name, filler.fetched, filler.written)
    prove(data, hashes, root, proving)
    return Written(filler.fetched, filler.written, filler.kept, filler.zeroed, filler.requests)


def _fill_tree(filler: _Filler, hashes: Blocks, root: Root) -> bytes:
    """Fill the tree from its root's level down, each level proven by the one above; return the leaves' digests."""
    digests = bytes.fromhex(root.root_hash)
    levels = geometry(root).levels
    for level in levels:
        for at in range(0, level.blocks, WINDOW_BLOCKS):
            count = min(WINDOW_BLOCKS, level.blocks - at)
            wanted = digests[at * DIGEST_BYTES : (at + count) * DIGEST_BYTES]
            filler.fill(hashes, BLOCK_BYTES, level.start + at, wanted, filler.source.tree, "hash tree")
        if level is not levels[-1]:
            # The disk is asked, not memory: the next level is proven by what really lies above it.
            digests = read_level(hashes, level, digests, filler.hasher)
    return digests


class _Filler:
    """Makes runs of blocks match their digests, and counts what it took."""

    def __init__(self, source: Source, hasher: Hasher, ahead: ThreadPoolExecutor) -> None:
        self.source = source
        self.hasher = hasher
        self.fetched = self.written = self.kept = self.zeroed = self.requests = 0
        self._ahead = ahead

    def fill(
        self,
        blocks: Blocks,
        base: int,
        first: int,
        digests: bytes,
        fetch: Callable[[int, int], Iterator[bytes]],
        what: str,
        report: Callable[[int], None] | None = None,
    ) -> None:
        """Make the blocks from `first` on match `digests`; block 0 lies at byte `base` of the partition.

        `fetch` yields a range of `what`, the image or its tree; `report` is told how many of these blocks are done.
        """
        missing = self._scan(blocks, base, first, digests)
        self.kept += len(digests) // DIGEST_BYTES * BLOCK_BYTES - len(missing) * BLOCK_BYTES
        zeros = [at for at in missing if digests[at * DIGEST_BYTES :][:DIGEST_BYTES] == self.hasher.of_zeros]
        for start, end in _joined(zeros, 0):
            for at in range(start, end, _WRITE_BLOCKS):
                count = min(_WRITE_BLOCKS, end - at)
                blocks.write(base + (first + at) * BLOCK_BYTES, bytes(count * BLOCK_BYTES))
                self.written += count * BLOCK_BYTES
                self.zeroed += count * BLOCK_BYTES
        known = set(zeros)
        wanted = [at for at in missing if at not in known]
        for start, end in _joined(wanted, JOINED_GAP_BLOCKS):
            request = _Request(self, blocks, base, first, digests, start, end, frozenset(wanted), what)
            self.requests += 1
            with closing(self._one_ahead(fetch((first + start) * BLOCK_BYTES, (end - start) * BLOCK_BYTES))) as chunks:
                request.land(chunks, report)

    def _scan(self, blocks: Blocks, base: int, first: int, digests: bytes) -> list[int]:
        missing: list[int] = []
        count = len(digests) // DIGEST_BYTES
        for at in range(0, count, _READ_BLOCKS):
            length = min(_READ_BLOCKS, count - at)
            expected = digests[at * DIGEST_BYTES :][: length * DIGEST_BYTES]
            try:
                found = self.hasher.digests(blocks.read(base + (first + at) * BLOCK_BYTES, length * BLOCK_BYTES))
            except EnvironmentFailure as error:
                if error.reason != "io-error":
                    raise
                # Writing makes a disk replace a sector that it cannot read; if not, the read-back says so.
                found = bytes(len(expected))
            missing += [at + index for index in differing(expected, found)]
        return missing

    def _one_ahead(self, chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
        """Yield chunks while the next one is on its way: hashing and writing overlap with the network."""
        following = self._ahead.submit(next, chunks, None)
        try:
            while (chunk := following.result()) is not None:
                following = self._ahead.submit(next, chunks, None)
                yield chunk
        finally:
            # A generator cannot be closed while the other thread still drives it.
            wait([following])
            close = getattr(chunks, "close", None)
            if close is not None:
                close()


class _Request:
    """One range that is being fetched: blocks `start` to `end` of a run, of which the `wanted` are written."""

    def __init__(
        self,
        filler: _Filler,
        blocks: Blocks,
        base: int,
        first: int,
        digests: bytes,
        start: int,
        end: int,
        wanted: frozenset[int],
        what: str,
    ) -> None:
        self._filler = filler
        self._blocks = blocks
        self._base = base
        self._first = first
        self._digests = digests
        self._at = start
        self._end = end
        self._wanted = wanted
        self._what = what
        self._pending = bytearray()

    def land(self, chunks: Iterator[bytes], report: Callable[[int], None] | None) -> None:
        """Prove and write what arrives; whole blocks that came before a failure are written all the same."""
        name = self._filler.source.name
        try:
            for chunk in chunks:
                self._filler.fetched += len(chunk)
                self._pending += chunk
                if len(self._pending) > (self._end - self._at) * BLOCK_BYTES:
                    raise NetworkFailure(
                        f"{name} sent more than it was asked for",
                        mend="the server or a proxy ignores ranges: mend it, or use another mirror",
                        reason="range-ignored",
                    )
                if len(self._pending) >= _WRITE_BLOCKS * BLOCK_BYTES:
                    self._settle()
                    if report:
                        report(self._at)
        finally:
            self._settle()
        if self._at < self._end:
            raise NetworkFailure(
                f"{name} stopped at byte {(self._first + self._at) * BLOCK_BYTES} of the {self._what} "
                f"instead of {(self._first + self._end) * BLOCK_BYTES}",
                mend="try again: what arrived is kept",
                reason="short-body",
            )

    def _settle(self) -> None:
        """Prove the whole blocks that are pending, write those that match, then raise Untrusted for the others."""
        count = min(len(self._pending) // BLOCK_BYTES, self._end - self._at)
        ready = bytes(memoryview(self._pending)[: count * BLOCK_BYTES])
        del self._pending[: count * BLOCK_BYTES]
        at, self._at = self._at, self._at + count
        expected = self._digests[at * DIGEST_BYTES : (at + count) * DIGEST_BYTES]
        wrong = set(differing(expected, self._filler.hasher.digests(ready)))
        good = [index for index in range(count) if at + index in self._wanted and index not in wrong]
        view = memoryview(ready)
        for start, end in _joined(good, 0):
            offset = self._base + (self._first + at + start) * BLOCK_BYTES
            self._blocks.write(offset, view[start * BLOCK_BYTES : end * BLOCK_BYTES])
            self._filler.written += (end - start) * BLOCK_BYTES
        bad = [at + index for index in sorted(wrong) if at + index in self._wanted]
        if bad:
            raise Untrusted(
                f"{self._filler.source.name} served a wrong block at byte {(self._first + bad[0]) * BLOCK_BYTES} of "
                f"the {self._what}: it does not hang from the signed root hash",
                mend="use another mirror, or publish the image there again; nothing unproven was written",
                reason="block-mismatch",
            )


def _joined(indexes: list[int], gap: int) -> Iterator[tuple[int, int]]:
    """Yield runs (start, end) that cover the sorted `indexes`, joined over gaps of up to `gap`."""
    start: int | None = None
    end = 0
    for index in indexes:
        if start is not None and index > end + gap:
            yield start, end
            start = None
        if start is None:
            start = index
        end = index + 1
    if start is not None:
        yield start, end
