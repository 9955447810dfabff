"""A recipe's rows in the order of the new content: each is copied, zeros, or a part of an operation's output."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from updater.format.recipe import Recipe


class Row(NamedTuple):
    """New blocks `first` to `first + blocks`: old blocks from `source` on, zeros, or an operation's output.

    `source` and `operation` are -1 where they do not apply; `at` is where the run begins in that output, in blocks.
    """

    first: int
    blocks: int
    source: int
    operation: int
    at: int


def rows_of(recipe: Recipe) -> list[Row]:
    """Return all rows of a recipe, from the new content's first block to its last."""
    found = [Row(copy.first, copy.blocks, copy.source, -1, 0) for copy in recipe.copies]
    found += [Row(run.first, run.blocks, -1, -1, 0) for run in recipe.zeros]
    for operation in recipe.operations:
        at = 0
        for run in operation.outputs:
            found.append(Row(run.first, run.blocks, -1, operation.number, at))
            at += run.blocks
    found.sort()
    return found


def rows_within(rows: list[Row], first: int, blocks: int) -> Iterator[Row]:
    """Yield the rows that make a run of new blocks, cut to it."""
    index = max(0, bisect_right(rows, first, key=lambda row: row.first) - 1)
    while index < len(rows) and rows[index].first < first + blocks:
        row = rows[index]
        low, high = max(row.first, first), min(row.first + row.blocks, first + blocks)
        if low < high:
            skipped = low - row.first
            source = row.source + skipped if row.source >= 0 else -1
            yield Row(low, high - low, source, row.operation, row.at + skipped)
        index += 1
