"""How long a node took from a release's failure to a healthy old release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from integration.lab.cli import main
from integration.lab.recovery_time import downtime_s, markdown, plain, recovery_of, table
from integration.lab.timeline import Boot, Ending, Outcome, Phase, Span


def boot(n: int, outcome: str, started_s: float, *, release: str | None, up_s: float | None = None) -> dict[str, Any]:
    phases = [{"phase": "firmware", "from_s": 0.0, "to_s": 5.0}]
    if up_s is not None:
        phases.append({"phase": "up", "from_s": up_s, "to_s": up_s + 30.0})
    return {"n": n, "outcome": outcome, "started_s": started_s, "release": release, "phases": phases}


def report(name: str, *boots: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "verdict": "pass", "error": None, "boots": list(boots), "events": [], **more}


def event(at_s: float, n: int, kind: str) -> dict[str, Any]:
    return {"at_s": at_s, "boot": n, "kind": kind, "text": "words"}


PANIC = report(
    "kernel-panic-late",
    boot(1, "panic", 10.0, release="2.0.0"),
    boot(2, "panic", 60.0, release="2.0.0"),
    boot(3, "healthy", 110.0, release="1.0.0", up_s=70.0),
    events=[event(12.0, 1, "kernel"), event(50.0, 1, "panic"), event(100.0, 2, "panic")],
)
LOADER = report(
    "loader-uki-truncated",
    boot(1, "loader error", 10.0, release=None),
    boot(2, "healthy", 20.0, release="1.0.0", up_s=50.0),
)


def test_a_failure_counts_from_its_first_sign_to_the_old_release_that_is_up() -> None:
    found = recovery_of(PANIC)
    assert found is not None
    assert (found.sign, found.seconds, found.away_s, found.ended_by) == ("panic", 130.0, 170.0, ("panic", "panic"))


def test_a_boot_without_a_sign_counts_from_its_power_on() -> None:
    found = recovery_of(LOADER)
    assert found is not None
    assert (found.sign, found.seconds) == ("power-on", 60.0)


def test_a_sign_in_a_good_boot_before_is_not_the_failures() -> None:
    good = boot(1, "committed", 0.0, release="2.0.0", up_s=40.0)
    rest = [boot(2, "watchdog", 100.0, release="3.0.0"), boot(3, "healthy", 200.0, release="2.0.0", up_s=50.0)]
    found = recovery_of(report("x", good, *rest, events=[event(5.0, 1, "fault"), event(130.0, 2, "watchdog")]))
    assert found is not None
    assert found.seconds == 120.0


def test_a_release_that_the_loader_passes_over_costs_the_boot_of_the_old_one() -> None:
    blamed = [{"what": "put off", "expected": "2.0.0", "found": "2.0.0", "ok": True}]
    run = report("loader-uki-lost", boot(1, "healthy", 7.0, release="1.0.0", up_s=64.0), expectations=blamed)
    found = recovery_of(run)
    assert found is not None
    assert (found.seconds, found.ended_by) == (64.0, ())


@pytest.mark.parametrize(
    "run",
    [
        report("no fall back", boot(1, "committed", 0.0, release="2.0.0", up_s=9.0)),
        report("nobody blamed", boot(1, "healthy", 0.0, release="1.0.0", up_s=9.0)),
        {**PANIC, "verdict": "fail"},
        {**PANIC, "error": "the fault did not fire"},
        report("only failures", boot(1, "panic", 0.0, release="2.0.0")),
        report("cut", boot(1, "panic", 0.0, release="2.0.0"), boot(2, "power cut", 9.0, release="1.0.0")),
        report(
            "the same release mended itself",
            boot(1, "rebooted", 0.0, release="2.0.0"),
            boot(2, "healthy", 9.0, release="2.0.0", up_s=9.0),
        ),
        report("never up", boot(1, "panic", 0.0, release="2.0.0"), boot(2, "healthy", 9.0, release="1.0.0")),
        report("nothing booted"),
    ],
    ids=lambda run: str(run["name"]),
)
def test_a_run_without_a_fall_back_gives_no_time(run: dict[str, Any]) -> None:
    assert recovery_of(run) is None


def test_the_table_has_a_row_for_each_class_with_least_median_and_most() -> None:
    other = report(
        "kernel-panic-early",
        boot(1, "panic", 0.0, release="2.0.0"),
        boot(2, "healthy", 30.0, release="1.0.0", up_s=20.0),
    )
    rows = table([LOADER, PANIC, other, PANIC], lambda name: name.partition("-")[0], ["kernel", "initrd", "loader"])
    assert [row.kind for row in rows] == ["kernel", "loader"]
    text = markdown(rows)
    assert "| kernel | 2 (3 runs) | 1 to 2 | panic | 50 / 130 / 130 | 50 / 170 / 170 |" in text
    assert "| loader | 1 | 1 | loader error | 60 | 60 |" in text
    assert plain(rows)[0]["failure_to_healthy_s"] == [50.0, 130.0, 130.0]


def test_the_command_reads_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, run in (("one", PANIC), ("two", LOADER)):
        path = tmp_path / folder / run["name"] / "report.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(run))
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["report", "--recovery-times", *folders]) == 0
    assert "| kernel | 1 | 2 | panic | 130 | 170 |" in capsys.readouterr().out
    assert main(["report", "--recovery-times", "--json", *folders]) == 0
    assert [row["class"] for row in json.loads(capsys.readouterr().out)] == ["loader", "kernel"]
    assert not (tmp_path / "one" / "report.html").exists()
    assert main(["report", *folders]) != 0


def seen(n: int, outcome: Outcome, started_s: float, *spans: Span) -> Boot:
    log = f"serial-{n:02d}.log"
    return Boot(n, "a", "1.0.0", outcome, 40.0, started_s, spans, (), Ending.RESET, "a.conf", (), log)


def test_downtime_counts_from_the_first_boot_that_did_not_end_well() -> None:
    good = seen(1, Outcome.COMMITTED, 0.0, Span(Phase.UP, 30.0, 40.0))
    bad = seen(2, Outcome.WATCHDOG, 100.0, Span(Phase.TRIAL, 30.0, 40.0))
    last = seen(3, Outcome.HEALTHY, 150.0, Span(Phase.FIRMWARE, 0.0, 2.0), Span(Phase.UP, 25.0, 60.0))
    assert downtime_s([good, bad, last]) == 75.0
    assert downtime_s([good, last]) == 25.0
    assert downtime_s([good, bad, seen(3, Outcome.RUNNING, 150.0, Span(Phase.FIRMWARE, 0.0, 2.0))]) is None
    assert downtime_s([]) is None
