"""A disk that is gone while the machine runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from integration.lab.storage import dead_node, disk_on
from integration.lab.strikes import Boots, Moment, Power
from updater.errors import EnvironmentFailure


@dataclass(slots=True)
class Unplug:
    """Takes the disk away once a boot; a reset finds it plugged in again, on the node `below`.

    Every request fails from then on, as those to a device without a cable do. It is proven by a request that failed.
    """

    moment: Moment
    length_bytes: int
    below: str
    name: str = "disk unplugged"
    stands_s: float = 0.0
    proven: int = 0
    _boot: int = 0
    _errors: int = 0
    _is_proven: bool = False
    _asked: list[int] = field(default_factory=list)
    _is_out: bool = False

    @property
    def is_urgent(self) -> bool:
        """Tell whether it wants to look every few milliseconds: never, a request fails when it comes."""
        return False

    def look(self, boots: Boots, power: Power) -> None:
        """Take the disk away if the moment has come; look whether a request has met that."""
        number = boots.running[0] if self.moment.has_come(boots) else 0
        if number != self._boot:
            self._boot, self._is_out, self._is_proven = number, False, False
            if number:
                self._errors = boots.disk_errors
                self._asked = [*(power.ask("blockdev-add", **node) for node in dead_node(self.length_bytes))]
                self._asked.append(power.ask("blockdev-reopen", options=[disk_on("dead")]))
        if self._asked and all(asked in power.monitor.answers for asked in self._asked):
            for asked in self._asked:
                _refuse(power.monitor.answers[asked])
            self._asked = []
            self._is_out = True
            boots.note("fault", "the disk is unplugged: every request fails")
        if self._is_out and not self._is_proven and boots.disk_errors > self._errors:
            self._is_proven = True
            self.proven += 1

    def boot_ended(self, power: Power) -> None:
        """Plug the disk in again, on the paused machine."""
        if self._boot:
            power.ask("blockdev-reopen", options=[disk_on(self.below)])
            for node in reversed(dead_node(self.length_bytes)):
                power.ask("blockdev-del", **{"node-name": node["node-name"]})
            self._boot = 0


def _refuse(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise EnvironmentFailure(
            f"QEMU does not take the disk away: {answer['error'].get('desc')}", mend="report this", reason="lab-qmp"
        )
