"""EFI variables in memory, with the behaviour of a store that fills up, is locked, or loses power."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from updater.efivars import LOADER_GUID, checked_value, stored_bytes, unwritable
from updater.errors import EnvironmentFailure


class SimulatedEfiVariables:
    """Variables in memory, with the behaviour of the real ones, for models and rehearsals."""

    def __init__(
        self,
        values: dict[str, bytes] | None = None,
        *,
        volatile: bool = True,
        locked: str | None = None,
        room_bytes: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Take loader variables by name; `locked` is the reason why nothing can be changed.

        `room_bytes` is how much the store takes; a change beyond that fails and leaves the old value. `tell` hears of
        each change once it is made: firmware changes a variable as a whole or not at all.
        """
        self.values: dict[tuple[UUID, str], bytes] = {
            (LOADER_GUID, name): value for name, value in (values or {}).items()
        }
        self.room_bytes = room_bytes
        self._volatile = volatile
        self.locked = locked
        self._tell = tell or (lambda _: None)
        self._changes_left: int | None = None
        self.unreadable: set[str] = set()
        self.lies = False

    def fail_from(self, change: int | None) -> None:
        """Let the firmware refuse every change from the given one on (1 is the next); None: it takes them again."""
        self._changes_left = None if change is None else change - 1

    @property
    def present(self) -> bool:
        return True

    @property
    def volatile(self) -> bool:
        return self._volatile

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        if name in self.unreadable:
            raise EnvironmentFailure(f"cannot read the EFI variable {name}: Input/output error", reason="efi-variables")
        return self.values.get((guid, name))

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        self._refuse_locked(name)
        if self.room_bytes is not None:
            # The firmware appends the new value before it lets go of the old one.
            needed = stored_bytes(name, checked_value(name, value))
            if needed > (self.free_bytes() or 0):
                raise unwritable(name, f"the store is full ({needed} bytes needed, {self.free_bytes()} free)")
        if self.lies:
            # Firmware that reports success and changes nothing.
            return
        self.values[guid, name] = checked_value(name, value)
        self._tell(f"set {name}")

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        if (guid, name) in self.values:
            self._refuse_locked(name)
            del self.values[guid, name]
            self._tell(f"delete {name}")

    def writable(self) -> str | None:
        return self.locked

    def names(self, guid: UUID = LOADER_GUID) -> list[str]:
        return sorted(name for vendor, name in self.values if vendor == guid)

    def free_bytes(self) -> int | None:
        if self.room_bytes is None:
            return None
        return max(0, self.room_bytes - sum(stored_bytes(name, value) for (_, name), value in self.values.items()))

    def _refuse_locked(self, name: str) -> None:
        if self._changes_left == 0:
            raise unwritable(name, "Input/output error")
        if self._changes_left is not None:
            self._changes_left -= 1
        if self.locked:
            raise unwritable(name, self.locked)
