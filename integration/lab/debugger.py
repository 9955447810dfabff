"""A connection to QEMU's gdb stub, while which the machine stands still."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from updater.errors import EnvironmentFailure

_TIMEOUT_S = 20.0
# Where the registers lie in the stub's answer on x86-64: sixteen of 8 bytes, then these.
_RIP, _RFLAGS, _CS = slice(128, 136), slice(136, 140), slice(140, 144)
_INTERRUPTS_ON = 1 << 9
_UPPER_HALF = 0xFFFF_8000_0000_0000


class Unreadable(EnvironmentFailure):
    """Memory that the processor cannot reach at this moment."""


@dataclass(frozen=True, slots=True)
class Registers:
    """What tells where a processor is: the address of its next instruction, its flags and its code segment."""

    rip: int
    rflags: int
    cs: int

    @property
    def takes_interrupts(self) -> bool:
        """Tell whether interrupts are on."""
        return bool(self.rflags & _INTERRUPTS_ON)

    @property
    def in_kernel(self) -> bool:
        """Tell whether it executes a kernel of 64 bits, in the upper half; firmware is in the lower."""
        return self.cs & 3 == 0 and self.rip >= _UPPER_HALF


class Debugger:
    """Stops the machine's processor, looks at it, writes to its memory, and lets it go on; a context manager.

    Source: GDB Remote Serial Protocol; its packets `g`, `m`, `M` and `D`.
    """

    def __init__(self, address: bytes | str) -> None:
        """Connect, which stops the machine; raise EnvironmentFailure when no QEMU listens there."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(_TIMEOUT_S)
        self._pending = b""
        try:
            self._connection.connect(address)
        except OSError as error:
            self._connection.close()
            raise _failure(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without a word of farewell the machine would stand still for ever.
        with contextlib.suppress(EnvironmentFailure):
            self._ask(b"D")
        self._connection.close()

    def registers(self) -> Registers:
        """Return where the processor is."""
        raw = bytes.fromhex(self._ask(b"g").decode())
        return Registers(*(int.from_bytes(raw[place], "little") for place in (_RIP, _RFLAGS, _CS)))

    def read(self, at: int, length: int) -> bytes:
        """Return memory at an address as the processor sees it; raise Unreadable where there is none."""
        answer = self._ask(b"m%x,%x" % (at, length))
        if answer.startswith(b"E"):
            raise Unreadable(f"there is no memory at {at:#x}", mend="run it again", reason="lab-gdb")
        return bytes.fromhex(answer.decode())

    def write(self, at: int, content: bytes) -> None:
        """Write memory, whatever its protection, and read it back; raise Unreadable where that fails."""
        answer = self._ask(b"M%x,%x:%s" % (at, len(content), content.hex().encode()))
        if answer != b"OK" or self.read(at, len(content)) != content:
            raise Unreadable(f"the memory at {at:#x} cannot be written", mend="run it again", reason="lab-gdb")

    def _ask(self, packet: bytes) -> bytes:
        try:
            self._connection.sendall(framed(packet))
            while (answer := self._answer()) is None:
                received = self._connection.recv(65536)
                if not received:
                    raise _failure("the emulator closed the connection")
                self._pending += received
            self._connection.sendall(b"+")
        except OSError as error:
            raise _failure(str(error)) from error
        return answer

    def _answer(self) -> bytes | None:
        _, found, rest = self._pending.partition(b"$")
        body, end, after = rest.partition(b"#")
        if not found or not end or len(after) < 2:
            return None
        self._pending = after[2:]
        # A stop that the stub tells of by itself answers nothing that was asked.
        return self._answer() if body.startswith((b"T", b"S")) else body


def framed(packet: bytes) -> bytes:
    """Return a packet as it goes over the wire, with its checksum."""
    return b"$%s#%02x" % (packet, sum(packet) % 256)


def _failure(why: str) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"the machine's processor cannot be reached: {why}", mend="run it again", reason="lab-gdb"
    )
