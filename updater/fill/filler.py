"""One release on its way into one slot: the ways that there are, their costs, and their execution in turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from updater.blocks import Blocks
from updater.errors import InvalidDocument, NetworkFailure, Untrusted, UpdaterError
from updater.fetch import Fetcher
from updater.fill.delta import DeltaWay
from updater.fill.full import FullWay
from updater.fill.landing import Landing, leaf_digests, runs_of, upper_bytes
from updater.fill.pipeline import Pipeline
from updater.fill.read_back import ReadBack
from updater.fill.reuse import ReuseWay
from updater.fill.source_slot import SourceSlot
from updater.fill.ways import FILE_TROUBLE, Filling, WayFailed, most_written
from updater.format.transport import ImageTransport
from updater.heap import keep_heap_small
from updater.manifest import BLOCK_BYTES, Root
from updater.repository import from_any
from updater.verity import Progress, prove
from updater.ways import Choice, Cost, Way, worth_working_out
from updater.writer import WINDOW_BLOCKS, Source, Written, fill_slot

log = logging.getLogger(__name__)

Barring = Callable[[Way, UpdaterError], None]

_PLAIN_MEMORY_BYTES = 24 << 20


@dataclass(frozen=True, slots=True)
class Filled:
    """What it took to fill a slot, in bytes, indexes included; of the `ways` that were tried the last one did it."""

    ways: tuple[Way, ...]
    fetched_bytes: int
    written_bytes: int
    kept_bytes: int
    zeroed_bytes: int
    requests: int


class Filler:
    """The ways of one release; `work_out` comes before `fill`."""

    def __init__(
        self,
        fetcher: Fetcher,
        sources: Sequence[Source],
        root: Root,
        transport: ImageTransport | None,
        *,
        source_slot: SourceSlot | None,
        barred: Mapping[Way, str],
        what: str,
    ) -> None:
        """Take the mirrors, how the image travels, the running slot, and what earlier attempts have barred."""
        self._fetcher = fetcher
        self._before = (fetcher.counters.bytes_fetched, fetcher.counters.requests)
        self._sources = sources
        self._root = root
        self._what = what
        self._barred = dict(barred)
        self._fillings: dict[Way, Filling] = {}
        self._absent: dict[Way, str] = {}
        self._found: dict[Way, UpdaterError] = {}
        self._landing: Landing | None = None
        self._open(transport or ImageTransport(), source_slot)

    def _open(self, transport: ImageTransport, source: SourceSlot | None) -> None:
        length, name = self._root.length_bytes, self._what
        held = source.root.root_hash if source else ""
        delta = next((delta for delta in transport.deltas if delta.source == held), None)
        if delta is not None and source is not None:
            self._fillings[Way.DELTA] = DeltaWay(
                self._fetcher, delta, source, length, f"{name}, delta from {delta.source_version}"
            )
        else:
            known = ", ".join(delta.source_version for delta in transport.deltas)
            self._absent[Way.DELTA] = f"deltas are published from {known} only" if known else "no delta is published"
        if transport.reuse is not None:
            self._fillings[Way.REUSE] = ReuseWay(self._fetcher, transport.reuse, source, length, name)
        else:
            self._absent[Way.REUSE] = "no packs are published"
        if transport.frames is not None:
            self._fillings[Way.FULL] = FullWay(self._fetcher, transport.frames, length, name)
        else:
            self._absent[Way.FULL] = "no frames are published"

    def work_out(
        self, data: Blocks, hashes: Blocks, *, thorough: bool, progress: Progress | None = None
    ) -> tuple[Cost, ...]:
        """Look at what the slot holds and return the cost of every way, in the order of `Way`.

        Unless it is `thorough`, reuse is not worked out where its indexes alone take more than another way. A way
        whose tables make no sense is barred from here on. Without frames, packs and deltas nothing is looked at.
        """
        if not self._fillings:
            return (*(self._out(way) for way in (Way.DELTA, Way.REUSE, Way.FULL)), self._plain_cost(None))
        keep_heap_small()
        upper, leaves = from_any(partial(self._upper, source) for source in self._sources)
        landing = Landing(data, hashes, self._root, upper, leaves)
        landing.survey(progress)
        self._landing = landing
        costs = {Way.PLAIN: self._plain_cost(landing)}
        # Reuse comes last: it reads the running slot and fetches a megabyte to be worked out.
        for way in (Way.DELTA, Way.FULL, Way.REUSE):
            costs[way] = self._cost(way, landing, list(costs.values()), thorough)
        return tuple(costs[way] for way in Way)

    @property
    def tree_bytes(self) -> int:
        """Return what working out fetched for every way: the upper levels of the tree."""
        return upper_bytes(self._root) if self._landing is not None else 0

    def fill(
        self,
        data: Blocks,
        hashes: Blocks,
        choice: Choice,
        *,
        on_barred: Barring,
        progress: Progress | None = None,
        proving: Progress | None = None,
    ) -> Filled:
        """Fill the slot by the first way that works and read it back; what one way wrote, the next one keeps.

        Raises what the last way raised. A failing network ends the work at once: later it goes on where it stopped.
        """
        for barred, why in self._found.items():
            on_barred(barred, why)
        self._found.clear()
        landing = self._landing
        if landing is None:
            whole = self._plain(data, hashes, progress, proving)
            return self._filled([Way.PLAIN], whole.written_bytes, whole.kept_bytes, whole.zeroed_bytes)
        landing.data, landing.hashes = data, hashes
        landing.begin()
        with ReadBack(landing) as behind:
            tried, done = self._by_ways(landing, choice, on_barred, progress, proving)
            landing.flush()
            if self._fetcher.kept:
                self._fetcher.kept.made_durable()
            proven = behind.end()
            if done is None:
                prove(data, hashes, self._root, proving, just_proven=proven)
        kept = landing.kept if done is None else done.kept_bytes - landing.written
        written, zeroed = (done.written_bytes, done.zeroed_bytes) if done else (0, 0)
        log.info("filled %s by %s", data.name, ", ".join(way.value for way in tried) or "what it held")
        return self._filled(tried, written + landing.written, kept, zeroed + landing.zeroed)

    def _by_ways(
        self,
        landing: Landing,
        choice: Choice,
        on_barred: Barring,
        progress: Progress | None,
        proving: Progress | None,
    ) -> tuple[list[Way], Written | None]:
        """Take one way after the other until nothing is missing; return those tried, and what the plain one did."""
        tried: list[Way] = []
        trouble: UpdaterError | None = None
        for way in choice.order:
            if not landing.missing():
                return tried, None
            tried.append(way)
            if way is Way.PLAIN:
                return tried, self._plain(landing.data, landing.hashes, progress, proving)
            trouble = self._try(way, landing, on_barred, progress) or trouble
        if landing.missing():
            raise trouble or self._misfit(choice.order[-1])
        return tried, None

    def _plain(self, data: Blocks, hashes: Blocks, progress: Progress | None, proving: Progress | None) -> Written:
        return from_any(
            partial(fill_slot, source, data, hashes, self._root, progress=progress, proving=proving)
            for source in self._sources
        )

    def _filled(self, tried: list[Way], written: int, kept: int, zeroed: int) -> Filled:
        fetched, requests = self._before
        counters = self._fetcher.counters
        return Filled(
            tuple(tried), counters.bytes_fetched - fetched, written, kept, zeroed, counters.requests - requests
        )

    def _try(self, way: Way, landing: Landing, on_barred: Barring, progress: Progress | None) -> UpdaterError | None:
        try:
            with Pipeline(landing, progress) as pipeline, self._letting_go(landing):
                self._fillings[way].fill(landing, pipeline)
        except (InvalidDocument, WayFailed) as failure:
            log.warning("the %s way fails for good: %s", way.value, failure)
            on_barred(way, failure)
            return failure
        except Untrusted as failure:
            log.warning("the %s way: %s", way.value, failure)
            return failure
        except NetworkFailure as failure:
            if failure.reason not in FILE_TROUBLE:
                raise
            log.warning("the %s way: %s", way.value, failure)
            return failure
        if not landing.missing():
            return None
        misfit = self._misfit(way)
        # Two blocks may share a short digest: that spoils one group, and is no fault of the way.
        if way is not Way.REUSE:
            on_barred(way, misfit)
        log.warning("%s", misfit)
        return misfit

    def _letting_go(self, landing: Landing) -> AbstractContextManager[None]:
        """Keep what arrives no longer than until what was made of it is durable."""
        kept = self._fetcher.kept
        return kept.until_durable(landing.data.flush) if kept else nullcontext()

    def _misfit(self, way: Way) -> WayFailed:
        left = len(self._landing.missing()) if self._landing else 0
        return WayFailed(
            f"{self._what}: {left} groups of blocks that the {way.value} way brought do not hang from the root hash",
            mend="they are fetched in another way; publish the release anew if this goes on",
            reason="group-mismatch",
        )

    def _upper(self, source: Source) -> tuple[bytes, bytes]:
        length = upper_bytes(self._root)
        raw = b"".join(source.tree(0, length)) if length else b""
        return raw, leaf_digests(raw, self._root, source.name)

    def _cost(self, way: Way, landing: Landing, others: list[Cost], thorough: bool) -> Cost:
        if way in self._barred or way in self._absent:
            return self._out(way)
        filling = self._fillings[way]
        least = filling.least_bytes if isinstance(filling, ReuseWay) else 0
        if not landing.missing() or not (thorough or worth_working_out(others, least)):
            return Cost(way, fetch_bytes=least, at_least=True)
        try:
            return filling.cost(landing)
        except (InvalidDocument, WayFailed) as failure:
            log.warning("the %s way: %s", way.value, failure)
            self._barred[way] = failure.message
            self._found[way] = failure
        except (Untrusted, NetworkFailure) as failure:
            if isinstance(failure, NetworkFailure) and failure.reason not in FILE_TROUBLE:
                # A network that fails for a moment must not make the node fetch twenty times as much.
                raise
            # Some other time it may work: nothing is kept of it.
            log.warning("the %s way: %s", way.value, failure)
            self._absent[way] = failure.message
        return self._out(way)

    def _out(self, way: Way) -> Cost:
        return Cost(way, barred=self._barred.get(way, ""), absent=self._absent.get(way, ""))

    def _plain_cost(self, landing: Landing | None) -> Cost:
        root = self._root
        if landing is None:
            return Cost(
                Way.PLAIN,
                fetch_bytes=root.length_bytes + root.tree_length_bytes,
                write_bytes=root.length_bytes + root.tree_length_bytes + BLOCK_BYTES,
                requests=-(-root.length_bytes // (WINDOW_BLOCKS * BLOCK_BYTES)) + 3,
                memory_bytes=_PLAIN_MEMORY_BYTES,
            )
        groups = [group for group in landing.missing() if not landing.is_zeros(group)]
        runs = list(runs_of(groups))
        return Cost(
            Way.PLAIN,
            fetch_bytes=sum((landing.blocks_of(group) + 1) * BLOCK_BYTES for group in groups),
            write_bytes=most_written(landing, landing.missing()),
            requests=2 * len(runs),
            memory_bytes=_PLAIN_MEMORY_BYTES,
        )
