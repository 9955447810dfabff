"""The proof of power cuts can fail: it finds each flush that is needed and left out, and each order turned round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.power_cut_operations import OPERATIONS, operations
from tests.power_cuts import Effort, Operation, Sweep, Violation
from tests.test_power_cuts import FULL, LAYOUTS, worlds
from tests.volatile_machine import VolatileMachine, World
from updater.boot.protocol import BootBackend, BootFile
from updater.slots import Slot
from updater.ways import Way

STAGE, OVER, FINALIZE, RENEW = "stage", "stage over the old release", "finalize", "renew the metadata"
LOST = "quarantine, and the state partition is lost"

# Every flush of the product, by who asks for it and what it is of; and an operation that shows what it is there for.
NEEDED = {
    "dps-root": {
        "esp: write_new flushes EFI/acl": OVER,
        "esp: write_new flushes EFI/acl/SLOT.efi": OVER,
        "esp: write_new flushes EFI/acl/ledger-N.json": LOST,
        "esp: write_new flushes loader/entries": FINALIZE,
        "esp: overwrite flushes loader/entries/SLOT+N.conf": FINALIZE,
        "esp: overwrite flushes loader/entries/SLOT.conf": OVER,
        "slot a data: fill_slot flushes the partition": OVER,
        "slot a hash: fill_slot flushes the partition": OVER,
        "slot b data: fill_slot flushes the partition": STAGE,
        "slot b hash: fill_slot flushes the partition": STAGE,
        "state: replace flushes journal.json.new": FINALIZE,
        "state: replace flushes ledger.json.new": FINALIZE,
        "state: replace flushes history.jsonl.new": FINALIZE,
        "state: replace flushes policy.json.new": "pin",
        "state: replace flushes the topmost folder": OVER,
        "state: replace flushes trust": RENEW,
        "state: replace flushes trust/accepted.json.new": RENEW,
        "state: replace flushes trust/floors.json.new": RENEW,
        "state: make_parents flushes the topmost folder": RENEW,
        "state: make_parents flushes trust": RENEW,
        "state: make_parents flushes trust/sets": RENEW,
        "state: write_new flushes trust/sets/N": RENEW,
        "state: write_new flushes trust/sets/N/ROLE.json": RENEW,
        "write_table flushes the primary entries": OVER,
        "write_table flushes the primary header": OVER,
    },
    "flatcar": {
        "esp: write_new flushes flatcar": OVER,
        "esp: write_new flushes flatcar/vmlinuz-SLOT": OVER,
        "esp: write_new flushes flatcar/vmlinuz-SLOT.extra.d": OVER,
        "esp: write_new flushes flatcar/vmlinuz-SLOT.extra.d/slot-SLOT.addon.efi": OVER,
        "write_table flushes the primary entries": FINALIZE,
        "write_table flushes the primary header": FINALIZE,
    },
    "grub-bios": {
        "esp: write_new flushes acl": FINALIZE,
        "esp: write_new flushes acl/SLOT.cfg": FINALIZE,
        "esp: overwrite flushes acl/env-N": FINALIZE,
    },
    "azure-container-linux": {
        "esp: write_new flushes EFI/acl/SLOT.efi.extra.d": OVER,
        "esp: write_new flushes EFI/acl/SLOT.efi.extra.d/slot-SLOT.addon.efi": OVER,
    },
}

_NO_ENTRY = "its entry is gone already, so that nothing boots it; what is placed there next is flushed itself"
_CACHE = "a copy of what the repository has; it is proven when it is read, and fetched again"
_BACKUP = (
    "the flush of the primary's entries carries the backup as well, before the one sector that switches; a table "
    "without room for a second list of entries needs these, and tests/test_gpt.py cuts one"
)
_ROOM = (
    "it is no entry yet; that its cluster is its own before it is one, FAT's table shows, which is not modelled here: "
    "the replay of a real machine's writes judges it (integration/crash)"
)
NEEDLESS = {
    "esp: write_new flushes loader/entries/SLOT.conf": _ROOM,
    "esp: write_new flushes loader/entries/SLOT+N.conf": _ROOM,
    "esp: remove flushes loader/entries": "it is no entry any more: what it said was overwritten, and flushed",
    "esp: remove flushes EFI/acl": _NO_ENTRY,
    "esp: remove flushes EFI/acl/SLOT.efi.extra.d": _NO_ENTRY,
    "esp: remove flushes flatcar": _NO_ENTRY,
    "esp: remove flushes flatcar/vmlinuz-SLOT.extra.d": _NO_ENTRY,
    "esp: remove flushes acl": _NO_ENTRY,
    "esp: make_parents flushes EFI/acl": "the UKI lies in the same folder, and is flushed into it after the addons",
    "esp: make_parents flushes flatcar": "the kernel lies in the same folder, and is flushed into it after the addons",
    "esp: make_parents flushes EFI": "only the ledger's second copy lies there, and is written anew by every change",
    "esp: make_parents flushes the topmost folder": "as with EFI below it",
    "esp: write_new flushes flatcar/release-SLOT": "nothing at boot depends on it",
    "state: replace flushes trust/root.json.new": "the set holds the root too, and the image holds where it began",
    "state: write_new flushes trust/targets": _CACHE,
    "state: write_new flushes trust/targets/TARGET": _CACHE,
    "write_table flushes the backup entries": _BACKUP,
    "write_table flushes the backup header": _BACKUP,
}
_LOADERS_OWN = ("esp: the firmware", "esp: GRUB", "gpt_priority")
BRIEF = Effort(most=32, sampled=2, depth=0, updates=False)


@pytest.fixture(scope="module", params=LAYOUTS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(request.param, tmp_path_factory.mktemp("power"))


def named(name: str) -> Operation:
    return next(operation for operation in OPERATIONS if operation.name == name)


def without(world: World, label: str) -> World:
    """Return the world in which one flush does nothing."""
    return replace(world, lies=frozenset({label}), updated=set(), renewed=set())


def is_found(sweep: Sweep) -> bool:
    """Tell whether a sweep finds something."""
    # Only an update shows what trusted metadata is worth.
    sweep.effort = replace(BRIEF, updates=sweep.operation.name == RENEW)
    sweep.latest_first = True
    try:
        sweep.run()
    except Violation:
        return True
    return False


def test_a_flush_that_is_needed_is_missed_when_it_lies(world: World) -> None:
    needed = NEEDED.get(world.layout.name, {})
    missed = [
        label for label, operation in needed.items() if not is_found(Sweep(without(world, label), named(operation)))
    ]
    assert missed == []


def flushed_by(world: World, operation: Operation) -> set[str]:
    """Return the flushes that an operation makes."""
    machine = operation.begin(world)
    with machine.recorded():
        operation.run(machine)
    return machine.flushed


def test_every_flush_is_shown_to_be_needed_or_said_to_be_needless(world: World) -> None:
    found = set[str]().union(*(flushed_by(world, operation) for operation in operations(world)))
    ours = {label for label in found if not label.startswith(_LOADERS_OWN)}
    needed = {label for labels in NEEDED.values() for label in labels}
    assert not needed & NEEDLESS.keys()
    assert ours <= needed | NEEDLESS.keys(), "say which operation needs it"
    assert NEEDED.get(world.layout.name, {}).keys() <= ours, "nobody asks for it any more"


@pytest.mark.parametrize("way", [Way.FULL, Way.DELTA])
def test_the_flush_after_frames_and_deltas_is_missed_when_it_lies(way: Way, tmp_path: Path) -> None:
    with contextmanager(worlds)("dps-root", tmp_path, way=way) as world:
        for slot, operation in ((Slot.B, STAGE), (Slot.A, OVER)):
            for role in ("data", "hash"):
                label = f"slot {slot} {role}: flush flushes the partition"
                assert is_found(Sweep(without(world, label), named(operation))), label


@pytest.mark.skipif(not FULL, reason="what is needless is swept by CRASH_SWEEP=full (`make crash`)")
def test_a_flush_that_is_needless_is_not_missed(world: World) -> None:
    for operation in operations(world):
        for label in NEEDLESS.keys() & flushed_by(world, operation):
            Sweep(without(world, label), operation, BRIEF).run()


class Spoiled:
    """A back end that does one thing too early, or not at all."""

    def __init__(self, backend: BootBackend) -> None:
        """Stand in front of a back end."""
        self._backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)


class WithdrawsTooLate(Spoiled):
    def withdraw(self, slot: Slot) -> None:
        """Leave the entry where it is, until the slot is filled."""

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes]) -> None:
        """Place a file; its slot's entry goes only now."""
        if self._backend.read().entries_of(slot):
            self._backend.withdraw(slot)
        self._backend.place(slot, file, chunks)


