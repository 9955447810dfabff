"""Deltas: a recipe with its payload that makes one content from an older one, proven by applying it."""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from updater.format import patch
from updater.format.recipe import Codec, Copy, Operation, Recipe, Run, encode_recipe
from updater.format.transport import Delta
from updater.manifest import BLOCK_BYTES
from updater.release.blobs import BlobFolder
from updater.release.frames import Progress, in_order
from updater.release.likeness import Likeness
from updater.release.packs import block_digests
from updater.release.search import triples

log = logging.getLogger(__name__)

_LEVEL = 19
_TRYING_LEVEL = 9
_MOST_GAIN = 1.2


@dataclass(frozen=True, slots=True)
class OperationSizes:
    """How large an operation may be, in blocks: together they set a node's memory."""

    output_blocks: int = 1024
    source_blocks: int = 2048


@dataclass(frozen=True, slots=True)
class Content:
    """One side of a delta: its bytes, and each block's SHA-256 (empty for zeros)."""

    raw: memoryview
    digests: Sequence[bytes]

    @classmethod
    def of(cls, raw: memoryview) -> Content:
        """Hash the blocks of `raw`; the last one is filled with zeros."""
        digests = block_digests(raw)
        if isinstance(raw.obj, mmap.mmap):
            # What was read need not stay in this process: most of it is never looked at again.
            raw.obj.madvise(mmap.MADV_DONTNEED)
        return cls(raw, digests)

    def blocks(self, runs: Sequence[Run]) -> bytes:
        """Return the bytes of runs of blocks, joined; behind the end stand zeros."""
        found = b"".join(self.raw[run.first * BLOCK_BYTES : (run.first + run.blocks) * BLOCK_BYTES] for run in runs)
        return found.ljust(sum(run.blocks for run in runs) * BLOCK_BYTES, b"\0")


def make_delta(
    old: Content,
    new: Content,
    source: str,
    source_version: str,
    blobs: BlobFolder,
    progress: Progress,
    *,
    sizes: OperationSizes | None = None,
) -> Delta:
    """Make the delta from `old` to `new`; each operation is applied as a node does, and must make the right bytes."""
    sizes = sizes or OperationSizes()
    copies, zeros, fresh = _compared(old.digests, new.digests)
    reused = bytearray(len(old.digests))
    for copy in copies:
        reused[copy.source : copy.source + copy.blocks] = b"\1" * copy.blocks
    unused = [block for block, digest in enumerate(old.digests) if digest and not reused[block]]
    log.info(
        "delta from %s: %d blocks copied in %d runs, %d new, %d old ones to make them of",
        source_version,
        sum(copy.blocks for copy in copies),
        len(copies),
        len(fresh),
        len(unused),
    )
    likeness = Likeness(old.raw, unused)

    def encoded(outputs: tuple[Run, ...]) -> tuple[Operation, bytes]:
        blocks = [block for run in outputs for block in range(run.first, run.first + run.blocks)]
        alike = likeness.resembling(new.raw, blocks, sizes.source_blocks)
        return _operation(old, new, outputs, runs_of(alike))

    operations: list[Operation] = []
    what, done = f"delta from {source_version}", 0

    def payloads() -> Iterator[bytes]:
        nonlocal done
        offset = 0
        stretches = _stretches(fresh, sizes.output_blocks)
        for number, (operation, payload) in enumerate(in_order(encoded, stretches)):
            operations.append(replace(operation, number=number, offset=offset))
            offset += len(payload)
            done += operation.output_bytes
            progress(what, done, len(fresh) * BLOCK_BYTES)
            yield payload

    payload = blobs.put(payloads()) if fresh else None
    recipe = Recipe(len(new.raw), len(old.raw), tuple(copies), tuple(zeros), tuple(operations))
    index = blobs.put_index(encode_recipe(recipe), packed=True)
    return Delta(source, source_version, index, payload, max(1, recipe.memory_bytes))


def _operation(
    old: Content, new: Content, outputs: tuple[Run, ...], sources: tuple[Run, ...]
) -> tuple[Operation, bytes]:
    """Return the smaller of both codecs' operations, with its payload."""
    source, output = old.blocks(sources), new.blocks(outputs)
    forms: list[tuple[Codec, bytes]] = []
    if sources:
        rows, diff, insert = triples(source, output)
        if len(rows) <= patch.most_triples(len(output)):
            forms.append((Codec.BSDIFF, patch.encode_triples(rows, diff, insert, _LEVEL)))
    # zstd's highest levels take longer than all else, and never gain this much.
    if not forms or len(patch.encode_zstd(source, output, _TRYING_LEVEL)) < len(forms[0][1]) * _MOST_GAIN:
        forms.append((Codec.ZSTD, patch.encode_zstd(source, output, _LEVEL)))
    codec, payload = min(forms, key=lambda form: len(form[1]))
    made = Operation(
        0,
        codec,
        0,
        len(payload),
        hashlib.sha256(payload).digest(),
        hashlib.sha256(output).digest(),
        outputs,
        sources,
    )
    if patch.apply(made, payload, source, "delta") != output:
        raise AssertionError("an operation does not make what it was made from")
    return made, payload


def _compared(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[list[Copy], list[Run], list[int]]:
    """Return (copies, zeros, new blocks that the old content does not hold)."""
    where: dict[bytes, int] = {}
    for block, digest in enumerate(old):
        if digest:
            where.setdefault(digest, block)
    copies: list[Copy] = []
    zeros: list[int] = []
    fresh: list[int] = []
    for block, digest in enumerate(new):
        if not digest:
            zeros.append(block)
            continue
        last = copies[-1] if copies else None
        if last is not None and last.first + last.blocks == block:
            # Going on where the run before ended makes one row of two, whichever equal block the index names.
            following = last.source + last.blocks
            if following < len(old) and old[following] == digest:
                copies[-1] = Copy(last.first, last.blocks + 1, last.source)
                continue
        source = where.get(digest)
        if source is None:
            fresh.append(block)
        else:
            copies.append(Copy(block, 1, source))
    return copies, list(runs_of(zeros)), fresh


def runs_of(blocks: Sequence[int]) -> tuple[Run, ...]:
    """Return the runs of blocks given in ascending order."""
    runs: list[Run] = []
    for block in blocks:
        if runs and runs[-1].first + runs[-1].blocks == block:
            runs[-1] = Run(runs[-1].first, runs[-1].blocks + 1)
        else:
            runs.append(Run(block, 1))
    return tuple(runs)


def _stretches(fresh: Sequence[int], most: int) -> Iterator[tuple[Run, ...]]:
    """Yield the outputs of each operation."""
    for at in range(0, len(fresh), most):
        yield runs_of(fresh[at : at + most])
