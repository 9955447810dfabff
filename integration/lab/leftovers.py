"""Who works in a run's folder, down to what a killed run has left there."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.lab.disk import VARIABLES
from integration.lab.node import SCRATCH
from updater.errors import EnvironmentFailure

log = logging.getLogger(__name__)

DISK = "disk.raw"
REPORT = "report.json"


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold an empty folder of this name for one run; raise EnvironmentFailure when another run works in it.

    The kernel lets go of it with the process, whatever ended that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentFailure(
                f"another run works in {folder}", mend="wait for its end, or give another --out", reason="lab-busy"
            ) from error
        # Emptied and not made anew: whoever comes meanwhile must meet the lock of this folder.
        for left in folder.iterdir():
            _remove(left)
        yield
    finally:
        os.close(descriptor)


def drop_disks(folder: Path) -> None:
    """Remove from a run's folder what weighs gigabytes, and leave what was written about it."""
    # Beside a disk stands a folder of what has arrived for it, after an update that came to nothing.
    names = (VARIABLES, "twin.raw", "repository", SCRATCH)
    for leftover in (*folder.glob(f"{DISK}*"), *(folder / name for name in names)):
        _remove(leftover)


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


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _is_free(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
