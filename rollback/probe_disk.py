"""Looks at files, mounts and the verity device below one."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rollback.checks import File, Mount, Verity
from rollback.execute import execute
from rollback.results import Outcome, Status

CONTENT_BYTES = 1 << 20
# Where the image of a slot is mounted: the whole root, or only /usr.
_IMAGES = ("/", "/usr")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of the kernel's mount table (proc_pid_mountinfo(5))."""

    path: str
    device: str
    fstype: str
    options: frozenset[str]
    source: str = ""


def look_at_file(check: File) -> Outcome:
    """Judge a path's existence and a regular file's content (its first MiB)."""
    try:
        # Non-blocking, because opening a FIFO would wait for a writer.
        handle = os.open(check.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if check.contains else None
        if handle is None:
            os.stat(check.path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        status = Status.FAILED if check.exists else Status.OK
        return Outcome(status, f"{check.path} does not exist")
    if handle is not None:
        assert check.contains is not None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return Outcome(Status.FAILED, f"{check.path} is not a regular file")
            content = os.read(handle, CONTENT_BYTES)
        finally:
            os.close(handle)
        text = content.decode("utf-8", "replace")
        if check.contains not in text:
            return Outcome(Status.FAILED, f"{check.path} does not hold {check.contains!r}", text)
        return Outcome(Status.OK, f"{check.path} holds {check.contains!r}")
    return Outcome(Status.OK if check.exists else Status.FAILED, f"{check.path} exists")


def look_at_mount(check: Mount, root: Path) -> Outcome:
    """Judge a mount's file system, options and free space."""
    mounted = _mount_at(check.path, root) if check.itself else _mount_above(check.path, root)
    if mounted is None:
        return Outcome(Status.FAILED, f"nothing is mounted at {check.path}")
    if check.fstype is not None and mounted.fstype != check.fstype:
        return Outcome(Status.FAILED, f"{check.path} is {mounted.fstype} instead of {check.fstype}")
    missing = sorted(set(check.options) - mounted.options)
    if missing:
        why = f"{check.path} is mounted without {', '.join(missing)} (it has {', '.join(sorted(mounted.options))})"
        return Outcome(Status.FAILED, why)
    said = f"{mounted.fstype} is mounted at {check.path}"
    if check.free_bytes is None:
        return Outcome(Status.OK, said)
    figures = os.statvfs(check.path)
    free = figures.f_bavail * figures.f_frsize
    if free < check.free_bytes:
        return Outcome(Status.FAILED, f"{check.path} has {free} bytes free, fewer than {check.free_bytes}")
    return Outcome(Status.OK, f"{said}, {free} bytes free")


def look_at_verity(check: Verity, root: Path) -> Outcome:
    """Judge the dm-verity device that a mount point stands on: V (valid so far) or C (a block was corrupt)."""
    paths = (check.path,) if check.path is not None else _IMAGES
    found = [mounted for path in paths if (mounted := _mount_at(path, root)) is not None]
    if not found:
        return Outcome(Status.FAILED, f"nothing is mounted at {paths[0]}")
    named = [(mounted, name) for mounted in found if (name := _mapped_name(mounted, root)) is not None]
    if not named:
        (mounted, *_) = found
        return Outcome(Status.FAILED, f"{mounted.path} is on device {mounted.device}, which dm-verity does not guard")
    mounted, name = named[0]
    ended = execute(["dmsetup", "status", "--target", "verity", name], timeout_s=check.timeout_s)
    if ended.exit_code is None:
        return Outcome(Status.TIMEOUT, f"dmsetup did not answer within {check.timeout_s:g} s", ended.text)
    # start, length, target, then V or C, then counters that newer kernels add.
    words = ended.output.decode("utf-8", "replace").split()
    if ended.exit_code != 0 or len(words) < 4 or words[2] != "verity":
        return Outcome(Status.FAILED, f"{mounted.path} is on {name}, which dm-verity does not guard", ended.text)
    if words[3] != "V":
        why = f"a block of {name} (mounted at {mounted.path}) did not match its hash: see the kernel's log"
        return Outcome(Status.FAILED, why, ended.text)
    return Outcome(Status.OK, f"no block of {name} has failed its proof")


def _mapped_name(mounted: Mounted, root: Path) -> str | None:
    """Return device mapper's name of the device below a mount, None when it is no mapped one."""
    device = root / "sys/dev/block" / mounted.device
    if not device.exists():
        # btrfs gives its mounts numbers of no device; the source names the one that it was mounted from.
        device = root / "sys/class/block" / (root / mounted.source.lstrip("/")).resolve().name
    try:
        return (device / "dm/name").read_text().strip()
    except OSError:
        return None


def _mount_at(path: str, root: Path) -> Mounted | None:
    """Return what is mounted at `path`: the last line counts, which hides the earlier ones."""
    found = None
    for line in (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        mounted = parse_mount(line)
        if mounted is not None and mounted.path == path:
            found = mounted
    return found


def _mount_above(path: str, root: Path) -> Mounted | None:
    """Return the mount that holds a path: the one at it, or at the nearest folder above."""
    folders = [PurePosixPath(path), *PurePosixPath(path).parents]
    return next((mounted for folder in folders if (mounted := _mount_at(str(folder), root)) is not None), None)


def parse_mount(line: str) -> Mounted | None:
    """Parse a line of mountinfo; None for a line that is none.

    Options are the mount's and the super block's; read-only wins, because either makes it so.
    """
    fields, _, tail = line.partition(" - ")
    words, rest = fields.split(" "), tail.split(" ")
    if len(words) < 6 or len(rest) < 3:
        return None
    options = set(words[5].split(",")) | set(rest[2].split(","))
    if "ro" in options:
        options.discard("rw")
    return Mounted(_unescaped(words[4]), words[2], rest[0], frozenset(options), _unescaped(rest[1]))


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
