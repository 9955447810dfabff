"""What shows that a machine was as wrong as the lab had made it: its clock, its second disk, its slow one."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from integration.lab.qmp import QmpTalk
from integration.lab.storage import THROTTLE
from integration.lab.strikes import Boots, Power

_ASK_AGAIN_S = 1.0
# A busy host delays an answer by a second or so; over this long that is little.
_WINDOW_S = 5.0
_MOST, _LEAST = 1.5, 0.5

# Two disks with the same number of sectors, and the second one's partitions.
_TWINS = re.compile(
    r"\[(vd[a-z])\] (\d+ \d+-byte logical blocks).*\[(?!\1)(vd[a-z])\] \2.*\s\3: \3\d+ ",
    re.DOTALL,
)


@dataclass(slots=True)
class ConsoleProof:
    """Believes what a kernel says of its own machine, once a boot."""

    name: str
    pattern: re.Pattern[str]
    words: str
    proven: int = 0
    stands_s: float = 0.0
    _boot: int = 0

    @property
    def is_urgent(self) -> bool:
        """Tell whether it wants to look every few milliseconds: never, a console keeps what it showed."""
        return False

    def look(self, boots: Boots, power: Power) -> None:
        """Read the console of a boot that has not proven it yet."""
        number = boots.running[0]
        if number and number != self._boot and boots.console_shows(self.pattern):
            self._boot = number
            self.proven += 1
            boots.note("fault", self.words)

    def boot_ended(self, power: Power) -> None:
        """Do nothing."""


def clock_proof(clock: str) -> ConsoleProof:
    """Return the proof of a real-time clock that says `clock` at power-on: the kernel's word for it, within a day."""
    first = datetime.fromisoformat(clock)
    days = "|".join(re.escape((first + timedelta(days=n)).date().isoformat()) for n in (0, 1))
    pattern = re.compile(rf"setting system clock to (?:{days})T")
    return ConsoleProof(f"the clock of {clock}", pattern, f"the kernel took its time from a clock of {clock}")


def twin_proof() -> ConsoleProof:
    """Return the proof of a disk's twin: the kernel met two disks of one size, both with partitions."""
    return ConsoleProof("the twin disk", _TWINS, "the kernel met two disks of the same size, both with partitions")


@dataclass(slots=True)
class SlowDiskProof:
    """Measures a disk that can do `rate` bytes a second: QEMU says so, and the machine came up against it.

    It was asked for more than half of that for some seconds on end, by the device's own counters, and never did more.
    """

    rate: int
    clock: Callable[[], float] = time.monotonic
    name: str = "the slow disk"
    stands_s: float = 0.0
    fastest: float = 0.0
    limit: int = 0
    _talk: QmpTalk | None = None
    _asked: tuple[int, int] | None = None
    _asked_s: float = float("-inf")
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def is_urgent(self) -> bool:
        """Tell whether it wants to look every few milliseconds: never, counters wait."""
        return False

    @property
    def proven(self) -> int:
        """Return 1 when the disk was seen at its limit and not beyond."""
        return int(self.limit == self.rate and _LEAST * self.rate <= self.fastest <= _MOST * self.rate)

    def look(self, boots: Boots, power: Power) -> None:
        """Ask for the counters now and then; keep how fast they grew."""
        if power.monitor is not self._talk:
            self._talk, self._asked = power.monitor, None
            self._seen.clear()
        answers = power.monitor.answers
        if self._asked is not None and all(number in answers for number in self._asked):
            was_proven = self.proven
            limit, counters = (answers.pop(number) for number in self._asked)
            self._asked = None
            self.limit = limit.get("return") or self.limit
            self._count(counters)
            if self.proven and not was_proven:
                boots.note("fault", f"the disk did {self.fastest / 1e6:.1f} MB/s, of {self.rate / 1e6:.1f} allowed")
        if self._asked is None and self.clock() - self._asked_s >= _ASK_AGAIN_S:
            limit_at = {"path": f"/objects/{THROTTLE}", "property": "x-bps-total"}
            self._asked = (power.ask("qom-get", **limit_at), power.ask("query-blockstats"))
            self._asked_s = self.clock()

    def boot_ended(self, power: Power) -> None:
        """Begin anew: the counters go on over a reset, and the time between two boots is nobody's."""
        self._seen.clear()

    def _count(self, answer: dict[str, Any]) -> None:
        stats = next((one["stats"] for one in answer.get("return", ()) if one.get("node-name") == "disk"), None)
        if stats is None:
            return
        now = self.clock()
        self._seen.append((now, int(stats["rd_bytes"]) + int(stats["wr_bytes"])))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        if now - then >= _WINDOW_S:
            self.fastest = max(self.fastest, (self._seen[-1][1] - before) / (now - then))
