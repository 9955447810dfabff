"""Two network namespaces of a run's own with a line of known delay and rate between them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure
from updater.run import find_tool, run

log = logging.getLogger(__name__)

# What is measured, its server and its line do not wait for other work on the machine.
PRIORITY = -10
SERVER_ADDRESS, CLIENT_ADDRESS = "10.213.77.1", "10.213.77.2"


@dataclass(frozen=True, slots=True)
class Line:
    """A kind of line: round-trip time in milliseconds and rate in Mbit/s (0: as fast as the machine)."""

    rtt_ms: int
    mbit: int

    @property
    def name(self) -> str:
        """Return what tables call it."""
        if not self.rtt_ms and not self.mbit:
            return "local"
        return f"{self.rtt_ms} ms, {self.mbit} Mbit/s" if self.mbit else f"{self.rtt_ms} ms"


LOCAL = Line(0, 0)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The two ends; `made_by` says what makes the delay."""

    server: str
    client: str
    made_by: str

    def inside(self, namespace: str) -> list[str]:
        """Return the words that run a command in one of them, ahead of whatever else the machine does."""
        return ["nice", "-n", str(PRIORITY), "ip", "netns", "exec", namespace]


@contextmanager
def namespaces(line: Line) -> Iterator[Namespaces]:
    """Make the namespaces and the line, and remove them at the end; needs root."""
    find_tool("ip", package="iproute2")
    if os.geteuid() != 0:
        raise EnvironmentFailure("network namespaces need root", mend="run the benchmark as root", reason="root-needed")
    names = [f"acl-bench-{os.getpid()}-{end}" for end in ("server", "client")]
    with ExitStack() as stack:
        for name in names:
            run(["ip", "netns", "add", name])
            stack.callback(run, ["ip", "netns", "delete", name], check=False)
            run(["ip", "-n", name, "link", "set", "lo", "up"])
        devices = (f"aclb{os.getpid()}s", f"aclb{os.getpid()}c")
        made_by = _shaped(line, names, devices, stack)
        for name, device, address, peer in zip(
            names, devices, (SERVER_ADDRESS, CLIENT_ADDRESS), (CLIENT_ADDRESS, SERVER_ADDRESS), strict=True
        ):
            run(["ip", "-n", name, "address", "add", f"{address}/32", "peer", peer, "dev", device])
            run(["ip", "-n", name, "link", "set", device, "up", "mtu", "1500"])
        yield Namespaces(names[0], names[1], made_by)


def _shaped(line: Line, names: list[str], devices: tuple[str, str], stack: ExitStack) -> str:
    if line == LOCAL:
        _virtual_cable(names, devices)
        return "veth"
    _virtual_cable(names, devices)
    if all(_netem(name, device, line) for name, device in zip(names, devices, strict=True)):
        return "netem"
    run(["ip", "-n", names[0], "link", "delete", devices[0]])
    process = subprocess.Popen(
        [sys.executable, "-m", "integration.bench.wire", *devices, str(line.rtt_ms / 2), str(line.mbit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.wait)
    stack.callback(process.stdout.close)
    stack.callback(process.stdin.close)
    if process.stdout.readline() != b"ready\n":
        raise EnvironmentFailure(
            "this kernel has neither netem nor TUN devices: no line with a delay can be made",
            mend="load sch_netem, or the tun module",
            reason="no-line",
        )
    for name, device in zip(names, devices, strict=True):
        run(["ip", "link", "set", device, "netns", name])
        run(["ip", "-n", name, "link", "set", device, "txqueuelen", "2000"])
    return "a user-space line between TUN devices (this kernel has no netem)"


def _virtual_cable(names: list[str], devices: tuple[str, str]) -> None:
    run(["ip", "-n", names[0], "link", "add", devices[0], "type", "veth", "peer", "name", devices[1]])
    run(["ip", "-n", names[0], "link", "set", devices[1], "netns", names[1]])


def _netem(namespace: str, device: str, line: Line) -> bool:
    rate = ["rate", f"{line.mbit}mbit"] if line.mbit else []
    delay = ["netem", "delay", f"{line.rtt_ms / 2}ms", *rate, "limit", "2000"]
    words = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *delay]
    return run(words, check=False).returncode == 0
