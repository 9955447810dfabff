"""What every boot back end must keep, over a simulated loader: whoever writes one subclasses `BootContract`.

The world of a test is the storage that a loader reads, together with a model of that loader. A world can tell every
state that a power cut could have left behind since it was last asked, torn ones included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import pytest

from tests.portable_executable import build_pe, build_uki
from updater.boot.protocol import BootBackend, BootFile
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B
UKI = build_uki()
ADDON = build_pe([(".sbat", b"sbat,1\n"), (".cmdline", b"fips=1")])
FILES = (
    BootFile("fips.addon.efi", len(ADDON), hashlib.sha256(ADDON).hexdigest()),
    BootFile("uki.efi", len(UKI), hashlib.sha256(UKI).hexdigest()),
)
TRIES = 3


class BootWorld(Protocol):
    """A machine whose slot a holds the proven factory release 1, seen from its loader."""

    def backend(self) -> BootBackend:
        """Return a fresh back end, as after a restart of the program."""

    def boots(self) -> Slot | None:
        """Return the slot that would boot now; changes nothing."""

    def power_on(self) -> Slot | None:
        """Boot as the loader does, with what it counts; return the slot that started."""

    def copy(self) -> BootWorld:
        """Return a world of its own in the same state."""

    def instants(self) -> Iterable[tuple[str, BootWorld]]:
        """Return what cuts would have left since the last call, each with the effect under way."""


class BootContract:
    """Subclass and give `make_world`.

    `tries` is how often the loader tries a trial. `recounts` says that it goes on counting after a commit; where it
    cannot, a committed release never goes bad. `counts_alone` says that it counts a slot while nothing else is good;
    where it boots nothing once all tries are used up, it must not.
    """

    tries = TRIES
    recounts = True
    counts_alone = True

    def make_world(self) -> BootWorld:
        raise NotImplementedError

    @pytest.fixture
    def world(self) -> BootWorld:
        return self.make_world()

    def update(self, world: BootWorld, *, counted: bool = True) -> None:
        """Bring a new machine to a committed release 2 in slot b, with slot a still proven."""
        update(world, "2", self.tries if counted else None, armed=self.tries)

    def test_a_new_machine_boots_its_factory_release(self, world: BootWorld) -> None:
        state = world.backend().read()
        assert world.boots() is A
        assert [(entry.slot, entry.version) for entry in state.order] == [(A, "1")]
        assert state.next_entry == state.order[0]
        assert state.obstacles == ()

    def test_reading_changes_nothing(self, world: BootWorld) -> None:
        before = world.backend().read()
        assert world.backend().read() == before
        assert list(world.instants()) == []

    @pytest.mark.parametrize("version", ["2", "0.5"])
    def test_an_update_or_downgrade_is_tried_committed_and_stays(self, world: BootWorld, version: str) -> None:
        stage(world, B)
        armed = world.backend().arm(B, version, tries=self.tries)
        assert (armed.slot, armed.version, armed.tries_left) == (B, version, self.tries)
        assert world.power_on() is B
        world.backend().commit(B, tries=self.tries)
        for _ in range(3):
            assert world.power_on() is B
            world.backend().commit(B, tries=self.tries)
        entry = world.backend().read().next_entry
        assert entry is not None
        assert (entry.slot, entry.version) == (B, version)
        assert entry.tries_left == (self.tries if self.recounts else None)

    @pytest.mark.parametrize("version", ["2", "0.5"])
    def test_a_trial_that_nobody_commits_ends_in_the_fallback_after_its_tries(
        self, world: BootWorld, version: str
    ) -> None:
        stage(world, B)
        world.backend().arm(B, version, tries=self.tries)
        assert [world.power_on() for _ in range(self.tries + 2)] == [B] * self.tries + [A, A]

    def test_before_arming_nothing_but_the_fallback_boots_at_any_instant(self, world: BootWorld) -> None:
        self.update(world)
        list(world.instants())
        stage(world, A)
        seen = list(world.instants())
        assert len(seen) > 5
        for effect, cut in seen:
            assert cut.boots() is B, effect
            bootable = {entry.slot for entry in cut.backend().read().order if not entry.is_bad}
            # Until its entries are gone the other slot is the older release, and still whole.
            assert bootable == {B} or effect in first_effects(seen), effect

    @pytest.mark.parametrize("version", ["2", "0.5"])
    def test_while_arming_the_fallback_is_untouched_and_every_cut_ends_in_it(
        self, world: BootWorld, version: str
    ) -> None:
        stage(world, B)
        fallback = world.backend().read().entries_of(A)
        list(world.instants())
        world.backend().arm(B, version, tries=self.tries)
        seen = list(world.instants())
        assert seen
        for effect, cut in seen:
            assert cut.backend().read().entries_of(A) == fallback, effect
            assert_counting_goes_on(cut, effect)
            assert boots_until_settled(cut) == A, effect

    def test_condemning_takes_effect_at_once_and_every_cut_ends_in_the_fallback(self, world: BootWorld) -> None:
        stage(world, B)
        world.backend().arm(B, "2", tries=self.tries)
        world.power_on()
        list(world.instants())
        world.backend().condemn(B)
        assert world.boots() is A
        world.backend().condemn(B)
        assert world.power_on() is A
        for effect, cut in world.instants():
            assert boots_until_settled(cut) == A, effect

    @pytest.mark.parametrize("counted", [False, True])
    def test_a_cut_commit_leaves_a_proven_release_and_may_be_repeated(self, world: BootWorld, counted: bool) -> None:
        tries = self.tries if counted else None
        stage(world, B)
        world.backend().arm(B, "2", tries=self.tries)
        world.power_on()
        list(world.instants())
        world.backend().commit(B, tries=tries)
        seen = list(world.instants())
        assert seen
        for effect, cut in seen:
            assert boots_until_settled(cut) in (A, B), effect
            assert_counting_goes_on(cut, effect)
            cut.backend().commit(B, tries=tries)
            assert cut.boots() is B, effect

    def test_an_uncounted_commit_never_goes_bad(self, world: BootWorld) -> None:
        self.update(world, counted=False)
        assert [world.power_on() for _ in range(5)] == [B] * 5

    def test_a_counted_commit_falls_back_when_the_release_rots_later(self, world: BootWorld) -> None:
        self.update(world)
        boots = [world.power_on() for _ in range(self.tries + 1)]
        assert boots == ([B] * self.tries + [A] if self.recounts else [B] * (self.tries + 1))

    def test_settling_makes_a_counted_release_a_fallback_that_never_goes_bad(self, world: BootWorld) -> None:
        self.update(world)
        world.power_on()
        list(world.instants())
        world.backend().settle(B)
        world.backend().settle(B)
        for effect, cut in world.instants():
            assert cut.boots() is B, effect
            cut.backend().settle(B)
            assert [entry.tries_left for entry in cut.backend().read().entries_of(B)] == [None], effect
        assert [world.power_on() for _ in range(5)] == [B] * 5

    def test_preferring_the_other_proven_release_boots_it_and_survives_cuts(self, world: BootWorld) -> None:
        self.update(world)
        list(world.instants())
        world.backend().prefer(A, "1")
        assert world.boots() is A
        for effect, cut in world.instants():
            assert boots_until_settled(cut) in (A, B), effect
            assert cut.backend().read().entries_of(A), effect
            assert cut.backend().read().entries_of(B), effect
            cut.backend().prefer(A, "1")
            assert cut.boots() is A, effect
        assert world.power_on() is A
        world.backend().commit(A, tries=self.tries)
        assert world.power_on() is A

    def test_withdrawing_may_be_repeated_after_any_cut(self, world: BootWorld) -> None:
        self.update(world)
        world.backend().settle(B)
        list(world.instants())
        world.backend().withdraw(A)
        for effect, cut in world.instants():
            assert cut.boots() is B, effect
            cut.backend().withdraw(A)
            assert cut.backend().read().entries_of(A) == (), effect
            assert cut.backend().verify(A, FILES), effect

    def test_the_only_good_entry_is_never_withdrawn(self, world: BootWorld) -> None:
        with pytest.raises(EnvironmentFailure, match="no good entry"):
            world.backend().withdraw(A)
        assert world.boots() is A

    def test_files_are_not_replaced_under_a_live_entry(self, world: BootWorld) -> None:
        with pytest.raises(EnvironmentFailure, match="withdraw"):
            world.backend().place(A, FILES[1], [UKI])

    def test_arming_needs_a_settled_fallback_and_an_artifact(self, world: BootWorld) -> None:
        with pytest.raises(EnvironmentFailure, match="missing"):
            world.backend().arm(B, "2", tries=self.tries)
        assert world.boots() is A
        if self.recounts and self.counts_alone:
            world.backend().commit(A, tries=self.tries)
            place(world, B)
            with pytest.raises(EnvironmentFailure, match="no uncounted entry"):
                world.backend().arm(B, "2", tries=self.tries)
            assert world.boots() is A

    def test_arming_may_be_repeated_and_renewed_after_a_try(self, world: BootWorld) -> None:
        stage(world, B)
        first = world.backend().arm(B, "2", tries=self.tries)
        assert world.backend().arm(B, "2", tries=self.tries) == first
        world.power_on()
        again = world.backend().arm(B, "2", tries=self.tries)
        assert again.generation > first.generation
        assert again.tries_left == self.tries
        assert [world.power_on() for _ in range(self.tries + 1)] == [B] * self.tries + [A]

    def test_a_condemned_trial_may_be_armed_again(self, world: BootWorld) -> None:
        stage(world, B)
        world.backend().arm(B, "2", tries=self.tries)
        world.power_on()
        world.backend().condemn(B)
        list(world.instants())
        world.backend().arm(B, "2", tries=self.tries)
        for effect, cut in world.instants():
            assert boots_until_settled(cut) == A, effect
        assert world.power_on() is B

    def test_when_both_releases_are_bad_the_next_commit_or_settling_heals(self, world: BootWorld) -> None:
        self.update(world)
        world.backend().commit(A, tries=self.tries)
        world.backend().condemn(A)
        world.backend().condemn(B)
        started = world.power_on()
        assert started is not None
        world.backend().settle(started)
        assert [world.power_on() for _ in range(4)] == [started] * 4

    def test_slots_take_turns_over_many_updates(self, world: BootWorld) -> None:
        slot = A
        for number in range(2, 12):
            slot = slot.other
            stage(world, slot)
            world.backend().arm(slot, str(number), tries=self.tries)
            assert world.power_on() is slot
            world.backend().commit(slot, tries=self.tries if number % 2 else None)
            assert world.power_on() is slot
            world.backend().commit(slot, tries=self.tries)

    def test_a_failed_release_is_followed_by_a_good_one(self, world: BootWorld) -> None:
        stage(world, B)
        world.backend().arm(B, "2", tries=self.tries)
        world.power_on()
        world.backend().condemn(B)
        assert world.power_on() is A
        stage(world, B)
        world.backend().arm(B, "3", tries=self.tries)
        assert world.power_on() is B
        world.backend().commit(B, tries=self.tries)
        assert world.boots() is B

    def test_what_was_placed_is_proven_byte_for_byte(self, world: BootWorld) -> None:
        stage(world, B)
        assert world.backend().verify(B, FILES) == ()
        assert b"".join(world.backend().artifact_chunks(B, "uki.efi")) == UKI
        other = hashlib.sha256(b"other").hexdigest()
        assert world.backend().verify(B, (FILES[0], BootFile("uki.efi", len(UKI), other)))
        assert world.backend().verify(B, (FILES[0], BootFile("uki.efi", len(UKI) + 1, FILES[1].sha256)))
        assert world.backend().verify(B, FILES[1:]), "an addon of another release is complained about"

    def test_space_is_counted_with_what_withdrawing_frees(self, world: BootWorld) -> None:
        stage(world, B)
        needed, free = world.backend().space_needed(B, FILES)
        assert needed >= len(UKI) + len(ADDON)
        world.backend().withdraw(B)
        assert world.backend().space_needed(B, FILES)[1] >= free


def place(world: BootWorld, slot: Slot) -> None:
    for file, content in zip(FILES, (ADDON, UKI), strict=True):
        world.backend().place(slot, file, [content[:100], content[100:]])


def stage(world: BootWorld, slot: Slot) -> None:
    """Do all that comes before arming, in the engine's order."""
    world.backend().settle(slot.other)
    world.backend().withdraw(slot)
    place(world, slot)
    assert world.backend().verify(slot, FILES) == ()


