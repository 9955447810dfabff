"""Words to systemd: ready, status, watchdog."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

STATUS_CHARS = 400


class Notifier:
    """Tells systemd how the service fares; without systemd it tells nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC (sd_watchdog_enabled(3)) from the environment."""
        self._notifier = None
        if environment.get("NOTIFY_SOCKET"):
            from sdnotify import SystemdNotifier

            self._notifier = SystemdNotifier()
        self.beat_s = _beat_s(environment)
        self._beaten_s: float | None = None
        self._status = ""

    def ready(self) -> None:
        """Say that this boot is accepted."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        # sdnotify writes Latin-1 and drops what it cannot write.
        line = " ".join(text.encode("ascii", "replace").decode("ascii").split())[:STATUS_CHARS]
        if line != self._status:
            self._status = line
            self._say(f"STATUS={line}")

    def beat(self) -> None:
        """Feed the service's own watchdog, no oftener than it needs."""
        if self.beat_s is None:
            return
        now_s = time.monotonic()
        if self._beaten_s is None or now_s - self._beaten_s >= self.beat_s / 2:
            self._beaten_s = now_s
            self._say("WATCHDOG=1")

    def close(self) -> None:
        """Give the socket back."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    def _say(self, message: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(message)


def _beat_s(environment: Mapping[str, str]) -> float | None:
    """Return half of the watchdog's timeout; None when there is none, or it is another process's."""
    microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 2e6
