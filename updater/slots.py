"""The two slots that take turns."""

from __future__ import annotations

from enum import Enum


class Slot(Enum):
    """Slot a or slot b; which one runs is read from what is mounted, never from its name."""

    A = "a"
    B = "b"

    @property
    def other(self) -> Slot:
        """Return the other slot."""
        return Slot.B if self is Slot.A else Slot.A

    def __str__(self) -> str:
        return self.value
