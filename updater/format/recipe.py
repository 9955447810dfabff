"""Recipes: how new content is made from old content by copying runs of blocks and by small operations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from updater.format.columns import Reader, encoded, opened
from updater.format.transport import Delta
from updater.manifest import BLOCK_BYTES

MAGIC = b"ACLRCP\x00\x01"
MOST_OUTPUT_BYTES = 16 << 20
MOST_SOURCE_BYTES = 32 << 20
_MOST_CONTENT_BYTES = 1 << 44
_DIGEST_BYTES = 32


class Codec(IntEnum):
    """How an operation's payload becomes its output."""

    ZSTD = 1
    """One zstd frame with the source as its prefix."""
    BSDIFF = 2
    """Triples of add, insert and seek over the source, each of three streams compressed by itself."""


class Run(NamedTuple):
    """Blocks `first` to `first + blocks`."""

    first: int
    blocks: int


class Copy(NamedTuple):
    """New blocks `first` to `first + blocks` equal the old blocks from `source` on."""

    first: int
    blocks: int
    source: int


@dataclass(frozen=True, slots=True)
class Operation:
    """Makes the new blocks of `outputs`, joined, from the old blocks of `sources`, joined, and a range of the payload.

    Where the old content ends in the middle of a block, zeros follow; likewise the new content's last block.
    """

    number: int
    codec: Codec
    offset: int
    length_bytes: int
    sha256: bytes
    output_sha256: bytes
    outputs: tuple[Run, ...]
    sources: tuple[Run, ...]

    @property
    def output_bytes(self) -> int:
        """Return the output's length: whole blocks."""
        return sum(run.blocks for run in self.outputs) * BLOCK_BYTES

    @property
    def source_bytes(self) -> int:
        """Return the source's length: whole blocks."""
        return sum(run.blocks for run in self.sources) * BLOCK_BYTES

    @property
    def memory_bytes(self) -> int:
        """Return an upper bound of what applying it needs: source, payload, output, and as much again to unpack."""
        return 2 * self.source_bytes + self.length_bytes + 4 * self.output_bytes + (8 << 20)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Copies, zeros and operations, each in order of the new content; together they cover it exactly once.

    The outputs of an operation all lie before those of the next one: new content can be made from its first block to
    its last.
    """

    content_bytes: int
    source_bytes: int
    copies: tuple[Copy, ...]
    zeros: tuple[Run, ...]
    operations: tuple[Operation, ...]

    @property
    def blocks(self) -> int:
        """Return the new content's length in blocks, the last one counted whole."""
        return -(-self.content_bytes // BLOCK_BYTES)

    @property
    def payload_bytes(self) -> int:
        """Return the bytes of all operations."""
        return sum(operation.length_bytes for operation in self.operations)

    @property
    def memory_bytes(self) -> int:
        """Return what the operation that needs most memory needs."""
        return max((operation.memory_bytes for operation in self.operations), default=0)


def parse_recipe(raw: bytes, delta: Delta, content_bytes: int, what: str) -> Recipe:
    """Return the recipe of a delta that makes `content_bytes` bytes, as it was fetched.

    Raises Untrusted (`wrong-bytes`), or InvalidDocument for a recipe that does not cover the content exactly once,
    leaves its source, or needs more memory than the manifest declares.
    """
    table = Reader(opened(raw, delta.recipe, what), what, MAGIC)
    if table.number(1, _MOST_CONTENT_BYTES, "the content's length") != content_bytes:
        raise table.malformed(f"it does not make {content_bytes} bytes")
    source_bytes = table.number(1, _MOST_CONTENT_BYTES, "the source's length")
    blocks = -(-content_bytes // BLOCK_BYTES)
    counts = [table.number(0, blocks * 2, "a count") for _ in range(5)]
    copies = tuple(Copy(*row) for row in zip(*(table.column(counts[0]) for _ in range(3)), strict=True))
    zeros = _runs(table, counts[1])
    operations = _operations(table, counts[2], counts[3], counts[4])
    table.end()
    recipe = Recipe(content_bytes, source_bytes, copies, zeros, operations)
    _check(recipe, delta, table)
    return recipe


def encode_recipe(recipe: Recipe) -> bytes:
    """Return the table of a recipe."""
    copies, zeros, operations = recipe.copies, recipe.zeros, recipe.operations
    outputs = [run for operation in operations for run in operation.outputs]
    sources = [run for operation in operations for run in operation.sources]
    return encoded(
        MAGIC,
        (
            recipe.content_bytes,
            recipe.source_bytes,
            *(len(rows) for rows in (copies, zeros, operations, outputs, sources)),
        ),
        (
            *_columns(copies, 3),
            *_columns(zeros, 2),
            [operation.codec for operation in operations],
            [operation.length_bytes for operation in operations],
            [len(operation.outputs) for operation in operations],
            [len(operation.sources) for operation in operations],
            b"".join(operation.sha256 for operation in operations),
            b"".join(operation.output_sha256 for operation in operations),
            *_columns(outputs, 2),
            *_columns(sources, 2),
        ),
    )


def _columns(rows: Iterable[Sequence[int]], width: int) -> list[list[int]]:
    listed = list(rows)
    return [[row[n] for row in listed] for n in range(width)]


def _runs(table: Reader, count: int) -> tuple[Run, ...]:
    firsts, counts = table.column(count), table.column(count)
    return tuple(map(Run, firsts, counts))


def _operations(table: Reader, count: int, outputs: int, sources: int) -> tuple[Operation, ...]:
    codecs, lengths, output_counts, source_counts = (table.column(count) for _ in range(4))
    digests = table.octets(count * _DIGEST_BYTES)
    output_digests = table.octets(count * _DIGEST_BYTES)
    output_runs, source_runs = _runs(table, outputs), _runs(table, sources)
    if sum(output_counts) != outputs or sum(source_counts) != sources:
        raise table.malformed("its operations do not use all of its runs")
    found: list[Operation] = []
    offset = output = source = 0
    for number in range(count):
        if codecs[number] not in (Codec.ZSTD, Codec.BSDIFF):
            raise table.malformed(f"operation {number} is of an unknown kind")
        digest = slice(number * _DIGEST_BYTES, (number + 1) * _DIGEST_BYTES)
        found.append(
            Operation(
                number,
                Codec(codecs[number]),
                offset,
                lengths[number],
                digests[digest],
                output_digests[digest],
                output_runs[output : output + output_counts[number]],
                source_runs[source : source + source_counts[number]],
            )
        )
        offset += lengths[number]
        output += output_counts[number]
        source += source_counts[number]
    return tuple(found)


def _check(recipe: Recipe, delta: Delta, table: Reader) -> None:
    source_blocks = -(-recipe.source_bytes // BLOCK_BYTES)
    read = [Run(copy.source, copy.blocks) for copy in recipe.copies]
    made = [Run(copy.first, copy.blocks) for copy in recipe.copies] + list(recipe.zeros)
    for operation in recipe.operations:
        read += operation.sources
        if not 0 < operation.output_bytes <= MOST_OUTPUT_BYTES or operation.source_bytes > MOST_SOURCE_BYTES:
            raise table.malformed(f"operation {operation.number} is too large, or makes nothing")
        if not 0 < operation.length_bytes <= operation.output_bytes + (1 << 16):
            raise table.malformed(f"operation {operation.number} has {operation.length_bytes} bytes")
        made += operation.outputs
    if any(not run.blocks or run.first + run.blocks > source_blocks for run in read):
        raise table.malformed("it reads beyond its source")
    written = [run.first for operation in recipe.operations for run in operation.outputs]
    for firsts in ([copy.first for copy in recipe.copies], [run.first for run in recipe.zeros], written):
        if any(second <= first for first, second in itertools.pairwise(firsts)):
            raise table.malformed("its rows are out of order")
    at = 0
    for run in sorted(made):
        if run.first != at or not run.blocks:
            raise table.malformed(f"block {min(at, run.first)} is made twice, or not at all")
        at += run.blocks
    if at != recipe.blocks:
        raise table.malformed(f"it makes {at} blocks of {recipe.blocks}")
    if recipe.payload_bytes != (delta.payload.length_bytes if delta.payload else 0):
        raise table.malformed("its operations do not have the payload's length")
    if recipe.memory_bytes > delta.memory_bytes:
        raise table.malformed(f"it needs {recipe.memory_bytes} bytes of memory, more than the manifest declares")
