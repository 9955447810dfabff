"""A power cut at every effect of an operation: all that it could leave, started up again and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.volatile_cuts import Disk, Instant
from tests.volatile_files import Content
from tests.volatile_machine import VolatileMachine, World
from updater.errors import EnvironmentFailure
from updater.repository import Repository, open_repository
from updater.situation import Situation, running_is_proven
from updater.slots import Slot
from updater.steps.finalize import finalize
from updater.steps.stage import stage
from updater.steps.trial import TrialEngine

NEXT = "4.0.0"
"""The release of the next update, which no operation touches."""

_MOST_STEPS = 12
_COMMIT = ("healthy", "all checks hold")


@dataclass(frozen=True)
class Operation:
    """What is cut: one of the verbs of the state machine, or of an operator.

    `begin` makes the machine, powered on where it runs already. `proven` are the versions that may boot without guard,
    before it or after it, and `tried` those that may be armed. `done` tells whether its result is there, as it must be
    after every cut once `run` has returned; it need not outlast further cuts unless it is `lasting`. `spoiled` is what
    befalls the disk then besides.
    """

    name: str
    verb: str
    begin: Callable[[World], VolatileMachine]
    run: Callable[[VolatileMachine], object]
    done: Callable[[VolatileMachine, Situation], bool]
    proven: frozenset[str] = frozenset({"1.0.0"})
    tried: frozenset[str] = frozenset()
    lasting: bool = True
    spoiled: Callable[[Disk], Disk] | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of what is possible is tried: every combination up to `most` of them, and `sampled` of more.

    `depth` is how many cuts may hit the recovery from a cut, one after the other. The next update is tried from `every`
    state that recovery ends in, or else from enough of them that each part (the files of the ESP, the records, the
    trusted metadata, which slots are whole, the table, the variables) was met in each of its states; without `updates`
    from none.
    """

    most: int = 16
    sampled: int = 3
    depth: int = 1
    every: bool = False
    updates: bool = True

    def deeper(self) -> Effort:
        """Return the effort for cuts of a recovery: one level less, and a sixteenth of the combinations."""
        return replace(self, most=self.most // 16, sampled=self.sampled // 16, depth=self.depth - 1)


@dataclass
class Count:
    """What was tried."""

    effects: int = 0
    cuts: int = 0
    states: int = 0
    recoveries: int = 0
    updates: int = 0
    lost_tables: int = 0

    def plus(self, other: Count) -> Count:
        """Return the sum."""
        return Count(
            self.effects + other.effects,
            self.cuts + other.cuts,
            self.states + other.states,
            self.recoveries + other.recoveries,
            self.updates + other.updates,
            self.lost_tables + other.lost_tables,
        )


class Violation(AssertionError):
    """A cut that left what must never be."""


@dataclass
class Sweep:
    """One operation on one machine, cut everywhere; raises Violation at the first state that is not as it must be."""

    world: World
    operation: Operation
    effort: Effort = field(default_factory=Effort)
    count: Count = field(default_factory=Count)
    effects: list[str] = field(default_factory=list)
    keep_going: bool = False
    latest_first: bool = False
    violations: list[str] = field(default_factory=list)
    _events: int = 0
    _seen: dict[object, int] = field(default_factory=dict)

    def run(self) -> Count:
        """Cut the operation after each of its effects, and judge all that it could leave."""
        machine, instants = self.recorded()
        numbered = list(enumerate(instants))
        for number, instant in reversed(numbered) if self.latest_first else numbered:
            done = number == len(instants) - 1
            if done or self.operation.spoiled is None:
                self._cut(instant, machine.boots, self.effort, done, ())
        return self.count

    def recorded(self) -> tuple[VolatileMachine, list[Instant]]:
        """Go through the operation once; return the machine then, and the instants of each effect."""
        machine = self.operation.begin(self.world)
        self._events = len(machine.session().store.history()) if self.operation.spoiled is None else 0
        # What another operation renewed is renewed here as well: effects must not depend on what ran before.
        self.world.renewed.clear()
        with machine.recorded() as instants:
            self.operation.run(machine)
        self.effects = [instant.effect for instant in instants[1:]]
        self.count.effects = len(self.effects)
        return machine, instants

    def _cut(self, instant: Instant, boots: int, effort: Effort, done: bool, before: tuple[str, ...]) -> None:
        for disk in instant.cuts(most=effort.most, sampled=effort.sampled):
            self.count.cuts += 1
            if self.operation.spoiled is not None and not before:
                disk = self.operation.spoiled(disk)
            known = self._seen.get((disk.key, done), -1)
            if known >= effort.depth:
                continue
            self._seen[disk.key, done] = effort.depth
            if before and not instant.running and self._lost_its_table(disk):
                self.count.lost_tables += 1
                continue
            self.count.states += known < 0
            try:
                with explained(self.operation.name, (*before, instant.effect)):
                    if instant.running:
                        # Linux reads no other copy of the table unless it is told to.
                        assert VolatileMachine(self.world, disk).disk.table().primary_ok, "the primary table is invalid"
                    if not before or effort.every:
                        self._check_left_alone(VolatileMachine(self.world, disk, boots=boots))
                    machine, instants = self._judged(disk, boots, done)
            except Violation as violation:
                if not self.keep_going:
                    raise
                self.violations.append(str(violation))
                continue
            if effort.depth:
                done_then = done and self.operation.lasting
                for later in instants[1:]:
                    self._cut(later, machine.boots, effort.deeper(), done_then, (*before, instant.effect))

    def _lost_its_table(self, disk: Disk) -> bool:
        """Tell whether a second cut in a row, inside the loader's own count, left neither copy of the table.

        It writes each copy's header before its entries and flushes neither, before any code of ours runs
        (docs/gpt-priority.md): nobody can mend the first copy in between.
        """
        if self.world.layout.boot.backend != "gpt-priority":
            return False
        try:
            VolatileMachine(self.world, disk)
        except EnvironmentFailure as failure:
            return failure.reason == "gpt-invalid"
        return False

    def _judged(self, disk: Disk, boots: int, done: bool) -> tuple[VolatileMachine, list[Instant]]:
        """Start a machine up from what a cut left; return it, and the instants of its boot and recovery."""
        self.count.recoveries += 1
        check_media(VolatileMachine(self.world, disk, boots=boots), *self._allowed)
        machine = VolatileMachine(self.world, disk, boots=boots)
        with machine.recorded() as instants:
            machine.power_on()
            situation = machine.recover()
        self._check_truth(machine, situation)
        if done:
            assert self.operation.done(machine, situation), f"what was done is not there: {describe(machine)}"
        self._check_next_update(machine)
        return machine, instants

    def _is_new(self, machine: VolatileMachine) -> bool:
        """Tell whether the next update has not been tried from here; without `every`, from each part of it."""
        disk = machine.off()
        whole = tuple(release.version if (release := machine.release_in(slot)) else "" for slot in Slot)
        records = frozenset(item for item in disk.records if not item[0].startswith("history"))
        parts: list[object] = [frozenset(disk.esp.items()), records, disk.trust, whole, disk.table, disk.efi_values]
        parts = [disk.key] if self.effort.every else list(enumerate(parts))
        fresh = [part for part in parts if part not in self.world.updated]
        self.world.updated.update(fresh)
        return bool(fresh)

    def _check_left_alone(self, machine: VolatileMachine) -> None:
        """A machine that nobody tends ends on a proven release."""
        before = machine.off().key
        booted = [machine.power_on().version]
        if machine.off().key != before:
            booted += [machine.power_on().version for _ in range(machine.layout.boot.tries + 1)]
        elif booted[0] in self.operation.proven:
            # Nothing is counted: it boots like this for ever, and recovers as after the first boot.
            return
        assert booted[-1] in self.operation.proven, f"left alone the machine boots {booted}"
        self._check_truth(machine, machine.recover())
        self._check_next_update(machine)

    def _check_truth(self, machine: VolatileMachine, situation: Situation) -> None:
        check_truth(machine, situation, *self._allowed)
        events = len(machine.session().store.history())
        assert events >= self._events, f"the history had {self._events} lines, and has {events}"

    @property
    def _allowed(self) -> tuple[frozenset[str], frozenset[str]]:
        return self.operation.proven, self.operation.tried

    def _check_next_update(self, machine: VolatileMachine) -> None:
        if self.effort.updates and self._is_new(machine):
            self.count.updates += 1
            goes_on(machine)


def check_media(machine: VolatileMachine, proven: frozenset[str], tried: frozenset[str]) -> None:
    """Assert that what could boot is a whole release, and if it is not proven, counted and meant to be armed."""
    state = machine.boot.read()
    assert state.next_entry is not None, "nothing would boot"
    for entry in state.order:
        if entry.slot is None or entry.is_bad:
            continue
        release = machine.release_in(entry.slot)
        assert release is not None, f"the entry {entry.name} boots slot {entry.slot}, which holds nothing whole"
        if release.version not in proven:
            assert release.version in tried, f"{release.version} is bootable: {entry}"
            assert entry.tries_left is not None, f"{release.version} is not proven, and would boot for ever"


def check_truth(machine: VolatileMachine, situation: Situation, proven: frozenset[str], tried: frozenset[str]) -> None:
    """Assert that the records say what lies on the disk, after a recovery."""
    assert machine.booted is not None
    facts = machine.session().facts()
    ledger, update, slot = facts.ledger, facts.journal.update, machine.booted.slot
    assert not facts.gpt_problem, f"the table's copies differ after recovery: {facts.gpt_problem}"
    aside = [name for name in machine.state_files.files if ".corrupt-" in name]
    assert not aside, f"documents were lost on the state partition: {aside}"
    for item in ledger.proven:
        assert item.release.version in proven, f"{item.release.version} counts as proven"
        held = machine.release_in(item.slot)
        found = held.version if held else "nothing whole"
        assert found == item.release.version, f"slot {item.slot} holds {found}, not {item.release.version}"
    running = machine.booted.version
    good = {entry.slot for entry in facts.boot.order if not entry.is_bad}
    if situation in (Situation.TRIAL, Situation.COMMITTING):
        assert running in tried
        assert update is not None
        assert machine.booted.root_hash == update.release.root.root_hash
        assert ledger.proven_in(slot.other) is not None, "a trial has no fallback on record"
        return
    assert running in proven, f"{running} runs, and the node is {situation.value}"
    if situation is not Situation.UNPROVEN:
        assert running_is_proven(facts), f"the running {running} is not on record as proven"
    if situation in (Situation.STAGED, Situation.ARMED):
        assert update is not None
        held = machine.release_in(update.slot)
        assert held is not None, f"{situation.value}, and slot {update.slot} is not whole"
        assert held.version == update.release.version
    if situation is Situation.ARMED:
        following = facts.boot.next_entry
        assert following is not None
        assert following.slot is slot.other, f"armed, and {following.name} boots next"
    elif situation is Situation.REVERTING:
        assert ledger.proven_in(slot.other) is not None
    elif situation in (Situation.STAGING, Situation.STAGED):
        # Its old release may boot until its entry is gone; what is being staged may not.
        held = machine.release_in(slot.other) if slot.other in good else None
        assert update is not None
        assert held is None or held.version != update.release.version, f"{held.version if held else ''} is armed"
    elif situation is Situation.IDLE:
        assert slot.other not in good or ledger.proven_in(slot.other) is not None, "idle, and a release is armed"
    else:
        assert situation is Situation.UNPROVEN, f"recovery ends in {situation.value}"


@contextmanager
def explained(operation: str, effects: tuple[str, ...]) -> Iterator[None]:
    """Say where the power was cut."""
    try:
        yield
    except Exception as failure:
        where = ", then after ".join(repr(effect) for effect in effects)
        raise Violation(f"{operation}, cut after {where}: {type(failure).__name__}: {failure}") from failure


def describe(machine: VolatileMachine) -> str:
    """Say where a machine stands."""
    facts = machine.session().facts()
    entries = ", ".join(f"{entry.name} ({entry.version})" for entry in facts.boot.order)
    quarantined = ", ".join(f"{item.version} until {item.until}" for item in facts.ledger.quarantine)
    proven = ", ".join(f"{item.slot}={item.release.version}" for item in facts.ledger.proven)
    return (
        f"{facts.running.version} runs from {facts.running.slot}, journal {facts.journal.phase}, entries [{entries}], "
        f"proven [{proven}], quarantined [{quarantined}]"
    )


@contextmanager
def repository_of(machine: VolatileMachine) -> Iterator[Repository]:
    """Open the repository with fresh metadata: what a renewal did not change is not renewed again."""
    with open_repository(machine, built=None) as repository:
        before = _trusted(machine)
        if before not in machine.world.renewed:
            accepted = repository.refresh()
            # The floors come first, so that a cut may leave them alone.
            damage = [text for text in accepted.mended if not text.startswith("no accepted metadata stands beside")]
            assert not damage, f"the trusted metadata was damaged: {damage}"
            if _trusted(machine) == before:
                machine.world.renewed.add(before)
        yield repository


def _trusted(machine: VolatileMachine) -> frozenset[tuple[str, Content]]:
    return frozenset(item for item in machine.state_files.files.items() if item[0].startswith("trust/"))


def renewed(machine: VolatileMachine) -> None:
    """Renew the metadata."""
    with open_repository(machine, built=None) as repository:
        repository.refresh()


def staged(machine: VolatileMachine, version: str) -> None:
    """Stage a release."""
    with repository_of(machine) as repository:
        stage(machine.session(), repository, to=version)


def armed(machine: VolatileMachine) -> None:
    """Finalize what is staged."""
    finalize(machine.session(), repository=None, health=None)


def committed(machine: VolatileMachine) -> None:
    """Commit the trial that runs."""
    TrialEngine(machine.session()).commit(*_COMMIT)


def goes_on(machine: VolatileMachine) -> None:
    """Let the services do what is to be done, with a healthy release, until the next update is committed."""
    told = []
    for _ in range(_MOST_STEPS):
        situation = machine.recover()
        told.append(situation.value)
        assert machine.booted is not None
        if situation is Situation.IDLE and machine.booted.version == NEXT:
            assert machine.release_in(machine.booted.slot) is not None
            return
        _one_step(machine, situation)
    raise AssertionError(f"the next update never ends: {told}, {describe(machine)}")


def _one_step(machine: VolatileMachine, situation: Situation) -> None:
    engine = TrialEngine(machine.session())
    update = machine.session().store.journal().update
    if situation is Situation.TRIAL:
        engine.trial()
        if machine.reboots:
            machine.power_on()
        else:
            committed(machine)
    elif situation is Situation.UNPROVEN:
        engine.healthy_boot()
    elif situation is Situation.STAGED:
        armed(machine)
        machine.power_on()
    elif situation in (Situation.ARMED, Situation.REVERTING):
        machine.power_on()
    else:
        resumes = situation is Situation.STAGING and update is not None
        staged(machine, update.release.version if resumes and update is not None else NEXT)


def other_slot(machine: VolatileMachine) -> Slot:
    """Return the slot that does not run."""
    assert machine.booted is not None
    return machine.booted.slot.other
