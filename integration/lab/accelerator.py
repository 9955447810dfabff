"""Which accelerator really runs a guest on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_EXIT_VALUE = 0x21
# QEMU's debug-exit device ends the process with (value << 1) | 1.
_EXIT_CODE = (_EXIT_VALUE << 1) | 1
_PROBE_S = 15.0


def firmware_that_exits() -> bytes:
    """Return 64 KiB of firmware whose reset vector writes one value to the debug-exit port and halts."""
    code = bytes([0xB0, _EXIT_VALUE, 0xE6, 0xF4, 0xF4])  # mov al, value; out 0xf4, al; hlt
    return code.rjust(0x10000 - 0x10 + len(code), b"\xf4").ljust(0x10000, b"\xf4")


def runs_a_guest(qemu: Sequence[str], accelerator: str, *, within_s: float = _PROBE_S) -> bool:
    """Tell whether a trivial guest starts and ends within a time limit; a device node alone proves nothing."""
    with tempfile.TemporaryDirectory(prefix="acl-lab-probe-") as folder:
        bios = Path(folder) / "bios"
        bios.write_bytes(firmware_that_exits())
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *qemu, "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-machine", f"pc,accel={accelerator}", "-bios", str(bios)]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(within_s) == _EXIT_CODE
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()
            # A process stuck inside /dev/kvm cannot be reaped: leave it rather than hang with it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)


def accelerator(qemu: Sequence[str], memory: Path) -> str:
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
    answer = "kvm" if runs_a_guest(qemu, "kvm") else "tcg"
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(f"{boot} {answer}\n")
    return answer
