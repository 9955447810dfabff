"""What a killed run leaves behind: no process, and no disk once the next run begins."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from integration.images.cache import cached
from integration.lab.leftovers import occupied, sweep
from updater.errors import EnvironmentFailure

TOP = Path(__file__).parent.parent
LONG_S = 60.0
_RUN = """
import sys, time
from pathlib import Path
from integration.lab.leftovers import occupied
with occupied(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "disk.raw").write_bytes(b"disk")
    print("ready", flush=True)
    sys.stdin.read()
"""
_MACHINE = """
import sys
from pathlib import Path
from integration.lab.boots import Observer
from integration.lab.emulator import Emulator
from integration.lab.machine import Machine
from integration.lab.timeline import DiskView
folder = Path(sys.argv[1])
emulator = Emulator((str(folder / "qemu"),), folder / "code.fd", folder / "vars.fd")
observer = Observer(folder, releases={}, look=lambda: DiskView({}, ()))
with Machine(emulator, disk=folder / "disk.raw", folder=folder, observer=observer) as machine:
    machine.power_on()
    sys.stdin.read()
"""
_STOCK = """
import sys
from integration.images.cache import cached
def make(folder, final):
    (folder / "half").touch()
    print("ready", flush=True)
    sys.stdin.read()
cached("stock", {"one": 1}, make)
"""


def started(script: str, *words: str | Path, cache: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a script in a process of its own; return once it said a line, or runs where it says none."""
    environment = {**os.environ, "PYTHONPATH": str(TOP), **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
    return subprocess.Popen(
        [sys.executable, "-c", script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def hears(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def killed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LONG_S)


def test_the_disk_of_a_killed_run_goes_when_the_next_begins_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "kernel-panic"
    run = started(_RUN, folder)
    assert hears(run) == b"ready\n"
    assert sweep(tmp_path) == []
    with pytest.raises(EnvironmentFailure, match="another run works in"), occupied(folder):
        pass
    assert (folder / "disk.raw").exists()
    (folder / "serial-01.log").touch()
    for name in ("disk.raw.partial/manifest", "repository/metadata", "updater-scratch/esp"):
        (folder / name).mkdir(parents=True)
    killed(run)
    assert sweep(tmp_path) == [folder]
    assert [path.name for path in folder.iterdir()] == ["serial-01.log"]


def test_a_disk_that_was_kept_on_purpose_stays(tmp_path: Path) -> None:
    folder = tmp_path / "kernel-panic"
    with occupied(folder):
        for name in ("disk.raw", "report.json"):
            (folder / name).touch()
    assert sweep(tmp_path) == []
    assert (folder / "disk.raw").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_machine_dies_with_the_lab_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "vars.fd").touch()
    emulator = tmp_path / "qemu"
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    emulator.write_text(f"#!/bin/sh\necho $$ > '{pipe}'\nexec sleep 1000\n")
    emulator.chmod(0o755)
    lab = started(_MACHINE, tmp_path)
    machine = os.pidfd_open(int(pipe.read_text()))
    lab.send_signal(number)
    lab.communicate(timeout=LONG_S)
    ended, _, _ = select.select([machine], [], [], LONG_S)
    os.close(machine)
    assert ended


def test_what_a_killed_maker_left_in_the_cache_goes_with_the_next_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = tmp_path / "acl-updater/stock"
    maker = started(_STOCK, cache=tmp_path)
    assert hears(maker) == b"ready\n"
    cached("stock", {"two": 2}, lambda folder, _: (folder / "whole").touch())
    assert len(list(home.glob("*.partial"))) == 1
    killed(maker)
    cached("stock", {"three": 3}, lambda folder, _: (folder / "whole").touch())
    assert list(home.glob("*.partial")) == []
    assert len(list(home.glob("*/whole"))) == 2
