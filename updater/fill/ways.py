"""What the ways have in common: their protocol, their indexes, and the failures that bar them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from updater.errors import EnvironmentFailure
from updater.fetch import Fetcher
from updater.fill.landing import Landing
from updater.fill.pipeline import Pipeline
from updater.format.transport import Index
from updater.prefetch import Part, Span, fetch_spans
from updater.ways import Cost, Way

FILE_TROUBLE = ("not-found", "forbidden", "file-too-short", "server-misbehaves", "range-ignored", "file-error")
"""Network failures that are one file's: another way asks for other files. All others are the network's own."""


class WayFailed(EnvironmentFailure):
    """A way that fails for this release and this machine however often it is tried: another one must do."""


class Filling(Protocol):
    """One way of filling a slot, for one release."""

    @property
    def way(self) -> Way:
        """Return which one it is."""

    def cost(self, landing: Landing) -> Cost:
        """Fetch the indexes that are needed to tell, and return what filling the slot would take."""

    def fill(self, landing: Landing, pipeline: Pipeline) -> None:
        """Hand the blocks of every group that is missing to the pipeline.

        Raises WayFailed or InvalidDocument for what will fail again, NetworkFailure and Untrusted for what another
        mirror or another time may mend.
        """


def fetch_index(fetcher: Fetcher, index: Index) -> bytes:
    """Return a table's bytes as they travel, from a mirror that has the right ones."""
    return b"".join(
        bytes(content)
        for _, content in fetch_spans(
            fetcher, [Span((Part(index.path, 0, index.length_bytes, bytes.fromhex(index.sha256)),))]
        )
    )


def most_written(landing: Landing, groups: Iterable[int]) -> int:
    """Return an upper bound of what filling groups writes, their leaves included."""
    return sum((landing.blocks_of(group) + 1) * 4096 for group in groups)
