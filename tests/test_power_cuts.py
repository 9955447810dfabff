"""Power fails at every effect of every operation, by every loader, and a proven release boots and goes on updating.

The media and what they lose are in tests/volatile_files.py and tests/volatile_sectors.py, the invariants in
tests/power_cuts.py, the operations in tests/power_cut_operations.py. `CRASH_SWEEP=full` (`make crash`) tries many times
more combinations, cuts the recovery from a cut of a recovery too, and updates from every state.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.disks import image_of
from tests.power_cut_operations import OPERATIONS, operations
from tests.power_cuts import Effort, Operation, Sweep
from tests.releases import Publisher, make_release
from tests.volatile_calls import volatile_calls
from tests.volatile_loaders import LOADERS
from tests.volatile_machine import World, make_world
from updater.layouts import layout_folders, load_layout
from updater.manifest import BLOCK_BYTES
from updater.release.transport import Ways
from updater.situation import EDGES
from updater.ways import Way

LAYOUTS = sorted(path.stem for path in layout_folders()[-1].glob("*.yaml"))
pytestmark = pytest.mark.timeout(0 if os.environ.get("CRASH_SWEEP") == "full" else 600)

# One layout for each back end.
BACK_ENDS = [layout for layout in LAYOUTS if layout != "azure-container-linux"]
FULL = os.environ.get("CRASH_SWEEP") == "full"

# Recoveries that have effects of their own: the others end at once, or do what these do.
RECOVERING = frozenset({"finalize", "commit", "roll back", "quarantine with a verdict", "quarantine what rotted"})
RECOVERING |= {"cancel what is armed", "healthy boot"}
BY_ADDONS = frozenset({"stage over the old release", "cancel what is armed", "adopt"})

# The fewest effects that each operation has by any loader: fewer mean that the media do not see what is done.
LEAST_EFFECTS = {
    "renew the metadata": 50,
    "stage": 50,
    "stage over the old release": 50,
    "stage another release": 50,
    "finalize": 24,
    "first boot of a trial": 11,
    "commit": 26,
    "roll back": 10,
    "quarantine with a verdict": 22,
    "quarantine without a verdict": 22,
    "quarantine, and the state partition is lost": 22,
    "revert": 21,
    "first boot after a revert": 10,
    "cancel what is staged": 25,
    "cancel what is armed": 27,
    "cancel a revert": 21,
    "healthy boot": 2,
    "quarantine what rotted": 18,
    "adopt": 14,
    "clear the quarantine": 14,
    "pin": 10,
}


# One layout goes through all; the same code serves the others, where no back end has a part in it.
FIRST = "dps-root"
ANYWHERE = frozenset({"renew the metadata", "clear the quarantine", "pin", "stage another release"})


def effort_for(world: World, operation: Operation) -> Effort | None:
    """Return how much is tried of an operation, None for what another layout tries as well."""
    if FULL:
        return Effort(most=128, sampled=16, depth=2, every=True)
    layout = world.layout
    if layout.name != FIRST and operation.name in ANYWHERE:
        return None
    if layout.boot.backend == load_layout(FIRST).boot.backend and layout.name != FIRST:
        # It has addons, and PARTUUIDs that never change.
        return Effort(depth=0) if operation.name in BY_ADDONS else None
    return Effort(depth=1 if operation.name in RECOVERING else 0)


def _with_another_block(image: bytes, number: int) -> bytes:
    return image[: number * BLOCK_BYTES] + image_of(1, seed=number + 1) + image[(number + 1) * BLOCK_BYTES :]


def worlds(layout: str, folder: Path, *, way: Way = Way.PLAIN) -> Iterator[World]:
    """Yield the world of a layout, its repository in a folder; `way` is how the image of a release reaches a slot."""
    memory = Path("/dev/shm")
    # A tree of two levels where there is time for it.
    blocks = 130 if FULL else 6
    images = [image_of(blocks + number, seed=number) for number in range(4)]
    if way is Way.DELTA:
        images = [_with_another_block(image_of(blocks), number) for number in range(4)]
    releases = tuple(
        make_release(f"{number}.0.0", image=image, layouts=(layout,)) for number, image in enumerate(images, 1)
    )
    publisher = Publisher(folder / "publisher")
    for release in releases:
        publisher.publish(release, ways=None if way is Way.PLAIN else Ways())
    publisher.promote("4.0.0")
    with pytest.MonkeyPatch.context() as patch, volatile_calls():
        patch.setattr("tempfile.tempdir", str(memory) if memory.is_dir() else None)
        # Thousands of recoveries have much to say.
        patch.setattr("logging.root.manager.disable", logging.CRITICAL)
        yield make_world(layout, publisher, releases, folder / "scratch")


@pytest.fixture(scope="module", params=LAYOUTS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(request.param, tmp_path_factory.mktemp("power"))


def test_an_operation_has_the_same_effects_whatever_ran_before_it(world: World) -> None:
    """`make crash` spreads them over workers in an order that nobody knows, and asks each for its fewest effects."""
    stage, over = (operation for operation in OPERATIONS if operation.name in ("stage", "stage over the old release"))
    found = []
    for operation in (stage, over, stage):
        sweep = Sweep(world, operation)
        sweep.recorded()
        found.append(sweep.effects)
    assert found[0] == found[2]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name.replace(" ", "-"))
def test_a_cut_at_any_effect_leaves_a_machine_that_boots_what_is_proven_and_updates(
    world: World, operation: Operation, record_property: Callable[[str, object], None]
) -> None:
    if operation not in operations(world):
        assert (operation.verb, world.layout.boot.backend) == ("tries used up", "efi-bootnext")
        return
    effort = effort_for(world, operation)
    if effort is None:
        return
    sweep = Sweep(world, operation, effort)
    count = sweep.run()
    # It takes two cuts in a row, and the default cuts one recovery only.
    assert FULL or count.lost_tables == 0
    record_property("power_cuts", (count.effects, count.cuts, count.states, count.recoveries, count.updates))
    uncounted = operation.verb == "healthy boot" and world.layout.boot.backend == "efi-bootnext"
    assert count.effects >= (0 if uncounted else LEAST_EFFECTS[operation.name]), sweep.effects
    # Before the first effect and after each one something may be lost, or nothing; flushes leave one state each.
    changes = [effect for effect in sweep.effects if not effect.startswith("flush")]
    if operation.spoiled is None:
        assert count.cuts >= count.effects + 1 + len(changes) * 3 // 4
        assert count.recoveries >= count.states >= (count.effects + 1) // 3


# What resembles both slots may cost less by reuse of their blocks.
BROUGHT_BY = {Way.FULL: {"full"}, Way.DELTA: {"delta", "reuse"}}


@pytest.mark.parametrize("way", [Way.FULL, Way.DELTA])
def test_a_release_that_travels_in_frames_or_as_a_delta_is_cut_as_well(
    way: Way, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with contextmanager(worlds)(FIRST, tmp_path, way=way) as world:
        for operation in OPERATIONS:
            if operation.name in ("stage", "stage over the old release"):
                machine = operation.begin(world)
                operation.run(machine)
                update = machine.session().store.journal().update
                assert update is not None
                assert update.brought is not None
                assert update.brought.image[0] in BROUGHT_BY[way]
                count = Sweep(world, operation, Effort(depth=0, updates=FULL or way is Way.DELTA)).run()
                record_property(
                    "power_cuts", (count.effects, count.cuts, count.states, count.recoveries, count.updates)
                )


def test_nothing_is_in_flight_when_an_operation_returns(world: World) -> None:
    for operation in operations(world):
        machine = operation.begin(world)
        with machine.recorded() as instants:
            operation.run(machine)
        assert instants[-1].is_durable, f"{operation.name} returns before its last flush"


def test_ours_never_rename_on_fat(world: World) -> None:
    for operation in operations(world):
        machine = operation.begin(world)
        with machine.recorded() as instants:
            operation.run(machine)
        renames = [instant.effect for instant in instants if instant.effect.startswith("esp: rename")]
        assert all("within a sector" in effect for effect in renames), "only the loader may, within one sector"


def test_every_verb_of_the_state_machine_and_every_loader_is_cut() -> None:
    verbs = {verb for _, verb, _ in EDGES}
    assert verbs <= {operation.verb for operation in OPERATIONS}
    assert {load_layout(layout).boot.backend for layout in LAYOUTS} == set(LOADERS)
