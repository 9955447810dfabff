"""`acl-updater health`, and the judge of health as the engine finds it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollback.command import HealthCommands, commands
from updater.config import Health
from updater.errors import ExitCode, InvalidDocument
from updater.files import MountedDirectory
from updater.health_plugin import Cause, FailedTrial, HealthPlugin, find_health_plugin


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "operator").mkdir()
    write(tmp_path / "vendor" / "a.yaml", command("good", "true"), command("loud", "sh", "-c", "echo boom; exit 1"))
    write(tmp_path / "vendor" / "b.yaml", command("informs", "false", required=False))
    return tmp_path


def write(path: Path, *checks: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump({"format": 1, "checks": list(checks)}))


def command(name: str, *argv: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "command", "argv": list(argv), **more}


def health(folders: Path, *words: str) -> int:
    judge = HealthCommands(folders / "vendor", folders / "operator")
    parser = argparse.ArgumentParser()
    judge.add_arguments(parser.add_subparsers(dest="verb", required=True))

    def connect() -> Any:
        raise AssertionError("only the service needs the engine")

    return judge.run(parser.parse_args(words), connect)


def test_run_prints_a_table_with_what_failing_checks_said(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health(folders, "run") == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["CHECK", "RESULT"],
        ["good", "ok"],
        ["loud", "failed"],
        ["informs", "failed"],
    ]
    assert "(informs)" in lines[3]
    assert lines[-2:] == ["loud said:", "  boom"]


def test_run_of_chosen_checks_succeeds_when_they_do(folders: Path) -> None:
    assert health(folders, "run", "good", "informs") == ExitCode.DONE
    assert health(folders, "run", "loud") == ExitCode.FAILED
    assert health(folders, "run", "nonsense") == ExitCode.USAGE


def test_run_reports_to_machines(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health(folders, "run", "--json") == ExitCode.FAILED
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is False
    assert {one["name"]: one["status"] for one in report["results"]} == {
        "good": "ok",
        "loud": "failed",
        "informs": "failed",
    }


def test_run_of_a_check_that_is_switched_off_runs_it(folders: Path) -> None:
    write(folders / "vendor" / "c.yaml", command("off", "false", enabled=False))
    assert health(folders, "run", "good") == ExitCode.DONE
    assert health(folders, "run", "off") == ExitCode.FAILED


def test_show_names_the_file_of_every_check_and_what_does_not_count(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folders / "operator" / "b.yaml", command("mine", "true", when="trial"))
    assert health(folders, "show") == ExitCode.DONE
    shown = capsys.readouterr().out
    assert f"mine   command  required  trial   {folders}/operator/b.yaml" in shown
    assert f"replaced by the operator's file of the same name: {folders}/vendor/b.yaml" in shown
    (folders / "operator" / "b.yaml").write_text("format: 2")
    assert health(folders, "show") == ExitCode.INVALID_INPUT
    shown = capsys.readouterr().out
    assert f"does not count: {folders}/operator/b.yaml: format:" in shown
    assert "informs" in shown


def test_show_reports_to_machines(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health(folders, "show", "--json") == ExitCode.DONE
    report = json.loads(capsys.readouterr().out)
    first = report["checks"][0]
    assert (first["name"], first["kind"], first["origin"], first["argv"]) == ("good", "command", "vendor", ["true"])
    assert report["problems"] == []


def test_the_engine_finds_the_judge_through_its_entry_point() -> None:
    judge: HealthPlugin = commands()
    assert type(find_health_plugin()) is type(judge)


def test_the_engine_gets_a_baseline_of_plain_values(folders: Path) -> None:
    judge = HealthCommands(folders / "vendor", folders / "operator", folders)
    (folders / "sys/fs/pstore").mkdir(parents=True)
    (folders / "sys/fs/pstore/dmesg-efi_pstore-170000000101001").write_text("Panic#1 Part1\n")
    baseline = judge.capture_baseline(Health(interval_s=0.1))
    assert json.loads(json.dumps(baseline)) == {
        "format": 1,
        "failing": {"loud": "sh ended with exit code 1 instead of 0"},
        "pstore": ["dmesg-efi_pstore-170000000101001"],
    }
    assert "loud" in judge.baseline_sentence(baseline)
    (folders / "operator" / "a.yaml").write_text("")
    with pytest.raises(InvalidDocument):
        judge.capture_baseline(Health())


def test_the_engine_is_told_what_fails_now(folders: Path) -> None:
    assert HealthCommands(folders / "vendor", folders / "operator").failing_checks(Health()) == ["loud"]


def test_the_engine_gets_evidence(folders: Path) -> None:
    judge = HealthCommands(folders / "vendor", folders / "operator", folders)
    failed = FailedTrial("1.0", "5f" * 32, "b" * 32, "a" * 32)
    evidence = judge.collect_evidence(failed, MountedDirectory(folders / "state"), limit_bytes=1 << 20)
    assert evidence.cause is Cause.NONE
    assert evidence.folder == "evidence/1.0-1"


SERVE = """
import sys
from pathlib import Path
from rollback.command import HealthCommands
from updater.config import Health
from updater.files import MountedDirectory
from updater.health_plugin import Trial
from updater.slots import Slot
import argparse

class Engine:
    settings = Health(deadline_s=86400, hold_s=float(sys.argv[2]), interval_s=0.1, watch_s=0)
    state = MountedDirectory(Path(sys.argv[1]) / "state")
    evidence_bytes = 1 << 20
    def trial(self):
        print("asked", flush=True)
        return Trial("2.0", "5f" * 32, Slot.B, 1, 3, None)
    def commit(self, reason, sentence):
        print("commit", reason, flush=True)

base = Path(sys.argv[1])
arguments = argparse.Namespace(verb="service")
sys.exit(HealthCommands(base / "vendor", base / "operator").run(arguments, Engine))
"""


def serve(folders: Path, hold_s: float) -> subprocess.Popen[str]:
    write(folders / "vendor" / "a.yaml", command("good", "true"))
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folders), str(hold_s)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_the_service_commits_a_trial_as_a_process_of_its_own(folders: Path) -> None:
    with serve(folders, hold_s=0.2) as process:
        out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("asked\ncommit healthy\n", 0)


def test_sigterm_ends_the_service_without_a_verdict(folders: Path) -> None:
    with serve(folders, hold_s=3600) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 0)
