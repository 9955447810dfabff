"""What goes wrong in a running machine's hardware, at a named moment of every boot of one release."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from integration.lab.debugger import Debugger, Registers, Unreadable
from integration.lab.qmp import QmpTalk
from updater.errors import EnvironmentFailure

_LOOK_AGAIN_S = 1.0
_HLT = b"\xf4"
# The kernel's own words for an instruction that there is not.
_OOPS = re.compile(r"Oops: |invalid opcode: ")


class Power(Protocol):
    """What a strike needs of the QEMU that it strikes."""

    @property
    def monitor(self) -> QmpTalk:
        """Return what the monitor has said."""

    @property
    def debugger(self) -> bytes | str | None:
        """Return where its gdb stub listens, if it has one."""

    def ask(self, name: str, **arguments: Any) -> int:
        """Ask QEMU to do something; return the number of the answer to come."""


class Boots(Protocol):
    """What a strike needs to know of the boot that runs."""

    @property
    def running(self) -> tuple[int, str | None]:
        """Return the number of the running boot and its release; 0 and None between two boots."""

    @property
    def disk_errors(self) -> int:
        """Return how many requests to the disk have failed."""

    def console_shows(self, pattern: re.Pattern[str]) -> bool:
        """Tell whether the running boot's console has shown a pattern."""

    def note(self, kind: str, text: str) -> None:
        """Record an event."""


@dataclass(slots=True)
class Moment:
    """Every boot of a release, once its console has shown a pattern."""

    version: str
    pattern: re.Pattern[str]

    def has_come(self, boots: Boots) -> bool:
        """Tell whether it is now, or was in this boot."""
        return boots.running[1] == self.version and boots.console_shows(self.pattern)


class Strike(Protocol):
    """Something that the thread which watches a machine does to it."""

    name: str

    @property
    def is_urgent(self) -> bool:
        """Tell whether it wants to look every few milliseconds."""

    @property
    def proven(self) -> int:
        """Return in how many boots it was seen to have struck."""

    @property
    def stands_s(self) -> float:
        """Return the seconds for which the machine was seen to stand by it in this boot."""

    def look(self, boots: Boots, power: Power) -> None:
        """Strike if the moment has come; look at what became of it."""

    def boot_ended(self, power: Power) -> None:
        """Undo what a reset undoes; the machine is paused."""


class Strikes(list[Strike]):
    """All that strikes one machine."""

    @property
    def is_urgent(self) -> bool:
        """Tell whether one of them wants to look every few milliseconds."""
        return any(strike.is_urgent for strike in self)

    @property
    def stands_s(self) -> float:
        """Return the seconds for which the machine was seen to stand by one of them in the running boot."""
        return max((strike.stands_s for strike in self), default=0.0)

    def look(self, boots: Boots, power: Power) -> None:
        """Strike what is due; look at what became of it."""
        for strike in self:
            strike.look(boots, power)

    def boot_ended(self, power: Power) -> None:
        """Undo what a reset undoes."""
        for strike in self:
            strike.boot_ended(power)


class Defect(Enum):
    """What a processor is made to do wrong: the instructions that are put where it would go on.

    They are code of the kernel that others may come by as well; the next boot loads it anew.
    """

    OOPS = "oops"
    SPIN = "spin"
    SPIN_DEAF = "spin-without-interrupts"

    @property
    def code(self) -> bytes:
        """Return the instructions: ud2; jmp to itself; the same after a cli."""
        return {Defect.OOPS: b"\x0f\x0b", Defect.SPIN: b"\xeb\xfe", Defect.SPIN_DEAF: b"\xfa\xeb\xfe"}[self]

    def fits(self, registers: Registers, before: bytes) -> bool:
        """Tell whether a processor in the kernel is where this does what it is called; `before` is the byte before.

        An oops of the idle task is a panic whatever the kernel was told, so that one waits for another task.
        """
        return self is Defect.SPIN_DEAF or (registers.takes_interrupts and (self is Defect.SPIN or before != _HLT))


@dataclass(slots=True)
class ProcessorStrike:
    """Makes the processor go wrong inside the kernel, once a boot.

    A spin is proven by the processor still being there a second later, an oops by the kernel's own words.
    """

    moment: Moment
    defect: Defect
    clock: Callable[[], float] = time.monotonic
    name: str = field(init=False)
    proven: int = 0
    _boot: int = 0
    _at: int | None = None
    _struck_s: float = 0.0
    _looked_s: float = 0.0
    _is_proven: bool = False

    def __post_init__(self) -> None:
        """Take its name from what it does."""
        self.name = f"processor {self.defect.value}"

    @property
    def is_urgent(self) -> bool:
        """Tell whether it has to catch the processor in the kernel now."""
        return self._at is None and self._boot != 0

    @property
    def stands_s(self) -> float:
        """Return the seconds for which the processor was seen to spin in this boot."""
        return self._looked_s - self._struck_s if self._is_proven and self.defect is not Defect.OOPS else 0.0

    def look(self, boots: Boots, power: Power) -> None:
        """Strike if the moment has come; look at what became of it."""
        number = boots.running[0] if self.moment.has_come(boots) else 0
        if number != self._boot:
            self._boot, self._at, self._is_proven = number, None, False
        if not number:
            return
        if self._at is None:
            self._try(boots, power)
        elif self.defect is Defect.OOPS:
            if not self._is_proven and boots.console_shows(_OOPS):
                self._prove(boots, "the kernel met it")
        elif self.clock() - self._looked_s >= _LOOK_AGAIN_S:
            self._look_at_spin(boots, power)

    def boot_ended(self, power: Power) -> None:
        """Do nothing: the next boot loads its kernel anew."""

    def _try(self, boots: Boots, power: Power) -> None:
        with Debugger(_debugger(power)) as debugger:
            registers = debugger.registers()
            if not registers.in_kernel:
                return
            try:
                if not self.defect.fits(registers, debugger.read(registers.rip - 1, 1)):
                    return
                was = debugger.read(registers.rip, len(self.defect.code))
                debugger.write(registers.rip, self.defect.code)
            except Unreadable:
                # On its way in or out, where the tables of the user's process hold that show little of the kernel.
                return
        self._at = registers.rip
        self._struck_s = self._looked_s = self.clock()
        boots.note("fault", f"{self.name}: at {self._at:#x} stands {self.defect.code.hex(' ')}, not {was.hex(' ')}")

    def _look_at_spin(self, boots: Boots, power: Power) -> None:
        with Debugger(_debugger(power)) as debugger:
            registers = debugger.registers()
        at = self._at or 0
        deaf = self.defect is not Defect.SPIN_DEAF or not registers.takes_interrupts
        if at <= registers.rip < at + len(self.defect.code) and deaf:
            if not self._is_proven:
                self._prove(boots, f"it spins there, interrupts {'on' if registers.takes_interrupts else 'off'}")
            self._looked_s = self.clock()
        # With interrupts on it is elsewhere now and then; what left the loop for good is not counted on.

    def _prove(self, boots: Boots, words: str) -> None:
        self._is_proven = True
        self.proven += 1
        boots.note("fault", f"{self.name}: {words}")


def _debugger(power: Power) -> bytes | str:
    if power.debugger is None:
        raise EnvironmentFailure("this QEMU has no gdb stub", mend="power the machine on anew", reason="lab-gdb")
    return power.debugger
