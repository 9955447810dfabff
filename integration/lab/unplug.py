"""A disk that is gone while the machine runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from integration.lab.storage import dead_node, disk_on
from integration.lab.strikes import Boots, Moment, Power
from updater.errors import EnvironmentFailure


@dataclass(slots=True)
class Unplug:
    """Takes the disk away once a boot; a reset finds it plugged in again, on the node `below`.

    Whatever is read or written fails from then on, as without a cable. It is proven by a request that failed.
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
    _taken: list[int] = field(default_factory=list)
    _put_back: list[int] = field(default_factory=list)
    _is_out: bool = False

    @property
    def is_urgent(self) -> bool:
        """Tell whether it wants to look every few milliseconds: never, a request fails when it comes."""
        return False

    def look(self, boots: Boots, power: Power) -> None:
        """Take the disk away if the moment has come; look whether a request has met that."""
        _require(self._put_back, power)
        number = boots.running[0] if self.moment.has_come(boots) else 0
        if number != self._boot:
            self._boot, self._is_out, self._is_proven = number, False, False
            if number:
                self._errors = boots.disk_errors
                self._taken = [power.ask("blockdev-add", **node) for node in dead_node(self.length_bytes)]
                self._taken.append(power.ask("blockdev-reopen", options=[disk_on("dead")]))
        if self._taken and _require(self._taken, power):
            self._is_out = True
            boots.note("fault", "the disk is unplugged: whatever is read or written fails")
        if self._is_out and not self._is_proven and boots.disk_errors > self._errors:
            self._is_proven = True
            self.proven += 1

    def boot_ended(self, power: Power) -> None:
        """Plug the disk in again, on the paused machine."""
        if self._boot:
            self._put_back = [power.ask("blockdev-reopen", options=[disk_on(self.below)])]
            for node in reversed(dead_node(self.length_bytes)):
                self._put_back.append(power.ask("blockdev-del", **{"node-name": node["node-name"]}))
            self._boot = 0


def _require(asked: list[int], power: Power) -> bool:
    """Tell whether QEMU did all that was asked, and forget it then; raise EnvironmentFailure for what it refused."""
    if not all(number in power.monitor.answers for number in asked):
        return False
    for number in asked:
        answer = power.monitor.answers.pop(number)
        if "error" in answer:
            raise EnvironmentFailure(
                f"QEMU does not move the disk: {answer['error'].get('desc')}", mend="report this", reason="lab-qmp"
            )
    asked.clear()
    return True
