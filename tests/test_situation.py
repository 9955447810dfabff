"""Where a machine stands, decided from what was observed."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from updater.boot.protocol import BootState, Entry
from updater.facts import Facts
from updater.node.protocol import Running
from updater.records import (
    Armed,
    FileRecord,
    Journal,
    Ledger,
    Policy,
    Proven,
    ReleaseRecord,
    RootRecord,
    Update,
    VerdictRecord,
)
from updater.situation import EDGES, Situation, decide
from updater.slots import Slot

DOCS = Path(__file__).parent.parent / "docs"
NOW = datetime(2026, 11, 20, tzinfo=UTC)
STAMP = "2026-11-20T00:00:00Z"


def release(version: str, digit: str) -> ReleaseRecord:
    root = RootRecord(4096 * 10, 4096, digit * 64, "", "11111111-2222-3333-4444-555555555555")
    return ReleaseRecord(version, digit * 64, 1, STAMP, root, [FileRecord("uki.efi", 9, digit * 64)])


OLD, NEW = release("1.0.0", "a"), release("2.0.0", "b")
LEDGER = Ledger(proven=[Proven(Slot.A, OLD, "factory", STAMP)])
ARMED_LEDGER = msgspec.structs.replace(LEDGER, armed=Armed(Slot.B, NEW))


def entry(slot: Slot, left: int | None = None, done: int = 0) -> Entry:
    counter = f"+{left}-{done}" if left is not None else ""
    return Entry(f"{slot.value}{counter}.conf", slot, "", 1 if slot is Slot.B else 0, left, done)


def update(**changes: Any) -> Update:
    made = Update("id", NEW, Slot.B, "1.0.0", Slot.A, STAMP, staged=STAMP, armed=STAMP, armed_boot_id="boot-1")
    return msgspec.structs.replace(made, **changes)


def facts(
    *,
    runs: ReleaseRecord = OLD,
    slot: Slot = Slot.A,
    entries: tuple[Entry, ...] = (entry(Slot.A),),
    journal: Journal | None = None,
    ledger: Ledger = LEDGER,
    boot_id: str = "boot-1",
    live: bool = True,
) -> Facts:
    return Facts(
        live=live,
        running=Running(slot, runs.root.root_hash, runs.version),
        boot=BootState(order=entries, next_name=entries[0].name if entries else None),
        boot_id=boot_id,
        journal=journal or Journal(),
        ledger=ledger,
        ledger_lost=False,
        policy=Policy(),
        now=NOW,
        other_root_hash=None,
    )


def armed(**changes: Any) -> Journal:
    return Journal(phase="armed", update=update(**changes))


FALLBACK = entry(Slot.A)


def test_a_proven_release_with_nothing_under_way_is_idle() -> None:
    assert decide(facts()) is Situation.IDLE


def test_staging_and_staged_are_what_the_journal_says() -> None:
    assert decide(facts(journal=Journal(phase="staging", update=update()))) is Situation.STAGING
    assert decide(facts(journal=Journal(phase="staged", update=update()))) is Situation.STAGED


def test_an_armed_release_before_its_reboot_is_armed() -> None:
    assert decide(facts(journal=armed(), entries=(entry(Slot.B, 3), FALLBACK))) is Situation.ARMED


def test_the_release_that_runs_is_the_trial_whatever_the_counter_says() -> None:
    for left in (2, 0):
        entries = (entry(Slot.B, left, 3 - left), FALLBACK)
        found = decide(facts(runs=NEW, slot=Slot.B, journal=armed(), entries=entries, boot_id="boot-2"))
        assert found is Situation.TRIAL


def test_the_old_release_after_all_tries_has_fallen_back() -> None:
    entries = (FALLBACK, entry(Slot.B, 0, 3))
    assert decide(facts(journal=armed(), entries=entries, boot_id="boot-5")) is Situation.FELL_BACK


def test_the_old_release_with_tries_left_is_still_armed() -> None:
    """An operator chose the old entry in the loader's menu: the trial is still to come."""
    entries = (entry(Slot.B, 2, 1), FALLBACK)
    assert decide(facts(journal=armed(), entries=entries, boot_id="boot-5")) is Situation.ARMED


