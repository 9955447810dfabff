"""The benchmark's arithmetic: logs, spreads, ratios, tables, and the page they go into."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from integration.bench.contenders import CONTENDERS
from integration.bench.course import EVERY, FAR, LAVISH, NEAR, OURS, QUICK, ZEROS, Growth, Turn, full, quick
from integration.bench.link import LOCAL, Line
from integration.bench.making import made_once
from integration.bench.ours import VARIANTS, by_role, roles
from integration.bench.page import page
from integration.bench.phases import phases, step_seconds
from integration.bench.player import SCRIPTS
from integration.bench.report import BEGIN, END, Machine, Report, ratios, update_page
from integration.bench.results import STEP, Making, Sample, Spread, grouped, ratio, spread
from integration.bench.run import Record
from integration.bench.server import parse_devices, parse_log
from integration.bench.tables import (
    Medians,
    costs,
    factor,
    growth,
    kinds,
    megabytes,
    resumed,
    seconds,
    shown,
    steps_table,
)
from integration.bench.targets import targets
from integration.bench.wire import FRAME_BYTES, QUEUE_S, Direction


def sample(contender: str, *, wall_s: float = 1.0, wire_bytes: int = 0, **more: object) -> Sample:
    fixed: dict[str, object] = {
        "pair": "Q", "other_slot": ZEROS, "line": LOCAL.name, "cpu_s": 0.5, "rss_bytes": 10_000_000,
        "written_bytes": 4096, "requests": 3,
    }  # fmt: skip
    return Sample(contender, wall_s=wall_s, wire_bytes=wire_bytes, **{**fixed, **more})  # type: ignore[arg-type]


def test_a_log_counts_heads_and_bodies_both_ways_by_path() -> None:
    text = "200 1000 80 GET /Q/x/a\n206 500 90 GET /Q/x/a\n404 150 70 HEAD /Q/x/no thing\n"
    found = parse_log(text)
    assert (found.requests, found.bytes) == (3, 1890)
    assert found.paths == {"/Q/x/a": 1670, "/Q/x/no thing": 220}


def test_a_line_that_is_still_being_written_is_left_for_the_next_look() -> None:
    assert parse_log("200 10 5 GET /a\n200 10").requests == 1
    assert parse_log("200 10").bytes == 0


def test_carried_bytes_leave_out_the_loopback() -> None:
    text = (
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n"
        "    lo:  999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0\n"
        " tap0s: 1000 9 0 0 0 0 0 0  250 7 0 0 0 0 0 0\n"
    )
    assert parse_devices(text) == 1250


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert shown(Spread(2.0, 1.0, 3.0), seconds) == "2.00 (1.00–3.00)"
    assert shown(Spread(2.0, 2.0, 2.0), seconds) == "2.00"


def test_there_is_no_ratio_to_nothing() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, 0.0) is None
    assert factor(None) == "–"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0.00"), (1_900_000, "1.90"), (9_999_000, "10.00"), (31_300_000, "31.3")]
)
def test_bytes_are_shown_in_millions(number: int, text: str) -> None:
    assert megabytes(number) == text


def test_samples_of_one_kind_stand_together_and_others_apart() -> None:
    samples = [sample("a", wall_s=1), sample("b"), sample("a", wall_s=3), sample("a", line=NEAR.name)]
    groups = grouped(samples)
    assert list(groups) == [
        ("a", "Q", ZEROS, "local"), ("b", "Q", ZEROS, "local"), ("a", "Q", ZEROS, "20 ms, 100 Mbit/s"),
    ]  # fmt: skip
    assert spread(groups["a", "Q", ZEROS, "local"], lambda s: s.wall_s) == Spread(2.0, 1, 3)


def test_costs_are_compared_with_the_dd_of_the_same_turn() -> None:
    samples = [sample("dd", wall_s=2.0), sample("ours-full", wall_s=5.0, wire_bytes=5_000_000)]
    rows = {row[0]: row for row in costs(samples, "Q", ZEROS, LOCAL.name).rows}
    assert rows["ours-full"][5] == "2.50 ×"
    assert rows["ours-full"][2] == "5.00"
    assert costs(samples, "Q", ZEROS, FAR.name).rows == ()


def test_a_bundle_that_was_read_counts_as_fetched() -> None:
    assert sample("rauc", bundle_bytes=77).fetched_bytes == 77


def test_a_resumed_update_is_charged_for_what_it_fetched_twice() -> None:
    killed = sample("ours-full", wall_s=4.0, details={"whole_bytes": 100e6, "extra_bytes": 8e6})
    assert resumed([killed, sample("dd")]).rows == (("ours-full", "100.0", "8.00", "0.08 ×", "4.00"),)


def test_digests_of_a_manifest_tell_root_from_uki() -> None:
    manifest = {
        "uki": {"sha256": "u0", "length_bytes": 1},
        "transport": {
            "root": {
                "frames": {"index": {"sha256": "r1"}, "file": {"sha256": "r2"}},
                "deltas": [{"recipe": {"sha256": "r3"}}],
            },
            "uki": {"frames": {"file": {"sha256": "u1"}}},
        },
    }  # fmt: skip
    known = roles(manifest)
    assert known == {"r1": "root", "r2": "root", "r3": "root", "u0": "uki", "u1": "uki"}
    paths = {
        "/Q/ours/repository/metadata/timestamp.json": 1, "/Q/ours/repository/targets/channels/x.json": 2,
        "/Q/ours/repository/images/ab/tree": 4, "/Q/ours/repository/blobs/r2/r2": 8,
        "/Q/ours/repository/blobs/u1/u1": 16, "/Q/ours/repository/blobs/zz/zz": 32,
    }  # fmt: skip
    assert by_role(paths, known) == {"metadata": 3, "root": 12, "uki": 16, "other": 32}
    assert roles({"uki": {"sha256": "u0"}}) == {"u0": "uki"}


def test_a_target_is_met_missed_or_not_measured() -> None:
    samples = [
        sample("ours-delta", wire_bytes=5_000_000, parts={"uki": 1_000_000}),
        sample("zstd-patch", wire_bytes=10_000_000),
        sample("hdiffpatch", wire_bytes=1_000_000),
    ]
    found = targets(samples, [Making("ours-delta", "Q", 30.0, 1.0, 1, 1, False)], "Q", "Q")
    verdicts = {(target.measure, target.against): (target.ratio, target.verdict) for target in found}
    assert verdicts["Q, known pair, all but the UKI", "zstd -19 --patch-from"] == (0.4, "met")
    assert verdicts["Q, known pair, all but the UKI", "HDiffPatch"] == (4.0, "missed")
    assert verdicts["Q, any to any, all but the UKI", "casync, 64 KiB chunks"] == (None, "not measured")
    assert verdicts["Q, publishing with a delta", "60 s"] == (0.5, "met")


def test_medians_are_those_of_one_line_and_slot() -> None:
    found = Medians([sample("a", wall_s=1), sample("a", wall_s=9, line=NEAR.name)])
    assert found.of("a", "Q", lambda s: s.wall_s) == 1
    assert found.of("a", "Q", lambda s: s.wall_s, line=NEAR) == 9
    assert found.of("b", "Q", lambda s: s.wall_s) is None


def test_a_line_takes_the_time_of_its_rate_and_its_delay() -> None:
    line = Direction(delay_s=0.010, bits_per_s=100e6)
    frame_s = (1500 + FRAME_BYTES) * 8 / 100e6
    assert line.departure(1500, 0.0) == pytest.approx(frame_s + 0.010)
    assert line.departure(1500, 0.0) == pytest.approx(2 * frame_s + 0.010)
    assert line.departure(1500, 1.0) == pytest.approx(1.0 + frame_s + 0.010)


def test_a_full_queue_loses_packets_and_recovers() -> None:
    line = Direction(delay_s=0.0, bits_per_s=100e6)
    lost = 0
    for _ in range(2000):
        lost += line.departure(1500, 0.0) is None
    held = QUEUE_S / ((1500 + FRAME_BYTES) * 8 / 100e6)
    assert 2000 - lost == pytest.approx(held, abs=2)
    assert line.departure(1500, 1.0) is not None


def test_a_line_without_a_rate_only_delays() -> None:
    assert Direction(0.05, 0).departure(1500, 2.0) == pytest.approx(2.05)


def test_lines_have_the_names_that_tables_use() -> None:
    assert [line.name for line in (LOCAL, NEAR, Line(0, 100), Line(20, 0))] == [
        "local", "20 ms, 100 Mbit/s", "0 ms, 100 Mbit/s", "20 ms",
    ]  # fmt: skip


def test_every_contender_of_a_course_can_be_had() -> None:
    known = {contender.name for contender in CONTENDERS} | set(VARIANTS)
    assert set(EVERY) == known
    assert set(QUICK) <= known
    assert {*OURS, LAVISH} == set(VARIANTS)
    assert {variant.shared for variant in VARIANTS.values()} <= {"", *VARIANTS}
    for course in (quick(), full(3, [256])):
        for step in course.steps:
            assert set(step.contenders) <= known
            assert step.pair in course.pairs


def test_what_reuses_the_file_of_another_contender_comes_after_it() -> None:
    for course in (quick(), full(1, [])):
        first = next(step for step in course.steps if step.pair == course.pairs[0])
        for name in ("get", "swupdate"):
            assert first.contenders.index("zstd") < first.contenders.index(name)


def test_every_pair_is_measured_once_before_anything_is_measured_again() -> None:
    course = full(3, [256, 5120])
    kinds = [(step.pair, step.runs) if isinstance(step, Turn) else None for step in course.steps]
    assert kinds[:2] == [("S", 1), ("K", 1)]
    assert isinstance(course.steps[-1], Growth)
    local = [step for step in course.steps if isinstance(step, Turn) and (step.other_slot, step.line) == (ZEROS, LOCAL)]
    assert {pair: sum(step.runs for step in local if step.pair == pair) for pair in "SK"} == {"S": 3, "K": 3}


def test_a_step_lasts_until_the_next_one_begins() -> None:
    told = [(1.0, "READY=1"), (2.0, "STATUS=prove: reads"), (2.5, "STATUS=prove: done"), (3.0, "STATUS=fill: writes")]
    assert step_seconds(told, 7.0) == {"prove": 1.0, "fill": 4.0}
    assert step_seconds([], 7.0) == {}


def test_messages_on_the_status_socket_are_heard(tmp_path: Path) -> None:
    with phases(tmp_path) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"STATUS=fill: writes", str(listener.path))
    assert list(listener.seconds(time.monotonic())) == ["fill"]
    assert not listener.path.exists()


def test_what_was_made_is_made_again_only_from_another_key(tmp_path: Path) -> None:
    made = []

    def make() -> Making:
        made.append("")
        return Making("zstd", "Q", 1.0, 1.0, 1, 1, False)

    stamp = tmp_path / "zstd.json"
    assert [made_once(stamp, key, make).reused for key in (["a"], ["a"], ["b"], ["b"])] == [False, True, False, True]
    assert len(made) == 2


def test_our_time_is_told_by_step_and_images_of_a_size_stand_in_a_table_of_their_own() -> None:
    details = {f"{STEP}fill-slot": 3.0, f"{STEP}record-intent": 0.01}
    samples = [sample("dd"), sample("ours-full", wall_s=4.0, details=details)]
    samples += [sample("dd", pair="256MiB", wall_s=2.0), sample("ours-full", pair="256MiB", wall_s=3.0)]
    assert steps_table(samples).rows == (("ours-full", "Q", ZEROS, "4.00", "0.99", "fill-slot 3.00"),)
    assert [(row[0], row[1], row[5]) for row in growth(samples).rows] == [
        ("256MiB", "dd", "1.00 ×"), ("256MiB", "ours-full", "1.50 ×"),
    ]  # fmt: skip
    assert kinds(samples) == [("Q", ZEROS, LOCAL.name)]


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_every_script_has_its_two_functions(contender: object) -> None:
    text = (SCRIPTS / contender.file).read_text()  # type: ignore[attr-defined]
    assert "make() {" in text
    assert "apply() {" in text


MADE = Making("zstd", "Q", 1.0, 1.0, 1, 1, False)


def report_of(samples: list[Sample], **record: object) -> Report:
    pairs = {"Q": {"summary": "small", "old_bytes": 9, "new_bytes": 10_000_000, "uki_bytes": 5, "updated": ["a 1 → 2"]}}
    seen = Record(samples=samples, pairs=pairs, lines={"local": "veth"}, **record)  # type: ignore[arg-type]
    machine = Machine("a <fast> one", 2, 8 << 30, "6.12", "ext4", (0.1, 0.2))
    return Report("quick", datetime(2026, 11, 20, tzinfo=UTC), 60.0, machine, {"zstd": "1.5.7"}, seen)


def test_a_report_names_machine_versions_and_what_failed() -> None:
    report = report_of([sample("dd"), sample("zstd", wire_bytes=4_000_000)], notes={"desync: not run": "no checksum"})
    text = report.as_markdown()
    for words in (
        "a <fast> one",
        "zstd 1.5.7",
        "1 packages differ",
        "line local: veth",
        "desync: not run: no checksum",
    ):
        assert words in text
    document = json.loads(report.as_json())
    assert document["format"] == 1
    assert [s["contender"] for s in document["samples"]] == ["dd", "zstd"]


def test_a_report_is_read_back_as_it_was_written() -> None:
    report = report_of([sample("dd"), sample("ours-full", details={"blocks": 2.0})], makings=[MADE])
    assert Report.parse(report.as_json()) == report


def test_two_runs_make_one_report_and_what_was_made_anew_counts() -> None:
    first = report_of([sample("dd")], makings=[MADE], notes={"a": "1"})
    second = report_of([sample("dd", wall_s=3.0)], makings=[replace(MADE, wall_s=9.0)], notes={"b": "2"})
    third = report_of([], makings=[replace(MADE, wall_s=0.5, reused=True)])
    found = first.followed_by(second).followed_by(third).record
    assert [s.wall_s for s in found.samples] == [1.0, 3.0]
    assert [m.wall_s for m in found.makings] == [9.0]
    assert found.notes == {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match="different machines"):
        first.followed_by(replace(second, versions={"zstd": "1.4"}))


def test_a_report_says_when_other_work_shared_the_machine() -> None:
    quiet = report_of([sample("dd")])
    busy = replace(quiet, machine=replace(quiet.machine, load=(4.2, 5.0)))
    assert "other work shared" in busy.as_markdown()
    assert "other work shared" not in quiet.as_markdown()


def test_the_html_page_escapes_what_the_machine_says_and_draws_bars() -> None:
    html = page(report_of([sample("dd"), sample("ours-full", wire_bytes=4_000_000)]))
    assert "a &lt;fast&gt; one" in html
    assert "<fast>" not in html
    assert html.count("<svg") == 3


def test_a_quick_run_prints_ratios_and_no_times() -> None:
    text = ratios(report_of([sample("dd"), sample("zstd", wire_bytes=4_000_000), sample("ours-full", wire_bytes=1)]))
    assert "40.00%" in text
    assert " s " not in text.split("bytes fetched")[1]


def test_the_page_changes_between_its_marks_only(tmp_path: Path) -> None:
    target = tmp_path / "benchmarks.md"
    target.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    update_page(target, "new")
    update_page(target, "newer")
    assert target.read_text() == f"# Title\n\n{BEGIN}\n\nnewer\n{END}\n\nafter\n"
    target.write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        update_page(target, "new")
