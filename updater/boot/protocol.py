"""The protocol that every boot back end speaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from updater.slots import Slot


@dataclass(frozen=True, slots=True)
class Entry:
    """One boot entry as the loader sees it.

    `tries_left` is None for an entry that is not counted: a good one. `generation` is the number that orders entries:
    the highest is tried first. `name` is the loader's own id for it, such as `b+3-0.conf`.
    """

    name: str
    slot: Slot | None
    version: str
    generation: int
    tries_left: int | None
    tries_done: int

    @property
    def is_bad(self) -> bool:
        """Tell whether all tries are used up."""
        return self.tries_left == 0


@dataclass(frozen=True, slots=True)
class BootState:
    """What the loader would do, as read from its files and variables.

    `order` lists entries as the loader sorts them; `next_name` is what it would boot now (None: nothing, the firmware
    goes on). `booted_name` is the entry that this boot came from where the loader says so, with the counter that it
    had *after* the loader's decrement. `obstacles` says, one sentence each with its mend, why arming must be refused
    (a default that matches or masks the trial, counting that does not work on this ESP, a read-only attribute).
    `doubt` says why a try that left no trace may never have begun, where the loader can lose one. `blessed` is the slot
    that this boot came from where its entry is a good one which this boot did not write: proven, or made good by
    somebody else, such as systemd-bless-boot.
    """

    order: tuple[Entry, ...]
    next_name: str | None
    booted_name: str | None = None
    obstacles: tuple[str, ...] = ()
    loader: str = ""
    notes: tuple[str, ...] = field(default=())
    doubt: str = ""
    blessed: Slot | None = None

    @property
    def next_entry(self) -> Entry | None:
        """Return the entry that would boot now."""
        return next((entry for entry in self.order if entry.name == self.next_name), None)

    def entries_of(self, slot: Slot) -> tuple[Entry, ...]:
        """Return the entries that boot `slot`, in loader order."""
        return tuple(entry for entry in self.order if entry.slot is slot)


@dataclass(frozen=True, slots=True)
class BootFile:
    """A file of a boot artifact: its name (`uki.efi` or an addon's), length and SHA-256 (hex)."""

    name: str
    length_bytes: int
    sha256: str


class BootBackend(Protocol):
    """Arm, commit and take back trials for one loader.

    Every call may be repeated after a power cut at any point inside it, and is durable when it returns. At every
    instant inside each call the loader boots a proven release, provided that the fallback slot named by the caller
    holds one. All raise EnvironmentFailure.
    """

    def read(self) -> BootState:
        """Return what the loader would do; never changes anything."""

    def withdraw(self, slot: Slot) -> None:
        """Take away every boot entry of `slot`, then its artifact's files: nothing boots it any more."""

    def settle(self, slot: Slot) -> None:
        """Make the proven `slot` a good, uncounted entry that can never go bad: the fallback of a trial."""

    def space_needed(self, slot: Slot, files: Iterable[BootFile]) -> tuple[int, int]:
        """Return (bytes needed, bytes that will be free once `slot` is withdrawn) for placing an artifact."""

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes]) -> None:
        """Write one file of the artifact of a withdrawn `slot` (addons before the UKI) and flush it.

        The chunks are proven by the caller up to their last one; `verify` proves what lies on the medium.
        """

    def verify(self, slot: Slot, files: Iterable[BootFile]) -> tuple[str, ...]:
        """Read the artifact's files back from the medium; return one sentence for each that is missing or differs."""

    def artifact_chunks(self, slot: Slot, name: str) -> Iterator[bytes]:
        """Yield the bytes of one file of the slot's artifact, read from the medium."""

    def arm(self, slot: Slot, version: str, *, tries: int) -> Entry:
        """Publish a counted entry for `slot` that sorts before all others; return it.

        Callers have checked `obstacles`, verified the artifact and proven the fallback.
        """

    def commit(self, slot: Slot, *, tries: int | None) -> None:
        """Make the running `slot` the default for good: counted anew with `tries`, or uncounted when None."""

    def condemn(self, slot: Slot) -> None:
        """Take all tries from the entry of `slot`, so that the loader prefers any other."""

    def prefer(self, slot: Slot, version: str) -> None:
        """Make the proven, uncounted `slot` sort first again (a manual rollback to the other, proven slot)."""
