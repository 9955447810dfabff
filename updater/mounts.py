"""What is mounted, and a private mount of the EFI system partition."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from updater.errors import EnvironmentFailure
from updater.files import MountedDirectory, explained
from updater.run import run

log = logging.getLogger(__name__)

ESP_MOUNTS = Path("/run/acl-updater/esp")
# dirsync: names reach the disk in the order in which they change, whatever a caller forgets to flush.
# errors=continue: a cut leaves files whose clusters the table calls free; to remove or rewrite one is an error to the
# kernel, which would make the ESP read-only by default: for ever, as each later try meets the same file. What is
# written there is read back.
_ESP_OPTIONS = "rw,nosuid,nodev,noexec,noatime,dirsync,umask=0077,errors=continue"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; `device` is (major, minor)."""

    device: tuple[int, int]
    mount_point: str
    file_system: str
    source: str


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse /proc/self/mountinfo, oldest mount first. Source: proc_pid_mountinfo(5)."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(" ")
        try:
            dash = fields.index("-", 6)
            major, minor = fields[2].split(":")
            mounts.append(
                Mount((int(major), int(minor)), _unescaped(fields[4]), fields[dash + 1], _unescaped(fields[dash + 2]))
            )
        except (ValueError, IndexError):
            continue
    return mounts


def mounted_at(mounts: list[Mount], mount_point: str) -> Mount | None:
    """Return what is seen at a mount point: the newest mount there."""
    return next((mount for mount in reversed(mounts) if mount.mount_point == mount_point), None)


class Mounter(Protocol):
    """Mounts and unmounts; raises EnvironmentFailure."""

    def mount(self, device: Path, target: Path, options: str) -> None:
        """Mount a vfat device."""

    def unmount(self, target: Path) -> None:
        """Unmount, at once when it is free, and as soon as it is free otherwise."""


class SystemMounter:
    """A `Mounter` by mount(8) and umount(8)."""

    def mount(self, device: Path, target: Path, options: str) -> None:
        """Mount a vfat device."""
        run(["mount", "-t", "vfat", "-o", options, device, target], timeout_s=60)

    def unmount(self, target: Path) -> None:
        """Unmount."""
        try:
            run(["umount", target], timeout_s=60)
        except EnvironmentFailure:
            run(["umount", "--lazy", target], timeout_s=60)


@contextmanager
def mounted_esp(
    device: Path, *, mounts: Path = ESP_MOUNTS, mounter: Mounter | None = None, proc: Path = Path("/proc")
) -> Iterator[MountedDirectory]:
    """Mount the ESP for this process alone and lend it as a folder; it is unmounted whatever happens inside.

    Each process has a mount point of its own, so that a `status` that ends does not take the ESP away from an update
    that runs. Where the ESP is mounted elsewhere as well, the kernel shows the same file system twice, which is
    harmless. What a killed process left is unmounted first. Raises EnvironmentFailure.
    """
    mounter = mounter or SystemMounter()
    with explained(f"cannot make {mounts}", "run as root"):
        mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(mounts, mounter, proc)
        target = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=mounts))
    try:
        try:
            mounter.mount(device, target, _ESP_OPTIONS)
        except EnvironmentFailure as error:
            raise EnvironmentFailure(
                f"cannot mount the EFI system partition {device}: {error.message}",
                mend=f"if it is mounted read-only elsewhere (`findmnt -S {device}`), unmount it there; see dmesg",
                reason="esp-not-mounted",
            ) from error
        try:
            yield MountedDirectory(target)
        finally:
            _let_go(mounter, target)
    finally:
        with suppress(OSError):
            target.rmdir()


def _sweep(mounts: Path, mounter: Mounter, proc: Path) -> None:
    """Unmount what processes that are gone have left."""
    for left in mounts.iterdir():
        owner = re.fullmatch(r"([0-9]+)-.*", left.name)
        if owner is None or (proc / owner.group(1)).exists():
            continue
        mounted = {mount.mount_point for mount in parse_mountinfo((proc / "self/mountinfo").read_text())}
        if str(left) in mounted:
            _let_go(mounter, left)
        with suppress(OSError):
            left.rmdir()


def _let_go(mounter: Mounter, target: Path) -> None:
    try:
        mounter.unmount(target)
    except EnvironmentFailure as error:
        # What was written is flushed already: a mount that stays is untidy, not unsafe.
        log.warning("cannot unmount %s: %s", target, error)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
