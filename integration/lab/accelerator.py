"""Which accelerator really runs a guest on this machine."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_PROBE_S = 30.0
# The firmware says so when it looks for something to boot: by then it ran long mode, timers and paging.
_FIRMWARE_IS_UP = b"BdsDxe"


def cpu_model(accelerator: str) -> str:
    """Return the CPU to ask QEMU for: all that the accelerator can give."""
    return "host" if accelerator == "kvm" else "max"


def runs_a_guest(
    qemu: Sequence[str], firmware_code: Path, firmware_variables: Path, accelerator: str, *, within_s: float = _PROBE_S
) -> bool:
    """Tell whether the firmware comes up within a time limit.

    A device node proves nothing, and a guest of three instructions little: nested virtualisation has been seen to run
    those and then to fail, or to hang, on the first real guest.
    """
    argv = ["setpriv", "--pdeathsig", "KILL", "--", *qemu, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", f"q35,accel={accelerator},smm=off", "-cpu", cpu_model(accelerator), "-m", "256"]
    argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={firmware_code}"]
    argv += ["-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={firmware_variables}"]
    argv += ["-serial", "stdio"]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        return _says(process.stdout.fileno(), _FIRMWARE_IS_UP, within_s)
    finally:
        process.kill()
        process.stdout.close()
        # A process stuck inside /dev/kvm cannot be reaped: leave it rather than hang with it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)


def accelerator(qemu: Sequence[str], firmware_code: Path, firmware_variables: Path, memory: Path) -> str:
    """Return `kvm` where it really runs a guest, else `tcg`; remember the answer in the file `memory` for this boot.

    `ACL_LAB_ACCEL` overrides it.
    """
    wanted = os.environ.get("ACL_LAB_ACCEL", "auto")
    if wanted != "auto":
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        known, _, answer = memory.read_text().strip().partition(" ")
        if known == boot and answer in ("kvm", "tcg"):
            return answer
    answer = "kvm" if runs_a_guest(qemu, firmware_code, firmware_variables, "kvm") else "tcg"
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(f"{boot} {answer}\n")
    return answer


def _says(descriptor: int, words: bytes, within_s: float) -> bool:
    heard = b""
    end = time.monotonic() + within_s
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                return False
            data = os.read(descriptor, 4096)
            if not data:
                return False
            heard = heard[-len(words) :] + data
            if words in heard:
                return True
    return False
