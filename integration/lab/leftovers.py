"""The folders of runs: one process at a time in each, and what a killed one left is swept away."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.lab.disk import VARIABLES
from updater.errors import EnvironmentFailure

log = logging.getLogger(__name__)

DISK = "disk.raw"
REPORT = "report.json"
SCRATCH = "scratch"


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold an empty folder of this name for one run; raise EnvironmentFailure when another run works in it.

    The kernel lets go of it with the process, whatever ended that. Temporary files, those of child processes too, lie
    in it meanwhile: an updater whose power is cut removes none.
    """
    if folder.is_dir() and not _is_free(folder):
        raise EnvironmentFailure(
            f"another run works in {folder}", mend="wait for its end, or give another --out", reason="lab-busy"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with _scratch_in(folder / SCRATCH):
            yield
    finally:
        os.close(descriptor)


def drop_disks(folder: Path) -> None:
    """Remove from a run's folder what weighs gigabytes, and leave what was written about it."""
    # Beside a disk stands a folder of what has arrived for it, after an update that came to nothing.
    names = (VARIABLES, "twin.raw", "repository", SCRATCH)
    for leftover in (*folder.glob(f"{DISK}*"), *(folder / name for name in names)):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def _scratch_in(scratch: Path) -> Iterator[None]:
    scratch.mkdir()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(scratch.resolve())
    # Forgets where Python has found room once: it looks again.
    tempfile.tempdir = None
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(out: Path) -> list[Path]:
    """Drop the disks of runs in folders of `out` that were killed; return those folders.

    A run that ended has a report, and one that is under way holds its folder.
    """
    left = [disk.parent for disk in sorted(out.glob(f"*/{DISK}")) if not (disk.parent / REPORT).exists()]
    swept = [folder for folder in left if _is_free(folder)]
    for folder in swept:
        log.info("lab: %s is of a run that was killed: its disk is removed", folder)
        drop_disks(folder)
    return swept


def _is_free(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
