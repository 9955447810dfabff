"""The data path of one slot: fetch what is missing, prove it, write it, read the whole slot back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from updater.blocks import Blocks
from updater.manifest import Root
from updater.verity import Progress


class Source(Protocol):
    """Where a release's blocks come from; bytes it yields are not trusted."""

    @property
    def name(self) -> str:
        """Return what to call it in messages: the mirror's URL."""

    def tree(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield exactly `length` bytes of the hash tree from `offset` on, in chunks of any size."""

    def data(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield exactly `length` bytes of the image from `offset` on, in chunks of any size."""


@dataclass(frozen=True, slots=True)
class Written:
    """What it took to fill a slot, in bytes of data and tree together."""

    fetched_bytes: int
    written_bytes: int
    kept_bytes: int


def fill_slot(source: Source, data: Blocks, hashes: Blocks, root: Root, *, progress: Progress | None = None) -> Written:
    """Make a slot hold `root`, resuming from what is on the disk; raise Untrusted, NetworkFailure, SlotDamaged."""
    raise NotImplementedError