def test_a_cut_before_the_entry_was_published_leaves_it_staged() -> None:
    assert decide(facts(journal=armed(armed=None))) is Situation.STAGED


def test_an_entry_that_vanished_after_arming_has_fallen_back() -> None:
    assert decide(facts(journal=armed(), boot_id="boot-2")) is Situation.FELL_BACK


def test_a_recorded_commit_is_finished_first() -> None:
    verdict = VerdictRecord("commit", "healthy", "all checks hold", STAMP, "boot-2")
    journal = Journal(phase="committing", update=update(verdict=verdict))
    for entries in ((entry(Slot.B, 2, 1), FALLBACK), (entry(Slot.B), FALLBACK)):
        found = decide(facts(runs=NEW, slot=Slot.B, journal=journal, entries=entries, boot_id="boot-2"))
        assert found is Situation.COMMITTING


def test_a_condemned_trial_that_boots_again_is_still_a_trial() -> None:
    verdict = VerdictRecord("roll-back", "deadline", "containerd is down", STAMP, "boot-2")
    journal = Journal(phase="rolling-back", update=update(verdict=verdict))
    entries = (entry(Slot.B, 1, 2), FALLBACK)
    assert decide(facts(runs=NEW, slot=Slot.B, journal=journal, entries=entries, boot_id="b3")) is Situation.TRIAL


def test_a_lost_journal_is_made_good_by_the_esp() -> None:
    trial = facts(runs=NEW, slot=Slot.B, ledger=ARMED_LEDGER, entries=(entry(Slot.B, 2, 1), FALLBACK))
    assert decide(trial) is Situation.TRIAL
    assert decide(facts(ledger=ARMED_LEDGER, entries=(entry(Slot.B, 3), FALLBACK))) is Situation.ARMED
    assert decide(facts(ledger=ARMED_LEDGER, entries=(FALLBACK, entry(Slot.B, 0, 3)))) is Situation.FELL_BACK


def test_a_committed_release_that_used_up_its_tries_has_rotted() -> None:
    ledger = LEDGER.with_proven(Proven(Slot.B, NEW, "committed", STAMP))
    assert decide(facts(ledger=ledger, entries=(FALLBACK, entry(Slot.B, 0, 3)))) is Situation.ROTTED
    assert decide(facts(ledger=ledger, entries=(entry(Slot.B, 3), FALLBACK))) is Situation.IDLE


@pytest.mark.parametrize("ledger", [Ledger(), LEDGER.without_proven(Slot.A)])
def test_a_running_release_without_a_record_is_unproven(ledger: Ledger) -> None:
    assert decide(facts(ledger=ledger)) is Situation.UNPROVEN


def test_another_image_in_the_proven_slot_is_unproven() -> None:
    assert decide(facts(runs=NEW, slot=Slot.A)) is Situation.UNPROVEN


def test_reverting_ends_when_the_other_slot_runs() -> None:
    ledger = LEDGER.with_proven(Proven(Slot.B, NEW, "committed", STAMP))
    going = Update("id", OLD, Slot.A, "2.0.0", Slot.B, STAMP, armed_boot_id="boot-1")
    journal = Journal(phase="reverting", update=going)
    assert decide(facts(runs=NEW, slot=Slot.B, ledger=ledger, journal=journal)) is Situation.REVERTING
    assert decide(facts(ledger=ledger, journal=journal, boot_id="boot-2")) is Situation.REVERTED


def test_a_disk_image_never_counts_as_on_trial() -> None:
    """What the loader would boot is all that a file can tell."""
    image = facts(runs=NEW, slot=Slot.B, journal=armed(), entries=(entry(Slot.B, 3), FALLBACK), live=False, boot_id="")
    assert decide(image) is Situation.ARMED


def test_the_diagram_has_the_edges_of_the_code() -> None:
    text = (DOCS / "state-machine.md").read_text()
    drawn = {
        (Situation(before), label.strip(), Situation(after))
        for before, after, label in re.findall(r"^    ([a-z-]+) --> ([a-z-]+): (.+)$", text, re.MULTILINE)
    }
    assert drawn == EDGES


def test_every_state_is_explained() -> None:
    text = (DOCS / "state-machine.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == {state.value for state in Situation}
