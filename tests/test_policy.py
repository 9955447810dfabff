"""Which release a node should run, and why not another."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.documents import MANIFEST, changed
from updater.errors import NothingToDo, Refused
from updater.manifest import Manifest, Withdrawal, Withdrawn
from updater.policy import Target, choose, floor_after_commit, refuse_unfit
from updater.records import Ledger, Policy, Quarantined, Seen

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
STAMP = "2026-11-20T00:00:00Z"
FAILED = Quarantined("2.0.0", "ab" * 32, "health", "check", "containerd is down", STAMP)


def chosen(**changes: Any) -> Target:
    inputs: dict[str, Any] = {
        "to": None,
        "policy": Policy(),
        "channel": "stable",
        "offered": "2.0.0",
        "running": "1.0.0",
        "now": NOW,
    }
    return choose(**{**inputs, **changes})


def judge(document: dict[str, Any] = MANIFEST, *, deliberate: bool = False, **changes: Any) -> None:
    inputs: dict[str, Any] = {
        "manifest_sha256": "33" * 32,
        "target": Target("2.0.0", deliberate, "why"),
        "layout": "dps-root",
        "architecture": "x86-64",
        "image_id": "acl-reference",
        "running_root_hash": "99" * 32,
        "ledger": Ledger(),
        "withdrawn": Withdrawn(1),
        "now": NOW,
    }
    refuse_unfit(msgspec.convert(document, Manifest), **{**inputs, **changes})


def test_the_channel_leads_to_a_newer_release() -> None:
    assert chosen() == Target("2.0.0", False, "the channel stable offers 2.0.0")


def test_a_pin_leads_to_an_older_release_on_purpose() -> None:
    target = chosen(policy=Policy(pin="0.5.0"))
    assert (target.version, target.deliberate) == ("0.5.0", True)


def test_what_a_person_names_comes_before_the_pin() -> None:
    assert chosen(policy=Policy(pin="0.5.0"), to="3.0.0").version == "3.0.0"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"offered": "1.0.0"}, "already-at-target"),
        ({"offered": "1.0"}, "already-at-target"),
        ({"offered": "0.9.0"}, "channel-is-older"),
        ({"offered": None}, "nothing-to-do"),
        ({"policy": Policy(pin="1.0.0")}, "already-at-target"),
    ],
)
def test_there_is_nothing_to_do(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NothingToDo) as caught:
        chosen(**changes)
    assert caught.value.reason == reason


def test_a_hold_refuses_even_what_a_person_names() -> None:
    for policy in (Policy(held=True), Policy(held=True, held_until="2026-11-20T13:00:00Z")):
        with pytest.raises(Refused, match="on hold") as caught:
            chosen(policy=policy, to="3.0.0")
        assert caught.value.reason == "held"


def test_a_hold_ends_at_its_time() -> None:
    assert chosen(policy=Policy(held=True, held_until="2026-11-20T11:00:00Z")).version == "2.0.0"


def test_a_fitting_release_is_accepted() -> None:
    judge()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "flatcar"}, "wrong-layout"),
        ({"architecture": "arm64"}, "wrong-architecture"),
        ({"image_id": "other"}, "wrong-image"),
        ({"withdrawn": Withdrawn(1, [Withdrawal("2.0.0", "it eats disks", STAMP)])}, "withdrawn"),
        ({"ledger": Ledger(seen=[Seen("2.0.0", "44" * 32)])}, "version-changed"),
        ({"ledger": Ledger(floor=4)}, "below-floor"),
        ({"ledger": Ledger(quarantine=[FAILED])}, "quarantined"),
    ],
)
def test_an_unfit_release_is_refused_whoever_asks(changes: dict[str, Any], reason: str) -> None:
    for deliberate in (False, True):
        with pytest.raises(Refused) as caught:
            judge(deliberate=deliberate, **changes)
        assert caught.value.reason == reason
        assert caught.value.mend


def test_the_image_that_runs_is_never_staged() -> None:
    with pytest.raises(NothingToDo):
        judge(running_root_hash="ab" * 32)


def test_a_release_that_was_put_off_waits_unless_a_person_names_it() -> None:
    later = Ledger(quarantine=[msgspec.structs.replace(FAILED, cause="none", until="2026-11-20T13:00:00Z")])
    with pytest.raises(Refused, match="put off until"):
        judge(ledger=later)
    judge(ledger=later, deliberate=True)
    judge(ledger=Ledger(quarantine=[msgspec.structs.replace(FAILED, cause="none", until=STAMP)]))


def test_a_rebuilt_image_under_the_same_version_is_not_quarantined_with_the_old_one() -> None:
    judge(changed(MANIFEST, "root.root_hash", "cd" * 32), ledger=Ledger(quarantine=[FAILED]))


@pytest.mark.parametrize(
    ("floor", "epoch", "expected"), [(0, 0, 0), (0, 1, 1), (0, 7, 1), (3, 2, 3), (3, 3, 3), (3, 4, 4)]
)
def test_the_floor_rises_by_at_most_one(floor: int, epoch: int, expected: int) -> None:
    assert floor_after_commit(floor, epoch) == expected
