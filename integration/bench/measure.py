"""What a command costs: time, processor, memory of all its processes, bytes written."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure

_SAMPLE_S = 0.02
_OUTPUT_BLOCK_BYTES = 512
_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a command with all processes that it started.

    `rss_bytes` is the largest sum of resident memory that was seen at one moment, memory that processes share counted
    once, or the most that one process ever had where this is more; `written_bytes` is what was put into files, before
    the disk's own caching.
    """

    wall_s: float
    cpu_s: float
    rss_bytes: int
    written_bytes: int
    killed: bool = False


def run_measured(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    timeout_s: float = 1800.0,
    stop_when: Callable[[], bool] | None = None,
    also: Iterable[int] = (),
) -> Usage:
    """Run a command to its end and return its cost; raise EnvironmentFailure when it fails.

    `stop_when` is asked every 20 ms; once it is true, the command's process group is killed at once. `also` are other
    processes (a service) whose memory counts.
    """
    log = folder / "output.log"
    killed = False
    with log.open("ab") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=folder,
            start_new_session=True,
        )
        ended = threading.Event()
        peak = [0]
        stop = [False]
        members: list[int] = []

        def watch() -> None:
            # On Linux a thread has a priority of its own; a late look would miss the moment for a kill.
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
            while not ended.wait(_SAMPLE_S):
                late = time.monotonic() - began > timeout_s
                stops = late or (stop_when is not None and stop_when())
                mine = [pid for pid in family(process.pid) if pid == process.pid or not same_memory(process.pid, pid)]
                sizes = [memory_bytes(pid) for pid in [*mine, *also]]
                peak[0] = max(peak[0], sum(now for now, _ in sizes), *(most for _, most in sizes))
                if stops:
                    stop[0] = True
                    members.extend(family(process.pid))
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    return

        watcher = threading.Thread(target=watch, name="watch")
        watcher.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            wall_s = time.monotonic() - began
            ended.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        # What was killed may still be letting go of its files, and the next start must not meet it.
        while any(memory_bytes(pid)[0] for pid in members):
            time.sleep(_SAMPLE_S)
    killed = stop[0]
    if process.returncode != 0 and not (killed and stop_when is not None):
        said = log.read_text("utf-8", "replace")[-600:]
        raise EnvironmentFailure(
            f"`{' '.join(argv)[:300]}` failed ({process.returncode}): {said}", mend="see its log", reason="tool-failed"
        )
    return Usage(
        wall_s,
        used.ru_utime + used.ru_stime,
        peak[0],
        used.ru_oublock * _OUTPUT_BLOCK_BYTES,
        killed,
    )


def family(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def memory_bytes(pid: int) -> tuple[int, int]:
    """Return a process's resident memory, now and at most so far; zeros when it has ended.

    The kernel's own account for a finished command (`ru_maxrss`) is of no use: it counts this process, before `exec`.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS:", "VmHWM:")))
    now, most = (int(found.get(name, "0 kB").split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
    return now, most


def same_memory(pid: int, other: int) -> bool:
    """Tell whether two processes share one memory, as a process and its child do from `vfork` to `exec`.

    False where the kernel cannot tell. Source: kcmp(2).
    """
    number = _KCMP.get(platform.machine())
    return number is not None and ctypes.CDLL(None).syscall(number, pid, other, _KCMP_VM, 0, 0) == 0


def forget(path: Path) -> None:
    """Write a file out and take it out of the page cache, so that the next reader reads the disk.

    All else that waits to be written goes out too: it would be written during what is measured.
    """
    os.sync()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
