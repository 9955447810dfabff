"""Power cuts in lives of any order: what an operator, a health service and a failing disk's power make of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.power_cut_operations import cancelled, cleared, healthy, pinned, reverted, rolled_back
from tests.power_cuts import armed, check_media, check_truth, committed, goes_on, staged
from tests.test_power_cuts import BACK_ENDS, FULL, LAYOUTS, worlds
from tests.volatile_cuts import Disk, Instant
from tests.volatile_machine import VolatileMachine, World
from updater.errors import UpdaterError
from updater.records import Policy
from updater.situation import Situation

EXAMPLES, STEPS = (400, 30) if FULL else (12, 10)
shares = st.floats(0, 0.999)


@dataclass(frozen=True)
class Cut:
    """Which effect the power fails after, and which of the states that this leaves, as shares of what there is."""

    effect: float
    state: float

    def of(self, instants: list[Instant]) -> Disk:
        """Return what is left."""
        left = list(instants[int(self.effect * len(instants))].cuts(most=64, sampled=4))
        return left[int(self.state * len(left))]


cuts = st.none() | st.builds(Cut, shares, shares)


class Lives(RuleBasedStateMachine):
    """A node that is updated, judged, rolled back and cut."""

    world: World

    @initialize()
    def ships(self) -> None:
        self.machine = VolatileMachine(self.world, self.world.factory())
        self.proven, self.tried = {"1.0.0"}, set[str]()
        self.situation = Situation.IDLE
        self.starts(None)

    def does(self, cut: Cut | None, act: Callable[[VolatileMachine], object]) -> None:
        """Do something that may be refused, and let power fail meanwhile or not."""
        with self.machine.recorded() as instants, contextlib.suppress(UpdaterError):
            act(self.machine)
        if cut is not None:
            self.machine = VolatileMachine(self.world, cut.of(instants), boots=self.machine.boots)
            self.starts(None)
        elif self.machine.reboots:
            self.starts(None)
        else:
            self.situation = self.machine.recover()

    def starts(self, cut: Cut | None) -> None:
        """Power on; a cut may hit the loader's count and the recovery."""
        check_media(self.machine, frozenset(self.proven), frozenset(self.tried))
        with self.machine.recorded() as instants:
            self.machine.power_on()
            self.situation = self.machine.recover()
        if cut is not None:
            self.machine = VolatileMachine(self.world, cut.of(instants), boots=self.machine.boots)
            self.starts(None)

    @rule(cut=cuts, version=st.sampled_from(["1.0.0", "2.0.0", "3.0.0"]))
    def stages(self, cut: Cut | None, version: str) -> None:
        self.does(cut, lambda machine: staged(machine, version))

    @rule(cut=cuts)
    def finalizes(self, cut: Cut | None) -> None:
        update = self.machine.session().store.journal().update
        if update is not None:
            self.tried.add(update.release.version)
        self.does(cut, armed)

    @rule(cut=cuts)
    def reboots(self, cut: Cut | None) -> None:
        self.starts(cut)

    @rule(cut=cuts)
    def is_healthy(self, cut: Cut | None) -> None:
        assert self.machine.booted is not None
        if self.situation is Situation.TRIAL:
            self.proven.add(self.machine.booted.version)
            self.does(cut, committed)
        else:
            self.does(cut, healthy)

    @rule(cut=cuts)
    def fails(self, cut: Cut | None) -> None:
        if self.situation is Situation.TRIAL:
            self.does(cut, rolled_back)

    @rule(cut=cuts, act=st.sampled_from([cancelled, reverted, cleared, pinned]))
    def is_told(self, cut: Cut | None, act: Callable[[VolatileMachine], object]) -> None:
        self.does(cut, act)

    @invariant()
    def the_records_say_what_lies_on_the_disk(self) -> None:
        check_truth(self.machine, self.situation, frozenset(self.proven), frozenset(self.tried))

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.session().store.write_policy(Policy())
            goes_on(self.machine)


@pytest.fixture(scope="module", params=LAYOUTS if FULL else BACK_ENDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(request.param, tmp_path_factory.mktemp("power"))


def test_a_life_in_any_order_ends_in_the_next_update(world: World) -> None:
    class Here(Lives):
        pass

    Here.world = world
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
