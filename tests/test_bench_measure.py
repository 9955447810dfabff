"""What the benchmark measures of real commands, and the slots that it prepares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.bench.course import HALF, OLDER, ZEROS
from integration.bench.measure import family, forget, memory_bytes, run_measured, same_memory
from integration.bench.slots import digest, fill, require_same
from updater.errors import EnvironmentFailure

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def test_memory_is_that_of_the_children_too_and_not_of_the_one_who_measures(tmp_path: Path) -> None:
    child = "import signal; b = b'x' * (60 << 20); open('ready', 'w').close(); signal.pause()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ballast = b"x" * (200 << 20)
    usage = run_measured(
        [sys.executable, "-c", script], env=ENVIRONMENT, folder=tmp_path, stop_when=(tmp_path / "ready").exists
    )
    assert 60 << 20 < usage.rss_bytes < len(ballast)


def test_a_command_costs_time(tmp_path: Path) -> None:
    usage = run_measured([sys.executable, "-c", "sum(range(10**6))"], env=ENVIRONMENT, folder=tmp_path)
    assert usage.wall_s > 0
    assert usage.cpu_s > 0
    assert not usage.killed


def test_a_failing_command_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="no such luck"):
        run_measured(["bash", "-c", "echo no such luck >&2; exit 3"], env=ENVIRONMENT, folder=tmp_path)


def test_a_command_is_killed_with_its_children_when_it_is_time(tmp_path: Path) -> None:
    script = "sleep 1000 & echo $! > child; touch started; wait"
    usage = run_measured(
        ["bash", "-c", script], env=ENVIRONMENT, folder=tmp_path, stop_when=(tmp_path / "started").exists
    )
    assert usage.killed
    child = int((tmp_path / "child").read_text())
    assert memory_bytes(child) == (0, 0)


def test_a_family_holds_the_process_itself() -> None:
    assert os.getpid() in family(os.getpid())
    now, most = memory_bytes(os.getpid())
    assert 1 << 20 < now <= most


def test_memory_that_processes_share_is_told_from_memory_of_their_own() -> None:
    if not same_memory(os.getpid(), os.getpid()):
        pytest.skip("this kernel has no kcmp(2): a child between vfork and exec counts twice")
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert not same_memory(os.getpid(), child.pid)
        child.kill()
    assert not same_memory(os.getpid(), child.pid)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"o" * 40960)
    new.write_bytes(b"n" * 45056)
    return old, new


@pytest.mark.parametrize(
    ("state", "content"),
    [
        (ZEROS, bytes(49152)),
        (OLDER, b"o" * 40960 + bytes(8192)),
        (HALF, b"n" * 20480 + bytes(28672)),
    ],
)
def test_a_slot_holds_what_an_update_is_to_find(
    tmp_path: Path, images: tuple[Path, Path], state: str, content: bytes
) -> None:
    slot = tmp_path / "slot"
    slot.write_bytes(b"x" * 60000)
    fill(slot, state, *images, offset=4096, length=49152)
    forget(slot)
    assert slot.read_bytes() == b"x" * 4096 + content + b"x" * (60000 - 4096 - 49152)


def test_an_unknown_state_is_no_slot(tmp_path: Path, images: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="full moon"):
        fill(tmp_path / "slot", "full moon", *images, length=4096)


def test_a_contender_that_leaves_something_else_is_found_out(tmp_path: Path, images: tuple[Path, Path]) -> None:
    _, new = images
    expected = digest(new, length=45056)
    require_same(expected, new, length=45056, who="cp")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"n" * 45055 + b"x")
    with pytest.raises(EnvironmentFailure, match="cp ended well"):
        require_same(expected, wrong, length=45056, who="cp")
