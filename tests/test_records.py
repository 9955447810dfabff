"""State that survives rollbacks, older code, power cuts and rotten disks."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulated import Power, PowerCut, SimulatedDirectory
from updater.errors import EnvironmentFailure, InvalidDocument
from updater.records import (
    Event,
    FileRecord,
    Journal,
    Kept,
    Ledger,
    Policy,
    Proven,
    Quarantined,
    ReleaseRecord,
    RootRecord,
    Update,
    decode_state,
    encode_state,
)
from updater.slots import Slot
from updater.store import ESP_LEDGERS, HISTORY_LINES, Store

STAMP = "2026-11-20T00:00:00Z"


def release(version: str = "1.0.0", digit: str = "a") -> ReleaseRecord:
    root = RootRecord(4096 * 10, 4096, digit * 64, "", "11111111-2222-3333-4444-555555555555")
    return ReleaseRecord(version, digit * 64, 1, STAMP, root, [FileRecord("uki.efi", 9, digit * 64)])


def bad(version: str, digit: str) -> Quarantined:
    return Quarantined(version, digit * 64, "health", "check", "containerd is down", STAMP)


def store_on(state: SimulatedDirectory, esp: SimulatedDirectory, *, read_only: bool = False) -> Store:
    return Store(state, esp, lambda: datetime(2026, 11, 20, tzinfo=UTC), read_only=read_only)


def disks() -> tuple[SimulatedDirectory, SimulatedDirectory]:
    return SimulatedDirectory(ignore_case=False), SimulatedDirectory()


LEDGER = Ledger(floor=2).with_proven(Proven(Slot.A, release(), "factory", STAMP)).with_quarantined(bad("0.9", "b"))


def test_a_fresh_machine_has_no_ledger_and_an_idle_journal() -> None:
    store = store_on(*disks())
    assert store.ledger() is None
    assert store.journal() == Journal()
    assert store.policy() == Policy()
    assert store.history() == []


def test_what_is_written_is_read_back() -> None:
    store = store_on(*disks())
    journal = Journal(phase="staged", update=Update("id", release(), Slot.B, "0.9", Slot.A, STAMP))
    store.write_journal(journal)
    written = store.write_ledger(LEDGER)
    assert store.journal() == journal
    assert store.ledger() == written
    assert written.serial == 1
    assert msgspec.structs.replace(written, serial=0) == LEDGER


def test_the_esp_copy_of_the_ledger_survives_the_state_partition() -> None:
    _, esp = disks()
    store_on(SimulatedDirectory(), esp).write_ledger(LEDGER)
    found = store_on(SimulatedDirectory(), esp).ledger()
    assert found is not None
    assert found.quarantined("b" * 64) is not None
    assert found.floor == 2


def test_the_state_copy_of_the_ledger_survives_the_esp() -> None:
    state, _ = disks()
    store_on(state, SimulatedDirectory()).write_ledger(LEDGER)
    assert store_on(state, SimulatedDirectory()).ledger() is not None


def test_the_copy_with_the_higher_serial_counts() -> None:
    state, esp = disks()
    store = store_on(state, esp)
    store.write_ledger(LEDGER)
    older = state.files["ledger.json"]
    store.write_ledger(LEDGER.without_quarantined("b" * 64))
    state.replace("ledger.json", older)
    found = store_on(state, esp).ledger()
    assert found is not None
    assert found.quarantine == []


def test_the_two_esp_copies_take_turns_so_that_one_is_always_whole() -> None:
    state, esp = disks()
    store = store_on(state, esp)
    for floor in range(4):
        before = [esp.files.get(name) for name in ESP_LEDGERS]
        store.write_ledger(msgspec.structs.replace(LEDGER, floor=floor))
        after = [esp.files.get(name) for name in ESP_LEDGERS]
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_a_cut_at_any_effect_of_a_ledger_write_leaves_the_old_or_the_new() -> None:
    effects = 0
    for cut_after in range(50):
        state, esp = disks()
        old = store_on(state, esp).write_ledger(LEDGER)
        power = Power(cut_after)
        state.power = esp.power = power
        new = msgspec.structs.replace(LEDGER, floor=9)
        try:
            store_on(state, esp).write_ledger(new)
            effects = cut_after
        except PowerCut:
            pass
        state.power = esp.power = Power()
        found = store_on(state, esp).ledger()
        assert found is not None
        assert found.floor in (old.floor, 9)
        if effects:
            break
    assert effects >= 3


def test_one_unwritable_place_does_not_lose_the_ledger() -> None:
    state = SimulatedDirectory(capacity_bytes=0)
    esp = SimulatedDirectory()
    store_on(state, esp).write_ledger(LEDGER)
    assert store_on(state, esp).ledger() is not None
    with pytest.raises(EnvironmentFailure):
        store_on(state, SimulatedDirectory(capacity_bytes=0)).write_ledger(LEDGER)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"body": {}}', b'{"body": {"phase": "idle"}, "sha256": "00"}', b"\xff\xfe"]
)
def test_a_corrupt_journal_is_set_aside_and_counts_as_idle(raw: bytes) -> None:
    state, esp = disks()
    state.write_new("journal.json", [raw])
    store = store_on(state, esp)
    assert store.journal() == Journal()
    assert "journal.json" not in state.files
    assert [content for name, content in state.files.items() if name.startswith("journal.json.corrupt-")] == [raw]
    assert store.set_aside


def test_looking_at_a_corrupt_journal_changes_nothing() -> None:
    state, esp = disks()
    state.write_new("journal.json", [b"{"])
    store = store_on(state, esp, read_only=True)
    assert store.journal() == Journal()
    assert state.files == {"journal.json": b"{"}
    assert store.set_aside


def test_one_flipped_bit_anywhere_is_noticed() -> None:
    raw = encode_state(Kept(LEDGER))
    for position in range(0, len(raw), 7):
        flipped = bytearray(raw)
        flipped[position] ^= 4
        try:
            found = decode_state(bytes(flipped), Ledger, "ledger.json").value
        except InvalidDocument:
            continue
        assert found == LEDGER, f"a flip at byte {position} went unnoticed"


def test_fields_of_a_newer_release_survive_being_rewritten_by_an_older_one() -> None:
    body = msgspec.to_builtins(LEDGER)
    body["later"] = {"x": 1}
    body["proven"][0]["later"] = "kept"
    body["proven"][0]["release"]["root"]["later"] = [1, 2]
    state, esp = disks()
    state.write_new("ledger.json", [encode_state(Kept(Ledger(), body))])
    raw = json.loads(state.files["ledger.json"])
    raw["body"] = body
    state.write_new("ledger.json", [encode_state(Kept(msgspec.convert(body, Ledger), body))])
    store = store_on(state, esp)
    found = store.ledger()
    assert found is not None
    store.write_ledger(found.with_quarantined(bad("1.1", "c")))
    written = json.loads(state.files["ledger.json"])["body"]
    assert written["later"] == {"x": 1}
    assert written["proven"][0]["later"] == "kept"
    assert written["proven"][0]["release"]["root"]["later"] == [1, 2]
    assert [item["version"] for item in written["quarantine"]] == ["0.9", "1.1"]


def test_removed_items_stay_removed() -> None:
    state, esp = disks()
    store = store_on(state, esp)
    store.write_ledger(LEDGER)
    store.write_ledger(LEDGER.without_quarantined("b" * 64).without_proven(Slot.A))
    found = store_on(state, esp).ledger()
    assert found is not None
    assert (found.quarantine, found.proven) == ([], [])


def test_history_is_bounded_and_keeps_the_newest() -> None:
    state, esp = disks()
    store = store_on(state, esp)
    state.write_new("history.jsonl", [b"\n".join(msgspec.json.encode(Event(STAMP, "old", str(n))) for n in range(600))])
    store.record(Event(STAMP, "new", "the last"))
    events = store.history()
    assert len(events) == HISTORY_LINES
    assert events[-1].sentence == "the last"


def test_a_full_disk_does_not_stop_the_work_for_the_sake_of_history() -> None:
    store = store_on(SimulatedDirectory(capacity_bytes=0), SimulatedDirectory())
    store.record(Event(STAMP, "event", "sentence"))
    assert store.history() == []


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_our_own_error(raw: bytes) -> None:
    for kind in (Journal, Ledger, Policy):
        with pytest.raises(InvalidDocument):
            decode_state(raw, kind, "garbage")


bodies: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["format", "phase", "update", "proven", "quarantine", "serial", "pin", "held", "x"]),
    st.none() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=2) | st.just({}),
    max_size=5,
)


@given(bodies)
def test_any_body_is_parsed_or_refused(body: dict[str, Any]) -> None:
    raw = encode_state(Kept(msgspec.convert({}, dict), body))
    for kind in (Journal, Ledger, Policy):
        try:
            assert decode_state(raw, kind, "hostile").value is not None
        except InvalidDocument:
            continue
