"""Which states of a crash proof are booted for real, and what its report says of them."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event

import pytest

from integration.crash.epochs import END, Cut, Kind
from integration.crash.freeze import parse_point
from integration.crash.judge import Judged
from integration.crash.proof import Proof, Telling, boot_spread
from integration.crash.recording import SHORT, WHOLE, DiskBeforeStore, Recorded
from integration.crash.replay import Point, Walk
from integration.crash.report import report, summary
from integration.crash.story import Told, name_of, scenario_of, spread, sweep, told_before
from integration.lab.emulator import Emulator
from integration.lab.scenario import parse_scenario
from integration.lab.stock import Stock
from updater.errors import EnvironmentFailure
from updater.layouts import load_layout


def point(epoch: int, cut: Cut = END, *, loader: str = "a.conf", phase: str | None = None, wrong: str = "") -> Point:
    return Point(epoch, cut, Judged(("a.conf",), ("a.conf",), "a", loader, (wrong,) if wrong else (), (), phase))


def walked() -> Walk:
    ends = [point(epoch) for epoch in range(200)]
    stores = [point(epoch, Cut(Kind.VARIABLES, epoch)) for epoch in range(50)]
    seeds = [point(epoch, Cut(Kind.SEED, 0)) for epoch in range(100)]
    loaders = {f"loader {n}": point(n * 20, Cut(Kind.UP_TO, n), loader=f"loader {n}") for n in range(9)}
    phases = {
        f"a.conf, {phase}": point(3, Cut(Kind.SEED, n), phase=phase) for n, phase in enumerate(("idle", "staged"))
    }
    return Walk(ends=ends, stores=stores, seeds=seeds, loaders=loaders, phases=phases)


def test_all_that_the_loader_can_tell_apart_boots_first_and_no_state_twice() -> None:
    found = walked()
    first, others = spread(found, 25)
    assert {one.judged.loader for one in first} == set(found.loaders)
    assert len(first) + len(others) == 25
    assert len({(one.epoch, one.cut) for one in (*first, *others)}) == 25
    assert {one.judged.phase for one in others} >= {"idle", "staged"}
    assert any(one.cut.kind is Kind.VARIABLES for one in others)
    assert [one.epoch for one in others] == sorted(one.epoch for one in others)


def test_fewer_boots_than_states_of_the_loader_are_as_many_as_asked_for() -> None:
    first, others = spread(walked(), 2)
    assert (len(first), len(others)) == (2, 0)


def test_a_full_proof_boots_every_state_of_the_loader_however_many_there_are() -> None:
    found = walked()
    found.loaders.update({f"more {n}": point(n, Cut(Kind.SEED, n), loader=f"more {n}") for n in range(30)})
    first, others = spread(found, 25)
    assert (len(first), len(others)) == (39, 0)


def told(point: Point, recording: str = "whole-1", *, passed: bool = True) -> Told:
    problem = "" if passed else "it did not settle"
    return Told(recording, str(point), point.judged.loader, passed, problem, ["a/1.0.0 healthy"], 61.0)


def test_only_a_story_of_this_recording_that_ended_well_is_not_told_again(tmp_path: Path) -> None:
    one = point(7, Cut(Kind.WITHOUT, 12))
    file = tmp_path / "told.json"
    assert told_before("whole-1", one, tmp_path) is None
    file.write_text(json.dumps(asdict(told(one))))
    assert told_before("whole-1", one, tmp_path) == told(one)
    assert told_before("whole-2", one, tmp_path) is None
    assert told_before("whole-1", point(7, Cut(Kind.WITHOUT, 13)), tmp_path) is None
    file.write_text(json.dumps(asdict(told(one, passed=False))))
    assert told_before("whole-1", one, tmp_path) is None
    file.write_text(json.dumps(asdict(replace(told(one), stories="of another kind"))))
    assert told_before("whole-1", one, tmp_path) is None
    file.write_text("{")
    assert told_before("whole-1", one, tmp_path) is None


def test_stories_that_ended_well_need_no_machine_and_no_recording_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = tmp_path / "none"
    stock = Stock(Emulator(("qemu",), none, none), none, none, none, {}, none)
    found, seen = walked(), []
    for one in (one for points in spread(found, 25) for one in points):
        folder = tmp_path / "boots" / name_of(one)
        folder.mkdir(parents=True)
        (folder / "told.json").write_text(json.dumps(asdict(told(one))))
    proof = Proof(tmp_path, found=found)
    recorded = Recorded("whole-1", "dps-root", none, none, 0, 0)
    boot_spread(stock, recorded, proof, 25, 2, each=lambda: seen.append(len(proof.told)))
    assert seen == list(range(1, 26))
    assert capsys.readouterr().out.count("told before: epoch") == 25


def test_a_story_that_ends_is_heard_though_one_before_it_goes_on() -> None:
    heard, ends = [], Event()

    def long_one() -> Told:
        assert ends.wait(60), "the other story was not heard meanwhile"
        return told(point(1))

    def hear(one: Told) -> None:
        heard.append(one.point)
        ends.set()

    with Telling(2, hear) as telling:
        telling.add(long_one)
        telling.add(lambda: told(point(2)))
    assert heard == ["epoch 2, the end", "epoch 1, the end"]


def test_no_more_stories_are_told_at_a_time_than_there_are_machines() -> None:
    now: list[None] = []
    most: list[int] = []

    def story() -> Told:
        now.append(None)
        most.append(len(now))
        now.pop()
        return told(point(1))

    heard: list[Told] = []
    with Telling(1, heard.append) as telling:
        for _ in range(5):
            telling.add(story)
    assert len(heard) == 5
    assert max(most) == 1


def test_ctrl_c_waits_for_no_machine() -> None:
    ends = Event()

    def long_one() -> Told:
        ends.wait(60)
        return told(point(2))

    def interrupted(one: Told) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with Telling(1, interrupted) as telling:
            telling.add(lambda: told(point(1)))
            telling.add(long_one)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not ends.is_set()
    ends.set()


@pytest.mark.parametrize("cut", [END, *(Cut(kind, 12990) for kind in Kind if kind is not Kind.END)])
def test_a_point_is_read_back_from_its_words(cut: Cut) -> None:
    assert parse_point(str(point(301, cut))) == (301, cut)


@pytest.mark.parametrize("text", ["", "301", "epoch 301", "epoch 301, the end 5", "epoch 301, seed", "epoch 3, half"])
def test_words_that_are_no_point_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no point"):
        parse_point(text)


@pytest.mark.parametrize("live", [True, False])
def test_a_story_goes_on_to_the_next_good_update(live: bool) -> None:
    scenario = scenario_of(point(7, Cut(Kind.SEED, 1), loader="a.conf beside ['b.conf'], table whole"), live=live)
    assert scenario.name == "epoch-00007-seed-1"
    assert "beside ['b.conf']" in scenario.summary
    boot, wait, following = scenario.steps[0].boot, scenario.steps[1].wait, scenario.steps[2:]
    assert boot is not None
    assert boot.until.serial is not None
    assert re.search(boot.until.serial, "[  OK  ] Reached target boot-complete.target - Boot Completion Check.")
    assert wait is not None
    assert wait.until.standing == [1, 2]
    assert any(step.expect is not None and step.expect.quarantine == [] for step in following)
    committed = any(step.wait is not None and step.wait.until.committed == 3 for step in following)
    assert committed if live else following[-1].update_to == 3


@pytest.mark.parametrize("text", [WHOLE.before, WHOLE.during, SHORT.before, SHORT.during])
def test_what_is_recorded_is_a_scenario_that_ends_powered_off(text: bytes) -> None:
    steps = parse_scenario(text, "a recording").steps
    assert [step.power for step in steps if step.power][-1] == "down"


def test_the_entries_of_a_recorded_machine_are_read_from_the_store_behind_its_disk(tmp_path: Path) -> None:
    machine, seen = tmp_path / "machine.raw", tmp_path / "seen.fd"
    machine.write_bytes(bytes(1 << 20) + b"its variables now")
    seen.write_bytes(b"as they were")
    disk = DiskBeforeStore(machine, load_layout("dps-root-efi"), seen, disk_bytes=1 << 20)
    with pytest.raises(EnvironmentFailure):
        disk.order()
    assert seen.read_bytes() == b"its variables now"


def test_an_interrupted_run_leaves_reports_and_no_disks(tmp_path: Path) -> None:
    story = tmp_path / name_of(point(7, Cut(Kind.WITHOUT, 12)))
    assert story.name == "epoch-00007-without-write-12"
    story.mkdir()
    for name in ("disk.raw", "efi-variables.fd", "report.html", "serial-01.log"):
        (story / name).write_text("x")
    (tmp_path / "cut-abc").mkdir()
    (tmp_path / "cut-abc" / "cut.raw").write_text("x")
    sweep(tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["report.html", "serial-01.log"]


def test_a_failure_of_either_kind_fails_the_proof_and_is_told() -> None:
    found = walked()
    found.points, found.failed, found.failures = 12, 1, [point(9, Cut(Kind.UP_TO, 31), wrong="nothing boots")]
    text = summary(found, [told(point(1), passed=False)], seconds=3)
    assert "12 points" in text
    assert "FAILED epoch 9, up to write 31: nothing boots" in text
    assert "FAILED epoch 1, the end: it did not settle" in text
    assert report(found, [], seconds=3)["verdict"] == "fail"
    found.failed = 0
    assert report(found, [told(point(1), passed=False)], seconds=3)["verdict"] == "fail"
    assert report(found, [told(point(1))], seconds=3)["verdict"] == "pass"
