"""A machine's variable store, changed while the machine is off."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID, stored_bytes
from updater.errors import EnvironmentFailure

FILLER_GUID = uuid.uuid5(uuid.NAMESPACE_DNS, "acl-lab")
# What one variable of a store holds at most, with room to spare for its name.
_MOST_BYTES = 30_000
_FILLER = "AclLabFiller{:03d}"
# A name of one letter and a byte: what is less holds no other variable.
SMALLEST_BYTES = stored_bytes("A", b"\0")


def wipe(store: Path, empty: Path) -> None:
    """Make a store as new; raise EnvironmentFailure when it is."""
    if store.read_bytes() == empty.read_bytes():
        raise EnvironmentFailure(
            f"{store} is as new already", mend="boot the machine once before", reason="fault-not-injected"
        )
    shutil.copyfile(empty, store)


def forget_boot_order(store: Path) -> None:
    """Delete BootOrder, BootNext and every boot option; raise EnvironmentFailure when there is none."""
    variables = FileEfiVariables(store)
    names = [name for name in variables.names(GLOBAL_GUID) if re.fullmatch(r"Boot([0-9A-F]{4}|Order|Next)", name)]
    if not names:
        raise EnvironmentFailure(
            f"{store} has no boot options", mend="boot the machine once before", reason="fault-not-injected"
        )
    for name in names:
        variables.delete(name, GLOBAL_GUID)


def fill(store: Path) -> int:
    """Fill a store with variables of no use, so that no other fits; return the bytes that are left."""
    variables = FileEfiVariables(store)
    number, header = 0, stored_bytes(_FILLER.format(0), b"")
    while (room := (variables.free_bytes() or 0) - header) > 0:
        # Another one follows, and must fit as well.
        length = room if room <= _MOST_BYTES else min(_MOST_BYTES, room - 2 * header)
        variables.write(_FILLER.format(number), bytes(length), FILLER_GUID)
        number += 1
    free = variables.free_bytes() or 0
    if number == 0 or free >= SMALLEST_BYTES:
        raise EnvironmentFailure(
            f"{store} was not filled: {free} bytes are left", mend="see the store", reason="fault-not-injected"
        )
    return free
