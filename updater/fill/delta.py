"""The delta way: blocks copied from the running slot, and operations that make the new ones from its blocks."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from updater.errors import EnvironmentFailure
from updater.fetch import Fetcher
from updater.fill.landing import Landing
from updater.fill.pipeline import Pipeline
from updater.fill.rows import Row, rows_of, rows_within
from updater.fill.source_slot import SourceSlot
from updater.fill.ways import WayFailed, fetch_index, most_written
from updater.format.patch import apply
from updater.format.recipe import Operation, Recipe, parse_recipe
from updater.format.transport import Delta
from updater.manifest import BLOCK_BYTES
from updater.prefetch import Part, Span, fetch_spans, most_held_bytes, spans
from updater.verity import GROUP_BLOCKS
from updater.ways import Cost, Way


class DeltaWay:
    """One delta from the running release."""

    way = Way.DELTA

    def __init__(self, fetcher: Fetcher, delta: Delta, source: SourceSlot, image_bytes: int, what: str) -> None:
        """Take the delta that makes an image of `image_bytes` bytes from what `source` holds."""
        self._fetcher = fetcher
        self._delta = delta
        self._source = source
        self._image_bytes = image_bytes
        self._what = what
        self._recipe: Recipe | None = None
        self._rows: list[Row] = []

    def cost(self, landing: Landing) -> Cost:
        """Return what the operations for the missing groups take."""
        recipe = self._opened()
        groups = landing.missing()
        wanted = list(self._requests(self._needed(landing, groups)))
        return Cost(
            self.way,
            fetch_bytes=self._delta.recipe.length_bytes + sum(span.length for span in wanted),
            write_bytes=most_written(landing, groups),
            requests=1 + len(wanted),
            memory_bytes=recipe.memory_bytes + most_held_bytes(wanted) + Pipeline.memory_bytes,
        )

    def fill(self, landing: Landing, pipeline: Pipeline) -> None:
        """Go through the image once from its start; an operation's output is proven before any of it is used."""
        self._opened()
        groups = landing.missing()
        needed = self._needed(landing, groups)
        arriving = fetch_spans(self._fetcher, self._requests(needed))
        outputs = _Outputs(self._made(needed, arriving))
        try:
            for group in groups:
                blocks = landing.blocks_of(group)
                content = bytearray(blocks * BLOCK_BYTES)
                for row in rows_within(self._rows, group * GROUP_BLOCKS, blocks):
                    low = (row.first - group * GROUP_BLOCKS) * BLOCK_BYTES
                    high = low + row.blocks * BLOCK_BYTES
                    if row.operation >= 0:
                        content[low:high] = outputs.of(row)
                    elif row.source >= 0:
                        content[low:high] = self._source.read(row.source, row.blocks)
                pipeline.put(group, content)
        finally:
            arriving.close()

    def _opened(self) -> Recipe:
        if self._recipe is None:
            raw = fetch_index(self._fetcher, self._delta.recipe)
            recipe = parse_recipe(raw, self._delta, self._image_bytes, self._what)
            if recipe.source_bytes > self._source.blocks * BLOCK_BYTES:
                raise WayFailed(
                    f"{self._what} reads {recipe.source_bytes} bytes, and the running image has "
                    f"{self._source.blocks * BLOCK_BYTES}",
                    mend="publish the release anew",
                    reason="delta-misfit",
                )
            self._rows = rows_of(recipe)
            self._recipe = recipe
        return self._recipe

    def _needed(self, landing: Landing, groups: Iterable[int]) -> list[Operation]:
        recipe = self._opened()
        numbers = {
            row.operation
            for group in groups
            for row in rows_within(self._rows, group * GROUP_BLOCKS, landing.blocks_of(group))
            if row.operation >= 0
        }
        return [recipe.operations[number] for number in sorted(numbers)]

    def _requests(self, operations: Iterable[Operation]) -> Iterator[Span]:
        payload = self._delta.payload
        if payload is None:
            return iter(())
        return spans(Part(payload.path, item.offset, item.length_bytes, item.sha256) for item in operations)

    def _made(
        self, needed: list[Operation], arriving: Generator[tuple[Part, memoryview], None, None]
    ) -> Iterator[tuple[int, bytes]]:
        for operation, (_, payload) in zip(needed, arriving, strict=True):
            source = self._source.proven(operation.sources)
            try:
                output = apply(operation, payload, source, self._what)
            except EnvironmentFailure as error:
                raise WayFailed(error.message, mend=error.mend, reason=error.reason) from error
            yield operation.number, output


class _Outputs:
    """The output of the operation that is being used: they are used in order, each until the next begins."""

    def __init__(self, made: Iterator[tuple[int, bytes]]) -> None:
        self._made = made
        self._number = -1
        self._output = b""

    def of(self, row: Row) -> bytes:
        """Return the bytes of a row."""
        if row.operation != self._number:
            # The old output goes before the new one is made: only one is held.
            self._output = b""
            self._number, self._output = next(self._made)
            assert self._number == row.operation
        return self._output[row.at * BLOCK_BYTES : (row.at + row.blocks) * BLOCK_BYTES]
