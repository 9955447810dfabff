"""The delta way: blocks copied from the running slot, and operations that make the new ones from its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing

from updater.errors import EnvironmentFailure, UpdaterError
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
            memory_bytes=recipe.memory_bytes + _largest(recipe) + most_held_bytes(wanted) + Pipeline.memory_bytes,
        )

    def fill(self, landing: Landing, pipeline: Pipeline) -> None:
        """Go through the image once from its start; an operation's output is proven before any of it is used."""
        self._opened()
        groups = landing.missing()
        needed = self._needed(landing, groups)
        arriving = fetch_spans(self._fetcher, self._requests(needed))
        # While the blocks of one group are copied, the next operation is applied.
        with closing(arriving), ThreadPoolExecutor(max_workers=1, thread_name_prefix="apply") as ahead:
            outputs = _Outputs(zip(needed, arriving, strict=False), self._made, ahead)
            for group in groups:
                room = pipeline.room(group)
                for row in rows_within(self._rows, group * GROUP_BLOCKS, landing.blocks_of(group)):
                    low = (row.first - group * GROUP_BLOCKS) * BLOCK_BYTES
                    part = room[low : low + row.blocks * BLOCK_BYTES]
                    if row.operation >= 0:
                        part[:] = outputs.of(row)
                    elif row.source >= 0:
                        self._source.read_into(row.source, part)
                    else:
                        part[:] = bytes(len(part))
                pipeline.filled(group)

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

    def _made(self, operation: Operation, payload: bytes) -> bytes:
        source = self._source.proven(operation.sources)
        try:
            return apply(operation, payload, source, self._what)
        except EnvironmentFailure as error:
            raise WayFailed(error.message, mend=error.mend, reason=error.reason) from error


def _largest(recipe: Recipe) -> int:
    """Return what the operation that is used holds beside the one that is made: its output, and the next payload."""
    return max((item.output_bytes + item.length_bytes for item in recipe.operations), default=0)


class _Outputs:
    """The outputs of operations, which are used in order: one is used while the next one is made.

    What keeps the next one from being made is raised when its turn comes: all that comes before it is used first.
    """

    def __init__(
        self,
        arriving: Iterator[tuple[Operation, tuple[Part, memoryview]]],
        made: Callable[[Operation, bytes], bytes],
        ahead: Executor,
    ) -> None:
        self._arriving = arriving
        self._made = made
        self._ahead = ahead
        self._following: tuple[int, Future[bytes]] | None = None
        self._trouble: UpdaterError | None = None
        self._number = -1
        self._output = b""

    def of(self, row: Row) -> bytes:
        """Return the bytes of a row."""
        if row.operation != self._number:
            # The old output goes before the next but one is made: two are held.
            self._output = b""
            if self._following is None:
                self._begin()
            if self._trouble is not None:
                raise self._trouble
            assert self._following is not None
            self._number, making = self._following
            assert self._number == row.operation
            self._output = making.result()
            del making
            self._begin()
        return self._output[row.at * BLOCK_BYTES : (row.at + row.blocks) * BLOCK_BYTES]

    def _begin(self) -> None:
        """Let the next operation be made as soon as its payload is there."""
        self._following = None
        try:
            following = next(self._arriving, None)
        except UpdaterError as trouble:
            self._trouble = trouble
            return
        if following is not None:
            operation, (_, payload) = following
            # The span that it lies in is gone when the next one is asked for.
            self._following = operation.number, self._ahead.submit(self._made, operation, bytes(payload))
