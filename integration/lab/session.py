"""One QEMU process and the three wires to it: the console, the guest's agent, the monitor."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable
from enum import Enum
from typing import Any

from integration.lab.agent import AgentTalk
from integration.lab.emulator import Given, Wires
from integration.lab.qmp import QmpTalk, ask


class Wire(Enum):
    """Where bytes came from; the console is read first."""

    CONSOLE = 0
    AGENT = 1
    MONITOR = 2


class Session:
    """A machine from power-on to power-off; resets stay within it, as a watchdog's memory of its bite does."""

    def __init__(self, command: Callable[[Wires], list[str]], given: Given, *, debugger: bool = False) -> None:
        """Start QEMU; `given` is what this process was given, and cannot be changed before the next one.

        With `debugger` its gdb stub listens, too.
        """
        self.given = given
        self.agent = AgentTalk()
        self.monitor = QmpTalk()
        self._number = 0
        self._kept: list[tuple[Wire, bytes]] = []
        self._console, console_end = os.pipe()
        pairs = [socket.socketpair() for _ in range(2)]
        (self._agent_wire, agent_end), (self._monitor_wire, monitor_end) = pairs
        stub = _listening() if debugger else None
        self.debugger: bytes | str | None = stub.getsockname() if stub else None
        inherited = [agent_end.fileno(), monitor_end.fileno(), *([stub.fileno()] if stub else [])]
        try:
            self._process = subprocess.Popen(
                command(Wires(*inherited)),
                stdin=subprocess.DEVNULL,
                stdout=console_end,
                stderr=subprocess.PIPE,
                pass_fds=inherited,
                start_new_session=True,
            )
        finally:
            os.close(console_end)
            agent_end.close()
            monitor_end.close()
            if stub is not None:
                stub.close()
        self._selector = selectors.DefaultSelector()
        for descriptor, wire in (
            (self._console, Wire.CONSOLE),
            (self._agent_wire.fileno(), Wire.AGENT),
            (self._monitor_wire.fileno(), Wire.MONITOR),
        ):
            self._selector.register(descriptor, selectors.EVENT_READ, wire)
        self.ask("qmp_capabilities")

    @property
    def has_ended(self) -> bool:
        """Tell whether QEMU has closed every wire."""
        return not self._selector.get_map()

    def kill(self) -> None:
        """Take the power away, from any thread."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> str:
        """End the process and drop the wires; return what QEMU itself said."""
        self.kill()
        said = b""
        if self._process.stderr is not None:
            said = self._process.stderr.read()
            self._process.stderr.close()
        self._process.wait()
        self._selector.close()
        os.close(self._console)
        self._agent_wire.close()
        self._monitor_wire.close()
        return said.decode("utf-8", "replace")

    def read(self, most_s: float) -> list[tuple[Wire, bytes]]:
        """Return what has come on the wires, the console's first; nothing after `most_s` seconds of silence.

        What a guest printed before it reset thus belongs before the monitor's event that says so.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        ready = sorted(self._selector.select(most_s), key=lambda item: item[0].data.value)
        found = []
        for key, _ in ready:
            try:
                data = os.read(key.fd, 65536)
            except ConnectionResetError:
                data = b""
            if data:
                found.append((key.data, data))
            else:
                self._selector.unregister(key.fd)
        return found

    def tell_agent(self, line: bytes) -> None:
        """Send a line to the guest's agent."""
        self._agent_wire.sendall(line)

    def ask(self, name: str, **arguments: Any) -> int:
        """Ask QEMU to do something; return the number of the answer to come."""
        self._number += 1
        with contextlib.suppress(OSError):
            self._monitor_wire.sendall(ask(name, self._number, **arguments))
        return self._number

    def reset(self) -> None:
        """Reset the paused machine and let it boot again; return when it runs, or is gone.

        The guest's own resets pause it (`reboot=shutdown`), which would turn this one into a pause as well.
        """
        self.agent = AgentTalk()
        self.ask("set-action", reboot="reset")
        self.ask("system_reset")
        self._until("RESET")
        self.ask("set-action", reboot="shutdown")
        self.ask("cont")
        self._until("RESUME")

    def _until(self, wanted: str) -> None:
        kept: list[tuple[Wire, bytes]] = []
        names: set[str] = set()
        while wanted not in names and not self.has_ended:
            for wire, data in self.read(1.0):
                if wire is Wire.MONITOR:
                    names.update(event.name for event in self.monitor.feed(data))
                else:
                    kept.append((wire, data))
        self._kept = kept


def _listening() -> socket.socket:
    """Return a socket that listens at an address of the kernel's choice: no path, so none that is too long."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind("")
    listening.listen(1)
    return listening
