"""What a variable store shows of a fault that it was given, once a machine has booted with it."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from integration.lab.firmware_store import FILLER_GUID, SMALLEST_BYTES
from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID

# Where EDK2's firmware counts its starts: the high half of its monotonic counter, MdeModulePkg/Universal/
# MonotonicCounterRuntimeDxe, which grows by one in each.
_COUNTER, _COUNTER_GUID = "MTC", uuid.UUID("eb704011-1402-11d3-8e77-00a0c969723b")
# Where it notes that a variable found no room (VarErrorFlag.h); all bits are set as long as none did.
_NO_ROOM, _NO_ROOM_GUID = "VarErrorFlag", uuid.UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa")


class StoreFault(Enum):
    """What can be wrong with a variable store."""

    WIPED = "its variables are gone"
    NO_BOOT_ORDER = "its boot options are gone"
    FULL = "it is full"
    READ_ONLY = "it keeps nothing"


@dataclass(frozen=True, slots=True)
class StoreProof:
    """A store as it was handed to the firmware after `boots` boots, with a fault in it."""

    fault: StoreFault
    store: Path
    boots: int
    starts: int
    digest: str
    fillers: int

    def missing(self, boots: int) -> str | None:
        """Return what a store lacks, `boots` boots after the machine's first one, of a proof; None when it is proven.

        Whatever else a start of the firmware writes, it counts itself: a store in which it went on counting is the
        one that it used, and one that stayed as it was is one that it could not write.
        """
        since = boots - self.boots
        if since < 1:
            return "no boot met it"
        if self.fault is StoreFault.READ_ONLY:
            return None if _digest(self.store) == self.digest else "the firmware has written to it"
        variables = FileEfiVariables(self.store)
        counted = starts(variables) - self.starts
        if not 1 <= counted <= since:
            return f"the firmware counted {counted} starts in it, and there were {since}"
        if self.fault is StoreFault.FULL:
            return self._not_full(variables)
        names = [name for name in variables.names(GLOBAL_GUID) if re.fullmatch(r"Boot([0-9A-F]{4}|Order)", name)]
        return None if "BootOrder" in names and len(names) > 1 else "the firmware made no boot option anew"

    def _not_full(self, variables: FileEfiVariables) -> str | None:
        kept, free = len(variables.names(FILLER_GUID)), variables.free_bytes() or 0
        if kept != self.fillers:
            return f"{kept} of {self.fillers} fillers are in it"
        if variables.read(_NO_ROOM, _NO_ROOM_GUID) not in (None, b"\xff"):
            # What did not fit anew may be gone, and have left its room.
            return None
        return None if free < SMALLEST_BYTES else f"{free} bytes are free in it"


def hand_over(fault: StoreFault, store: Path, boots: int) -> StoreProof:
    """Return the store with a fault as the firmware gets it, after `boots` boots of this machine."""
    variables = FileEfiVariables(store)
    fillers = len(variables.names(FILLER_GUID))
    return StoreProof(fault, store, boots, starts(variables), _digest(store), fillers)


def starts(variables: FileEfiVariables) -> int:
    """Return how many starts the firmware has counted in a store."""
    return int.from_bytes(variables.read(_COUNTER, _COUNTER_GUID) or b"", "little")


def _digest(store: Path) -> str:
    return hashlib.sha256(store.read_bytes()).hexdigest()
