"""Whole updates on a simulated machine, from a real signed repository, asked of the loader's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tests.life import armed, booted, committed, staged
from tests.machine import SimulatedMachine, replace_config
from tests.releases import Publisher, Release, make_release
from tests.simulated import Power, PowerCut
from updater.errors import EnvironmentFailure, NothingToDo, Refused, SlotDamaged, Untrusted, UpdaterError
from updater.health_plugin import Cause, Evidence, Stage
from updater.records import Policy
from updater.repository import open_repository
from updater.situation import Situation, decide
from updater.slots import Slot
from updater.steps.cancel import cancel
from updater.steps.finalize import finalize
from updater.steps.recover import recover
from updater.steps.roll_back import revert
from updater.steps.trial import TrialEngine

ONE, TWO, THREE = make_release("1.0.0"), make_release("2.0.0"), make_release("3.0.0", epoch=2)
BROKEN = Evidence(Stage.HEALTH, Cause.CHECK, "containerd does not answer", ("containerd",))


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, TWO, THREE)
    made.promote("2.0.0")
    made.promote("3.0.0", "beta")
    return made


@pytest.fixture
def machine(publisher: Publisher) -> SimulatedMachine:
    return new_machine(publisher)


def new_machine(publisher: Publisher, factory: Release = ONE, power: Power | None = None) -> SimulatedMachine:
    return SimulatedMachine(factory, mirror=publisher.mirror, roots=publisher.roots, power=power)


def order(machine: SimulatedMachine) -> list[str]:
    return [entry.name for entry in machine.boot.read().order]


def events(machine: SimulatedMachine) -> list[str]:
    return [event.event for event in machine.session().store.history()]


def test_a_good_release_is_staged_tried_and_committed(machine: SimulatedMachine) -> None:
    staged(machine)
    assert order(machine) == ["a.conf"]
    assert machine.holds(Slot.B, TWO)
    assert machine.holds(Slot.A, ONE)
    with open_repository(machine, built=None) as repository:
        finalize(machine.session(), repository=repository, health=None)
    assert order(machine) == ["b+3-0.conf", "a.conf"]
    assert booted(machine) is Situation.TRIAL
    assert machine.booted.slot is Slot.B
    assert order(machine) == ["b+2-1.conf", "a.conf"]
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    assert order(machine) == ["b+3-0.conf", "a.conf"]
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.B
    assert events(machine) == ["stage-began", "staged", "armed", "trial-boot", "committed"]
    ledger = machine.session().store.ledger()
    assert ledger is not None
    assert {item.slot: (item.release.version, item.how) for item in ledger.proven} == {
        Slot.A: ("1.0.0", "factory"),
        Slot.B: ("2.0.0", "committed"),
    }


def test_after_a_commit_each_healthy_boot_renews_the_guard_and_rot_falls_back(machine: SimulatedMachine) -> None:
    committed(machine)
    assert booted(machine) is Situation.IDLE
    assert order(machine) == ["b+2-1.conf", "a.conf"]
    TrialEngine(machine.session()).healthy_boot()
    assert order(machine) == ["b+3-0.conf", "a.conf"]
    for _ in range(3):
        assert machine.reboot_now().slot is Slot.B
    assert machine.reboot_now().slot is Slot.A
    assert decide(machine.session().facts()) is Situation.ROTTED
    assert recover(machine.session(), None) is Situation.IDLE
    assert order(machine) == ["a.conf"]
    assert "rotted" in events(machine)


def test_the_next_stage_makes_the_only_proven_release_uncounted_first(machine: SimulatedMachine) -> None:
    committed(machine)
    booted(machine)
    staged(machine, "3.0.0")
    assert order(machine) == ["b.conf"]
    armed_again = machine.session()
    with open_repository(machine, built=None) as repository:
        finalize(armed_again, repository=repository, health=None)
    assert order(machine) == ["a+3-0.conf", "b.conf"]


def test_a_verdict_rolls_back_at_once_and_the_image_is_quarantined(machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
    assert machine.reboots == ["release 2.0.0 is rolled back: containerd does not answer"]
    assert order(machine) == ["a.conf", "b+0-2.conf"] or order(machine)[0] == "a.conf"
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A
    assert order(machine) == ["a.conf"]
    ledger = machine.session().store.ledger()
    assert ledger is not None
    (bad,) = ledger.quarantine
    assert (bad.version, bad.stage, bad.cause, bad.until) == ("2.0.0", "health", "check", None)
    with pytest.raises(Refused, match=r"quarantined on this node since .*containerd does not answer"):
        staged(machine)
    assert machine.holds(Slot.A, ONE)


def test_a_condemned_trial_cannot_be_committed_while_its_reboot_is_pending(machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    engine = TrialEngine(machine.session())
    engine.roll_back("deadline", "containerd does not answer", BROKEN)
    with pytest.raises(Refused, match="is being rolled back"):
        engine.commit("healthy", "all checks hold")
    assert order(machine)[0] == "a.conf"


def test_the_next_good_release_after_a_rollback_works(machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
    booted(machine)
    committed(machine, "3.0.0")
    assert machine.booted == machine.booted
    assert machine.session().facts().running.version == "3.0.0"


def test_a_release_that_never_boots_falls_back_after_three_tries_and_is_put_off(machine: SimulatedMachine) -> None:
    armed(machine)
    assert [machine.reboot_now().slot for _ in range(4)] == [Slot.B, Slot.B, Slot.B, Slot.A]
    assert recover(machine.session(), None) is Situation.IDLE
    ledger = machine.session().store.ledger()
    assert ledger is not None
    (later,) = ledger.quarantine
    assert later.cause == "none"
    assert later.until is not None
    with pytest.raises(Refused, match="put off until"):
        staged(machine)
    machine.clock += timedelta(hours=1, seconds=1)
    staged(machine)


def test_each_round_without_evidence_waits_twice_as_long(machine: SimulatedMachine) -> None:
    waits = []
    for _ in range(3):
        armed(machine, "2.0.0")
        for _ in range(4):
            machine.reboot_now()
        recover(machine.session(), None)
        ledger = machine.session().store.ledger()
        assert ledger is not None
        assert ledger.quarantine[0].until is not None
        waits.append(ledger.quarantine[0].rounds)
    assert waits == [1, 2, 3]


def test_a_slot_that_rots_after_arming_does_not_blame_the_image(machine: SimulatedMachine) -> None:
    armed(machine)
    machine.partitions[Slot.B, "data"].content[5000] ^= 1
    for _ in range(4):
        machine.reboot_now()

    class Judge:
        def collect_evidence(self, failed: object, state: object, *, limit_bytes: int) -> Evidence:
            return Evidence(Stage.ARTIFACT, Cause.DAMAGED_SLOT, failed.damaged_slot)  # type: ignore[attr-defined]

    recover(machine.session(), Judge())  # type: ignore[arg-type]
    ledger = machine.session().store.ledger()
    assert ledger is not None
    assert ledger.quarantine[0].cause == "damaged-slot"
    assert ledger.quarantine[0].until is not None


def test_a_pinned_older_release_is_tried_counted_and_stays(publisher: Publisher) -> None:
    machine = new_machine(publisher, TWO)
    session = machine.session()
    session.store.write_policy(Policy(pin="1.0.0"))
    armed(machine)
    assert order(machine) == ["b+3-0.conf", "a.conf"]
    assert booted(machine) is Situation.TRIAL
    assert machine.session().facts().running.version == "1.0.0"
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    for _ in range(3):
        assert booted(machine) is Situation.IDLE
        assert machine.session().facts().running.version == "1.0.0"
        TrialEngine(machine.session()).healthy_boot()


def test_a_bad_older_release_falls_back_like_a_newer_one(publisher: Publisher) -> None:
    machine = new_machine(publisher, TWO)
    armed(machine, "1.0.0")
    assert [machine.reboot_now().slot for _ in range(4)] == [Slot.B, Slot.B, Slot.B, Slot.A]


def test_an_operators_reboot_in_the_trial_is_no_failure(machine: SimulatedMachine) -> None:
    armed(machine)
    assert booted(machine) is Situation.TRIAL
    assert booted(machine) is Situation.TRIAL
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.B


def test_the_other_slot_is_untouchable_during_a_trial(machine: SimulatedMachine) -> None:
    armed(machine)
    with pytest.raises(Refused) as caught:
        staged(machine, "3.0.0")
    assert caught.value.reason == "armed"
    booted(machine)
    for verb in (
        lambda: staged(machine, "3.0.0"),
        lambda: revert(machine.session(), why="x"),
        lambda: cancel(machine.session()),
    ):
        with pytest.raises(Refused, match="trial"):
            verb()
    assert machine.holds(Slot.A, ONE)
    assert machine.reboot_now().slot is Slot.B


def test_cancelling_what_is_staged_or_armed_leaves_the_running_release(machine: SimulatedMachine) -> None:
    for make in (staged, armed):
        make(machine)
        assert "cancelled" in cancel(machine.session())
        assert order(machine) == ["a.conf"]
        assert booted(machine) is Situation.IDLE
        assert machine.booted.slot is Slot.A
    with pytest.raises(NothingToDo):
        cancel(machine.session())


def test_an_operator_goes_back_to_the_other_proven_release_and_stays(machine: SimulatedMachine) -> None:
    committed(machine)
    booted(machine)
    revert(machine.session(), why="latency doubled")
    assert decide(machine.session().facts()) is Situation.REVERTING
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A
    with pytest.raises(Refused, match="an operator rolled it back: latency doubled"):
        staged(machine)


def test_a_second_order_to_roll_back_does_not_return_to_the_release_that_was_left(machine: SimulatedMachine) -> None:
    committed(machine)
    booted(machine)
    revert(machine.session(), why="latency doubled")
    booted(machine)
    TrialEngine(machine.session()).healthy_boot()
    with pytest.raises(Refused, match="an operator rolled it back: latency doubled") as caught:
        revert(machine.session(), why="latency doubled")
    assert caught.value.reason == "quarantined"
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A


def test_rolling_back_by_hand_works_both_ways_once_the_quarantine_is_cleared(machine: SimulatedMachine) -> None:
    committed(machine)
    booted(machine)
    for slot in (Slot.A, Slot.B, Slot.A):
        store = machine.session().store
        ledger = store.ledger()
        assert ledger is not None
        store.write_ledger(msgspec.structs.replace(ledger, quarantine=[]))
        revert(machine.session(), why="to and fro")
        booted(machine)
        assert machine.booted.slot is slot
        TrialEngine(machine.session()).healthy_boot()


def test_a_roll_back_that_is_cancelled_leaves_everything_as_it_was(machine: SimulatedMachine) -> None:
    committed(machine)
    booted(machine)
    revert(machine.session(), why="a mistake")
    cancel(machine.session())
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.B
    ledger = machine.session().store.ledger()
    assert ledger is not None
    assert ledger.quarantine == []


def test_a_rotten_running_slot_stops_a_stage_before_its_first_byte(machine: SimulatedMachine) -> None:
    machine.partitions[Slot.A, "data"].content[9000] ^= 1
    with pytest.raises(SlotDamaged, match="the fallback would be lost") as caught:
        staged(machine)
    assert caught.value.reason == "fallback-damaged"
    assert machine.partitions[Slot.B, "data"].writes == []


def test_the_fallback_is_proven_whole_before_anything_of_the_other_slot_changes(machine: SimulatedMachine) -> None:
    running, other = machine.partitions[Slot.A, "data"], machine.partitions[Slot.B, "data"]

    class Reads(list[tuple[int, int]]):
        def append(self, read: tuple[int, int]) -> None:
            super().append(read)
            phase = machine.session().store.journal().phase
            assert (phase, other.writes) == ("idle", []), "the fallback was still being proven"

    machine.session()
    running.reads = Reads()
    staged(machine)
    proven = {block for at, length in running.reads for block in range(at // 4096, (at + length) // 4096)}
    assert proven >= set(range(len(ONE.image) // 4096)), "the fallback was not read whole"
    assert other.writes


def test_a_tampered_uki_of_the_running_slot_stops_a_stage(machine: SimulatedMachine) -> None:
    machine.esp.write_new("EFI/acl/a.efi", [b"something else"])
    with pytest.raises(SlotDamaged, match=r"a\.efi|uki\.efi"):
        staged(machine)
    assert machine.partitions[Slot.B, "data"].writes == []


def test_a_release_larger_than_its_slot_is_refused_with_the_sums(
    publisher: Publisher, machine: SimulatedMachine
) -> None:
    publisher.publish(make_release("4.0.0", blocks=300))
    with pytest.raises(EnvironmentFailure, match=r"slot b's image needs 1\.2 MiB .* 1\.0 MiB") as caught:
        staged(machine, "4.0.0")
    assert caught.value.reason == "no-room"
    assert machine.partitions[Slot.B, "data"].writes == []


def test_a_full_esp_is_refused_before_anything_is_touched(machine: SimulatedMachine) -> None:
    machine.esp.capacity_bytes = 6000
    before = machine.esp.files
    with pytest.raises(EnvironmentFailure, match="the ESP needs"):
        staged(machine)
    assert machine.esp.files == before


def test_a_tampered_block_is_refused_and_never_written(
    publisher: Publisher, machine: SimulatedMachine, tmp_path: Path
) -> None:
    mirror = copied(publisher.mirror, tmp_path / "mirror")
    image = mirror / "images" / TWO.manifest.root.root_hash / "data"
    content = bytearray(image.read_bytes())
    content[4096 * 70] ^= 1
    image.write_bytes(content)
    machine.with_mirror(mirror)
    with pytest.raises(Untrusted):
        staged(machine)
    assert bytes(content[4096 * 70 : 4096 * 71]) not in bytes(machine.partitions[Slot.B, "data"].content)
    assert order(machine) == ["a.conf"]
    machine.with_mirror(publisher.mirror)
    staged(machine)
    assert machine.holds(Slot.B, TWO)


def test_a_mirror_that_serves_wrong_blocks_is_passed_over_for_the_next(
    publisher: Publisher, machine: SimulatedMachine, tmp_path: Path
) -> None:
    bad = copied(publisher.mirror, tmp_path / "mirror")
    for name in ("data", "tree"):
        (bad / "images" / TWO.manifest.root.root_hash / name).write_bytes(b"x" * 4096 * 200)
    uki = TWO.manifest.uki.sha256
    (bad / "blobs" / uki[:2] / uki).write_bytes(b"x" * TWO.manifest.uki.length_bytes)
    machine.config = replace_config(machine.config, mirrors=[str(bad), str(publisher.mirror)])
    staged(machine)
    assert machine.holds(Slot.B, TWO)


def test_a_tampered_manifest_is_refused(publisher: Publisher, machine: SimulatedMachine, tmp_path: Path) -> None:
    mirror = copied(publisher.mirror, tmp_path / "mirror")
    (path,) = (mirror / "targets" / "manifests").glob("*.2.0.0.json")
    path.write_bytes(path.read_bytes().replace(b'"security_epoch": 1', b'"security_epoch": 2'))
    machine.with_mirror(mirror)
    with pytest.raises(UpdaterError) as caught:
        staged(machine)
    assert isinstance(caught.value, Untrusted)
    assert machine.partitions[Slot.B, "data"].writes == []


def test_a_withdrawn_release_that_is_staged_is_not_armed(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    publisher.publish(ONE, TWO)
    publisher.promote("2.0.0")
    machine = new_machine(publisher)
    session = staged(machine)
    publisher.withdraw("2.0.0", "it eats disks")
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        with pytest.raises(Refused, match="it eats disks"):
            finalize(session, repository=repository, health=None)
    assert order(machine) == ["a.conf"]


def test_a_staged_slot_that_rots_is_not_armed(machine: SimulatedMachine) -> None:
    session = staged(machine)
    machine.partitions[Slot.B, "data"].content[4096 * 3] ^= 1
    with open_repository(machine, built=None) as repository, pytest.raises(SlotDamaged):
        finalize(session, repository=repository, health=None)
    assert order(machine) == ["a.conf"]


def test_the_floor_rises_by_one_with_each_commit_and_stops_older_epochs(publisher: Publisher) -> None:
    publisher.publish(make_release("0.5.0", epoch=0))
    machine = new_machine(publisher)
    committed(machine, "3.0.0")
    ledger = machine.session().store.ledger()
    assert ledger is not None
    assert ledger.floor == 2
    booted(machine)
    with pytest.raises(Refused) as caught:
        staged(machine, "2.0.0")
    assert caught.value.reason == "below-floor"
    revert(machine.session(), why="rolling back to the fallback is always allowed")
    booted(machine)
    assert machine.session().facts().running.version == "1.0.0"


def test_a_lost_state_partition_does_not_stop_a_trial_from_ending(machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    machine.state._files.clear()
    engine = TrialEngine(machine.session())
    found = engine.trial()
    assert found is not None
    assert found.release == "2.0.0"
    machine.state.capacity_bytes = 0
    engine.roll_back("deadline", "no state", BROKEN)
    machine.state.capacity_bytes = 1 << 30
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A


def test_lost_records_are_rebuilt_by_adopting_what_runs_from_a_good_entry(machine: SimulatedMachine) -> None:
    machine.state._files.clear()
    for name in ("EFI/acl/ledger-0.json", "EFI/acl/ledger-1.json"):
        machine.esp.remove(name)
    assert decide(machine.session().facts()) is Situation.UNPROVEN
    with pytest.raises(EnvironmentFailure, match="not on record as proven"):
        staged(machine)
    TrialEngine(machine.session()).healthy_boot()
    assert decide(machine.session().facts()) is Situation.IDLE
    committed(machine)


def test_an_interrupted_stage_resumes_without_fetching_what_is_there(machine: SimulatedMachine) -> None:
    machine.restored(Power(cut_after=14))
    with pytest.raises(PowerCut):
        staged(machine)
    machine.restored(Power())
    assert booted(machine) in (Situation.STAGING, Situation.IDLE)
    staged(machine)
    assert machine.holds(Slot.B, TWO)


def test_a_stale_copy_of_the_partition_table_stops_a_stage_until_an_operator_says_so(machine: SimulatedMachine) -> None:
    machine.table = dataclasses.replace(machine.table, consistent=False)
    before = machine.table
    assert booted(machine) is Situation.IDLE
    with pytest.raises(
        EnvironmentFailure, match="the backup is stale, and no update of ours was at work there"
    ) as caught:
        staged(machine)
    assert caught.value.reason == "gpt-stale"
    assert machine.table == before
    assert "layout check --repair" in machine.session().facts().notes[-1]
    assert machine.mend_gpt()
    staged(machine)


def test_a_half_finished_write_of_ours_is_completed_by_recovery(machine: SimulatedMachine) -> None:
    machine.restored(Power(before="write the table's backup copy"))
    with pytest.raises(PowerCut):
        staged(machine)
    machine.restored(Power())
    assert machine.gpt_problem()
    assert booted(machine) is Situation.STAGING
    assert not machine.gpt_problem()


def copied(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target)
    return target


# A cut before every durable effect of the whole life of an update, and of the recovery after it.


def life(machine: SimulatedMachine) -> Iterator[None]:
    """Run an update to its commit, pausing where the machine reboots."""
    armed(machine)
    yield
    recover(machine.session(), None)
    TrialEngine(machine.session()).commit("healthy", "all checks hold")


def count_effects(publisher: Publisher, tail: bool) -> int:
    machine = new_machine(publisher)
    run = life(machine)
    next(run)
    before = len(machine.power.effects)
    machine.reboot_now()
    for _ in run:
        pass
    return len(machine.power.effects) - before if tail else before


@pytest.mark.parametrize("part", range(4))
def test_a_power_cut_before_any_effect_up_to_arming_leaves_a_machine_that_boots_and_updates(
    publisher: Publisher, part: int
) -> None:
    total = count_effects(publisher, tail=False)
    assert total > 25
    for cut_after in range(part, total, 4):
        machine = new_machine(publisher)
        machine.restored(Power(cut_after))
        with pytest.raises(PowerCut):
            armed(machine)
        machine.restored(Power())
        assert machine.holds(Slot.A, ONE), f"cut {cut_after} harmed the running slot"
        booted(machine)
        if machine.booted.slot is Slot.B:
            assert machine.holds(Slot.B, TWO), f"cut {cut_after} armed something unproven"
            TrialEngine(machine.session()).commit("healthy", "all checks hold")
        else:
            with_update(machine)
        assert machine.session().facts().running.version == "2.0.0"


def with_update(machine: SimulatedMachine) -> None:
    """Finish the update from wherever the cut left it."""
    situation = decide(machine.session().facts())
    if situation is Situation.STAGED:
        with open_repository(machine, built=None) as repository:
            finalize(machine.session(), repository=repository, health=None)
    elif situation is not Situation.ARMED:
        armed(machine)
    assert booted(machine) is Situation.TRIAL
    TrialEngine(machine.session()).commit("healthy", "all checks hold")


def test_a_power_cut_before_any_effect_of_a_commit_ends_committed(publisher: Publisher) -> None:
    total = count_effects(publisher, tail=True)
    assert total >= 5
    for cut_after in range(total):
        machine = new_machine(publisher)
        run = life(machine)
        next(run)
        machine.reboot_now()
        machine.restored(Power(cut_after))
        with pytest.raises(PowerCut):
            next(run)
        machine.restored(Power())
        situation = booted(machine)
        assert machine.booted.slot is Slot.B
        if situation is Situation.TRIAL:
            TrialEngine(machine.session()).commit("healthy", "all checks hold")
        assert decide(machine.session().facts()) is Situation.IDLE
        assert booted(machine) is Situation.IDLE
        assert machine.booted.slot is Slot.B


def test_a_power_cut_before_any_effect_of_a_roll_back_ends_on_the_old_release(publisher: Publisher) -> None:
    def fail(machine: SimulatedMachine) -> None:
        TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
        machine.reboot_now()
        recover(machine.session(), None)

    probe = new_machine(publisher)
    armed(probe)
    booted(probe)
    before = len(probe.power.effects)
    fail(probe)
    total = len(probe.power.effects) - before
    assert total >= 6
    for cut_after in range(total):
        machine = new_machine(publisher)
        armed(machine)
        booted(machine)
        machine.restored(Power(cut_after))
        with pytest.raises(PowerCut):
            fail(machine)
        machine.restored(Power())
        for _ in range(4):
            if booted(machine) is not Situation.TRIAL:
                break
            if machine.session().store.journal().phase == "rolling-back":
                TrialEngine(machine.session()).trial()
            else:
                TrialEngine(machine.session()).roll_back("deadline", "containerd does not answer", BROKEN)
        assert machine.booted.slot is Slot.A, f"cut {cut_after}"
        assert decide(machine.session().facts()) is Situation.IDLE
        assert machine.holds(Slot.A, ONE)
        with pytest.raises(Refused, match="quarantined"):
            staged(machine)


def test_the_retry_delay_is_a_setting(publisher: Publisher) -> None:
    machine = new_machine(publisher)
    machine.config = replace_config(machine.config, retry_after_s=0.0)
    armed(machine)
    for _ in range(4):
        machine.reboot_now()
    recover(machine.session(), None)
    staged(machine)
    assert msgspec.to_builtins(machine.session().store.journal().phase) == "staged"


def test_a_commit_that_finds_no_room_is_tried_again_in_the_same_boot(machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    engine = TrialEngine(machine.session())
    room = machine.esp.capacity_bytes
    machine.esp.capacity_bytes -= machine.esp.free_bytes()
    with pytest.raises(EnvironmentFailure):
        engine.commit("healthy", "all checks hold")
    assert decide(machine.session().facts()) is Situation.COMMITTING
    assert engine.trial() is not None, "the health service must not take it for a commit by hand"
    assert booted(machine) is Situation.COMMITTING, "a failed unit would be held against the release"
    machine.esp.capacity_bytes = room
    TrialEngine(machine.session()).commit("healthy", "all checks hold")
    assert decide(machine.session().facts()) is Situation.IDLE
    assert events(machine).count("committed") == 1


def test_a_commit_that_never_finds_room_is_rolled_back_without_blame(machine: SimulatedMachine) -> None:
    armed(machine)
    booted(machine)
    machine.esp.capacity_bytes -= machine.esp.free_bytes()
    engine = TrialEngine(machine.session())
    with pytest.raises(EnvironmentFailure):
        engine.commit("healthy", "all checks hold")
    engine.roll_back("commit-failed", "the ESP is full", Evidence(Stage.HEALTH, Cause.NONE, "the ESP is full"))
    assert machine.reboots
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A
    assert order(machine) == ["a.conf"]
    ledger = machine.session().store.ledger()
    assert ledger is not None
    (put_off,) = ledger.quarantine
    assert put_off.until is not None
    assert put_off.sentence == "the ESP is full"


def test_a_trial_whose_entry_the_loader_cannot_read_is_put_off_and_says_so(machine: SimulatedMachine) -> None:
    armed(machine)
    path = "loader/entries/b+3-0.conf"
    machine.esp.write_as_firmware(path, bytes(len(machine.esp.files[path])))
    assert booted(machine) is Situation.IDLE
    assert machine.booted.slot is Slot.A
    ledger = machine.session().store.ledger()
    assert ledger is not None
    (put_off,) = ledger.quarantine
    assert put_off.until is not None
    assert "the loader lists no entry of slot b" in put_off.sentence
