"""How the lab judges a boot from outside evidence."""

from __future__ import annotations

import itertools

import pytest

from integration.lab.serial import Mark, Sighting
from integration.lab.timeline import DiskView, Ending, Outcome, Phase, judge, slot_of, spans_of
from updater.boot.entries import EntryName, parse_name

KERNEL = (Sighting(Mark.LOADER, 1.0), Sighting(Mark.COMMAND_LINE, 2.0))
INITRD = (*KERNEL, Sighting(Mark.INITRD, 4.0))
UP = (*INITRD, Sighting(Mark.SWITCH_ROOT, 9.0), Sighting(Mark.MULTI_USER, 20.0))
PANIC = Sighting(Mark.PANIC, 5.0, "VFS: unable to mount root")


def outcome(
    sightings: tuple[Sighting, ...], ending: Ending, before: str | None, after: str | None, *, proven: bool = False
) -> Outcome:
    def name(text: str | None) -> EntryName | None:
        return parse_name(text) if text else None

    return judge(sightings, ending, entry=name(before), entry_after=name(after), was_proven=proven)[0]


@pytest.mark.parametrize(
    ("sightings", "ending", "before", "after", "proven", "expected"),
    [
        (UP, Ending.STILL_ON, "b+2-1.conf", "b.conf", False, Outcome.COMMITTED),
        (UP, Ending.RESET, "b+2-1.conf", "b+3-0.conf", False, Outcome.COMMITTED),
        (UP, Ending.RESET, "b+2-1.conf", "b+3-0.conf", True, Outcome.HEALTHY),
        (UP, Ending.RESET, "a.conf", "a.conf", True, Outcome.HEALTHY),
        (UP, Ending.STILL_ON, "b+2-1.conf", "b+2-1.conf", False, Outcome.RUNNING),
        (UP, Ending.RESET, "b+2-1.conf", "b+0-3.conf", False, Outcome.ROLLED_BACK),
        (UP, Ending.RESET, "b+2-1.conf", "b+2-1.conf", False, Outcome.REBOOTED),
        (UP, Ending.WATCHDOG, "b+2-1.conf", "b+2-1.conf", False, Outcome.WATCHDOG),
        (UP, Ending.POWER_CUT, "b+2-1.conf", "b+2-1.conf", False, Outcome.POWER_CUT),
        ((*INITRD, PANIC), Ending.RESET, "b+1-2.conf", "b+1-2.conf", False, Outcome.PANIC),
        (INITRD, Ending.RESET, "b+1-2.conf", "b+1-2.conf", False, Outcome.INITRD_FAILED),
        ((KERNEL[0],), Ending.RESET, None, "b+1-2.conf", False, Outcome.LOADER_ERROR),
        # The loader itself took the last try before this boot: that is no verdict of the guest.
        (UP, Ending.RESET, "b+0-3.conf", "b+0-3.conf", False, Outcome.REBOOTED),
    ],
)
def test_a_boot_is_judged_by_console_entries_and_power(
    sightings: tuple[Sighting, ...], ending: Ending, before: str, after: str, proven: bool, expected: Outcome
) -> None:
    assert outcome(sightings, ending, before, after, proven=proven) is expected


def test_a_panic_that_the_initrd_asked_for_is_the_initrds_failure() -> None:
    words = Sighting(Mark.UPDATER, 8.9, "acl-updater: initrd: emergency mode")
    asked = Sighting(Mark.PANIC, 9.0, "sysrq triggered crash")
    assert outcome((*INITRD, words, asked), Ending.RESET, "b+2-1.conf", "b+2-1.conf") is Outcome.INITRD_FAILED
    assert outcome((*INITRD, asked), Ending.RESET, "b+2-1.conf", "b+2-1.conf") is Outcome.PANIC


def test_the_slot_is_the_partition_that_bears_the_head_of_the_root_hash() -> None:
    slots = {"1" * 32: "a", "2" * 32: "b"}
    assert slot_of("2" * 32 + "f" * 32, slots) == "b"
    assert slot_of("3" * 64, slots) is None
    assert slot_of(None, slots) is None


def test_of_two_entries_of_a_slot_the_one_with_fewer_tries_is_looked_at() -> None:
    # A cut between "create the new name" and "delete the old one" leaves both.
    view = DiskView({}, (parse_name("b.conf"), parse_name("b+2-1.conf"), parse_name("a.conf")))
    entry = view.entry_of("b")
    assert entry is not None
    assert entry.file == "b+2-1.conf"


def test_phases_follow_one_another_without_gaps() -> None:
    spans = spans_of(UP, 31.0, trial=True)
    assert [span.phase for span in spans] == [
        Phase.FIRMWARE,
        Phase.LOADER,
        Phase.KERNEL,
        Phase.INITRD,
        Phase.USERSPACE,
        Phase.TRIAL,
    ]
    assert all(one.to_s == two.from_s for one, two in itertools.pairwise(spans))
    assert (spans[0].from_s, spans[-1].to_s) == (0.0, 31.0)


def test_a_verdict_ends_the_trial() -> None:
    spans = spans_of(UP, 31.0, trial=True, verdict=(Phase.UP, 25.0))
    assert [(span.phase, span.to_s) for span in spans[-2:]] == [(Phase.TRIAL, 25.0), (Phase.UP, 31.0)]


def test_a_boot_that_never_reached_its_kernel_has_its_first_phases_only() -> None:
    assert [span.phase for span in spans_of(KERNEL[:1], 6.0, trial=True)] == [Phase.FIRMWARE, Phase.LOADER]
