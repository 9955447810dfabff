"""`acl-lab faults`, `matrix`, `report` and `shell`, without a machine."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from integration.lab import matrix as matrix_module
from integration.lab.catalogue import chosen_faults
from integration.lab.cli import main
from integration.lab.matrix import ERROR, FAIL, PASS, Matrix, known, source_state
from integration.lab.shell import SOCKET
from updater.errors import ExitCode


def report(name: str, *, ok: bool = True, error: str | None = None) -> dict[str, Any]:
    held = {"what": "slot", "expected": "a", "found": "a" if ok else "b", "ok": ok}
    boots = [{"outcome": "healthy", "n": 1}]
    verdict = "pass" if ok and error is None else "fail"
    return {
        "format": 1,
        "name": name,
        "summary": f"About {name} <b>.",
        "verdict": verdict,
        "error": error,
        "seconds": 2.5,
        "boots": boots,
        "expectations": [held],
        "events": [],
    }


def leave(folder: Path, document: dict[str, Any], state: str = "") -> None:
    (folder / document["name"]).mkdir(parents=True)
    (folder / document["name"] / "report.json").write_text(json.dumps(document))
    (folder / document["name"] / "sources").write_text(state)


# -- faults ----------------------------------------------------------------------------------------------------------


def test_faults_lists_every_fault_by_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults"]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert all(fault.name in said for fault in chosen_faults([]))
    assert said.index("\nloader\n") < said.index("\nkernel\n") < said.index("\npeople\n")


def test_faults_of_one_stage_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "--stage", "metadata", "--json"]) == ExitCode.DONE
    rows = json.loads(capsys.readouterr().out)
    assert {row["stage"] for row in rows} == {"metadata"}
    assert not any(row["needs_boots"] for row in rows)


def test_one_fault_is_shown_with_its_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "verity-data-flipped"]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "tamper: slot b" in said
    assert "update_to 3" in said


def test_an_unknown_fault_and_an_unknown_stage_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "no-such"]) == ExitCode.USAGE
    assert main(["matrix", "--stage", "moon"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "no fault 'no-such'" in said
    assert "loader" in said


# -- report ----------------------------------------------------------------------------------------------------------


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_reports_are_merged_and_the_worst_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, report("one"))
    leave(tmp_path, report("two", ok=False))
    assert main(["report", str(tmp_path)]) == ExitCode.FAILED
    assert "1 pass, 1 fail" in capsys.readouterr().out
    suite = ElementTree.fromstring((tmp_path / "junit.xml").read_bytes())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    merged = json.loads((tmp_path / "report.json").read_bytes())
    assert merged["verdicts"] == {"pass": 1, "fail": 1, "error": 0}
    page = _Text()
    page.feed((tmp_path / "report.html").read_text())
    assert page.links == ["two/report.html", "one/report.html"]
    assert "About one <b>." in page.text


def test_an_error_is_never_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, report("one", error="the fault was never injected"))
    assert main(["report", str(tmp_path), "--json"]) == ExitCode.ENVIRONMENT
    [row] = json.loads(capsys.readouterr().out)
    assert (row["verdict"], row["problem"]) == ("error", "the fault was never injected")


def test_a_folder_without_reports_is_no_pass(tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == ExitCode.USAGE


# -- matrix ----------------------------------------------------------------------------------------------------------


class Played(Matrix):
    """A matrix whose runs are played by a few lines of Python instead of machines."""

    def _command(self, fault: Any) -> list[str]:
        folder = self.out / fault.name
        document = {
            "server-gzip": report(fault.name, ok=False),
            "server-garbled": report(fault.name, error="no such disk"),
            "server-errors": None,
        }.get(fault.name, report(fault.name))
        if document is None:
            return [sys.executable, "-c", "raise SystemExit('it fell over')"]
        start = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True, parents=True); "
        write = "(p / 'report.json').write_text(sys.argv[2])"
        return [sys.executable, "-c", start + write, str(folder), json.dumps(document)]


NAMES = ["server-cut-midway", "server-errors", "server-garbled", "server-gzip"]


def play(out: Path, *, again: bool = False) -> dict[str, Any]:
    matrix = Played(out, jobs=2, short=False, tell=lambda _: None)
    return {one.fault.name: one for one in matrix.run(chosen_faults(NAMES), again=again)}


def test_a_matrix_gives_every_fault_a_verdict_and_no_report_is_an_error(tmp_path: Path) -> None:
    results = play(tmp_path)
    assert {name: one.verdict for name, one in results.items()} == {
        "server-cut-midway": PASS,
        "server-errors": ERROR,
        "server-garbled": ERROR,
        "server-gzip": FAIL,
    }
    assert "it fell over" in results["server-errors"].problem
    assert "expected a, found b" in results["server-gzip"].problem


def test_a_matrix_goes_on_where_it_stopped_and_runs_errors_again(tmp_path: Path) -> None:
    play(tmp_path)
    remembered = {name for name, one in play(tmp_path).items() if one.remembered}
    assert remembered == {"server-cut-midway", "server-gzip"}
    assert not any(one.remembered for one in play(tmp_path, again=True).values())


def test_a_verdict_for_other_sources_or_another_length_is_none(tmp_path: Path) -> None:
    [fault] = chosen_faults(["server-gzip"])
    leave(tmp_path, report("server-gzip"), state=source_state(fault, short=True))
    assert known(fault, tmp_path, short=True) is not None
    assert known(fault, tmp_path, short=False) is None
    (tmp_path / "server-gzip" / "sources").write_text("0" * 16)
    assert known(fault, tmp_path, short=True) is None


def test_leaving_a_matrix_ends_what_it_started(tmp_path: Path) -> None:
    [fault] = chosen_faults(["server-gzip"])
    with matrix_module.Workers() as workers:
        workers.start(
            fault, [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"], tmp_path / "x"
        )
        [pid] = workers.pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


# -- shell -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Path]:
    """Serve a real shell on the socket that a machine's second serial port would be."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / SOCKET))
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            wire = connection.fileno()
            subprocess.run(["sh"], stdin=wire, stdout=wire, stderr=wire, check=False)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield tmp_path
    listener.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Path]:
    """Serve a shell that has a terminal, and so a prompt and an echo, as PID 1's debug shell has."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / SOCKET))
    listener.listen(1)

    wire, terminal = pty.openpty()
    process = subprocess.Popen(["setsid", "--ctty", "sh", "-i"], stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    # It is at its prompt before anybody comes, as since the boot in a machine: one that only starts dies of the Ctrl-C.
    os.read(wire, 4096)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, process, contextlib.suppress(OSError):
            watched: list[Any] = [connection, wire]
            while ready := select.select(watched, [], [])[0]:
                if connection in ready:
                    data = connection.recv(4096)
                    if not data:
                        process.kill()
                        break
                    os.write(wire, data)
                if wire in ready:
                    connection.sendall(os.read(wire, 4096))
        os.close(wire)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield tmp_path
    listener.close()


def test_a_command_in_a_machine_gives_its_output_and_its_exit_code(
    guest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shell", str(guest), "-c", "echo hello; (exit 7)"]) == 7
    assert capsys.readouterr().out == "hello\n"


def test_a_command_in_an_interactive_shell_gives_nothing_but_its_output(
    terminal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shell", str(terminal), "-c", "printf '%s\\n' one \"it's two\"\nexit 5"]) == 5
    assert capsys.readouterr().out == "one\nit's two\n"


def test_a_machine_that_goes_away_is_told_from_one_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen(1)

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                heard = b""
                while b"begin" not in heard:
                    heard += connection.recv(4096)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        assert main(["shell", str(tmp_path), "-c", "true"]) == ExitCode.ENVIRONMENT
        thread.join()
    assert "went away" in capsys.readouterr().err


def test_a_shell_without_a_machine_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shell", str(tmp_path), "-c", "true"]) == ExitCode.ENVIRONMENT
    assert "acl-lab boot" in capsys.readouterr().err
