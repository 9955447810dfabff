"""Time since the boot, and pauses that a signal ends."""

from __future__ import annotations

import queue
import time
from typing import Protocol


class Clock(Protocol):
    """Time and pauses, so that a test can have its own."""

    @property
    def stopped(self) -> bool:
        """Tell whether the service was asked to stop."""

    def now(self) -> float:
        """Return seconds since the boot, suspended time included."""

    def pause(self, seconds: float) -> None:
        """Wait; return at once when asked to stop."""


class BootClock:
    """The kernel's CLOCK_BOOTTIME; `stop` may be called by a signal handler."""

    def __init__(self) -> None:
        self._stopped = False
        # Unlike threading.Event, a SimpleQueue may be written to by a signal handler that interrupts its reader.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def stopped(self) -> bool:
        """Tell whether `stop` was called."""
        return self._stopped

    def now(self) -> float:
        """Return seconds since the boot, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def pause(self, seconds: float) -> None:
        """Wait; return at once when asked to stop."""
        if self._stopped:
            return
        try:
            self._wake.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return

    def stop(self) -> None:
        """End the pause under way, and all later ones."""
        self._stopped = True
        self._wake.put(None)