def update(world: BootWorld, version: str, tries: int | None = TRIES, *, armed: int = TRIES) -> None:
    """Bring a new machine to a release in slot b, committed with `tries`, with slot a still proven."""
    stage(world, B)
    world.backend().arm(B, version, tries=armed)
    assert world.power_on() is B
    world.backend().commit(B, tries=tries)


def boots_until_settled(world: BootWorld) -> Slot | None:
    """Boot often enough that all tries of an uncommitted trial are used up; return what boots then."""
    world = world.copy()
    for _ in range(2 * TRIES + 4):
        world.power_on()
    return world.boots()


def assert_counting_goes_on(world: BootWorld, effect: str) -> None:
    """Boot a copy: what is counted must lose a try, or it would boot for ever."""
    world = world.copy()
    before = world.backend().read().next_entry
    world.power_on()
    after = world.backend().read()
    if before is not None and before.tries_left:
        left = {entry.tries_left for entry in after.order if entry.slot is before.slot}
        assert before.tries_left - 1 in left, effect
        # A twin that kept its tries would boot for ever.
        assert (before.name, before.tries_left) not in {(entry.name, entry.tries_left) for entry in after.order}, effect


def first_effects(seen: list[tuple[str, BootWorld]]) -> set[str]:
    """Return the effects up to the one that takes the last entry of the other slot away."""
    effects: set[str] = set()
    for effect, cut in seen:
        effects.add(effect)
        if {entry.slot for entry in cut.backend().read().order} == {B}:
            break
    return effects