class NeverSettles(Spoiled):
    def settle(self, slot: Slot) -> None:
        """Leave the fallback's entry counted."""


class NeverCondemns(Spoiled):
    def condemn(self, slot: Slot) -> None:
        """Leave the trial its tries."""


class ArmsBeforeItIsRecorded(Spoiled):
    def settle(self, slot: Slot) -> None:
        """Arm as well: it is on record only later."""
        self._backend.settle(slot)
        if self._backend.artifact_names(slot.other) and not self._backend.read().entries_of(slot.other):
            self._backend.arm(slot.other, "2.0.0", tries=3)


class SettlesWhatItTries(Spoiled):
    def arm(self, slot: Slot, version: str, *, tries: int) -> object:
        """Call the trial good before it was ever tried."""
        self._backend.arm(slot, version, tries=tries)
        self._backend.commit(slot, tries=None)
        return self._backend.read().order[0]


@pytest.mark.parametrize(
    ("kind", "operation", "layout"),
    [
        (WithdrawsTooLate, OVER, "dps-root"),
        # systemd-boot starts the only entry even without tries.
        (NeverSettles, OVER, "flatcar"),
        (NeverCondemns, "roll back", "dps-root"),
        (ArmsBeforeItIsRecorded, FINALIZE, "dps-root"),
        (SettlesWhatItTries, FINALIZE, "dps-root"),
    ],
)
def test_an_order_turned_round_is_found(
    kind: type[Spoiled], operation: str, layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def begin(world: World) -> VolatileMachine:
        machine = named(operation).begin(world)
        world.changed_order = lambda backend: cast(BootBackend, kind(backend))
        return machine

    with contextmanager(worlds)(layout, tmp_path_factory.mktemp("power")) as world:
        assert is_found(Sweep(world, replace(named(operation), begin=begin)))
