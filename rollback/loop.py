"""What the health service's loops are made of: looks and pauses that feed the watchdog and end when asked to."""

from __future__ import annotations

import logging

from rollback.clock import Clock
from rollback.notify import Notifier
from rollback.results import Result
from rollback.rounds import Rounds
from rollback.verdict import Course, Decision, Limits, Look, Verdict, judge, told

log = logging.getLogger(__name__)

_PAUSE_S = 30.0


class Stopped(Exception):
    """The service was asked to stop: an operator's reboot, which is no verdict."""


class Loop:
    """One thread's progress: everything here returns within bounds, or raises Stopped.

    systemd's watchdog is fed from here only, so that it fires when the loop stands still.
    """

    def __init__(self, limits: Limits, clock: Clock, notifier: Notifier) -> None:
        """Pace a loop by `clock`, and tell `notifier` about it."""
        self.limits = limits
        self._clock = clock
        self._notifier = notifier

    def now(self) -> float:
        """Return seconds since the boot."""
        return self._clock.now()

    def look(self, rounds: Rounds, *, fresh: bool = False) -> Look:
        """Run one round of checks."""
        look = rounds.look(self._clock.now, self.going_on, fresh=fresh)
        if look is None:
            raise Stopped
        return look

    def pause(self, seconds: float) -> None:
        """Wait."""
        end_s = self._clock.now() + seconds
        while True:
            if not self.going_on():
                raise Stopped
            left_s = end_s - self._clock.now()
            if left_s <= 0:
                return
            self._clock.pause(min(left_s, self._notifier.beat_s or _PAUSE_S))

    def going_on(self) -> bool:
        """Feed the watchdog; tell whether nobody has asked to stop."""
        self._notifier.beat()
        return not self._clock.stopped

    def tell(self, text: str) -> None:
        """Show a line in `systemctl status`."""
        self._notifier.status(text)

    def ready(self) -> None:
        """Say that this boot is accepted."""
        self._notifier.ready()


class Watch:
    """The course of one boot until something is decided."""

    def __init__(self, loop: Loop, rounds: Rounds, baseline: frozenset[str], name: str) -> None:
        """Watch a boot called `name`; what is in `baseline` is not blamed on it."""
        self._loop = loop
        self._rounds = rounds
        self._baseline = baseline
        self._name = name
        self._course = Course()
        self._failed_at: dict[str, float] = {}
        self._said = ""
        self.results: tuple[Result, ...] = ()

    def until_decided(self) -> Verdict:
        """Look until the verdict is no longer to wait."""
        while True:
            verdict = self._look()
            if verdict.decision is Decision.COMMIT and self._rounds.spares:
                # Nothing is committed on what a spared check said a while ago.
                verdict = self._look(fresh=True)
            self._say(verdict)
            if verdict.decision is not Decision.WAIT:
                return verdict
            self._loop.pause(min(self._loop.limits.interval_s, max(0.0, verdict.deadline_s - self._loop.now())))

    def failed_lately(self) -> frozenset[str]:
        """Return what failed, required or not, within the last period that checks must hold for."""
        since_s = self._course.latest_s - self._loop.limits.hold_s
        return frozenset(name for name, at_s in self._failed_at.items() if at_s >= since_s)

    def _look(self, *, fresh: bool = False) -> Verdict:
        look = self._loop.look(self._rounds, fresh=fresh)
        self.results = look.results
        self._failed_at |= {name: look.ended_s for result in look.results for name in result.failures}
        self._course = self._course.after(look, self._loop.limits, self._baseline)
        return judge(self._loop.limits, self._course, self._loop.now())

    def _say(self, verdict: Verdict) -> None:
        self._loop.tell(f"{self._name}: {verdict.sentence}")
        said = told(self._course.failing) if self._course.failing else "every required check passes"
        if said != self._said:
            self._said = said
            log.info("%s: %s", self._name, said)
