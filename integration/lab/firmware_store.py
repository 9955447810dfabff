"""A machine's variable store, changed while the machine is off."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID
from updater.errors import EnvironmentFailure

_LAB_GUID = uuid.uuid5(uuid.NAMESPACE_DNS, "acl-lab")
_NON_VOLATILE = 7
# What one variable of a store holds at most, with room to spare for its name.
_MOST_BYTES = 30_000
_LEFT_BYTES = 400


def wipe(store: Path, empty: Path) -> None:
    """Make a store as new."""
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
    """Fill a store with variables of no use; return the bytes that are left."""
    variables = FileEfiVariables(store)
    number = 0
    while (free := variables.free_bytes() or 0) > _LEFT_BYTES:
        length = min(_MOST_BYTES, free - _LEFT_BYTES)
        if length < 1:
            break
        variables.write(f"AclLabFiller{number:03d}", bytes(length), _LAB_GUID)
        variables = FileEfiVariables(store)
        number += 1
        if number > 100:
            break
    if number == 0:
        raise EnvironmentFailure(f"{store} was full already", mend="see the store", reason="fault-not-injected")
    left: Any = variables.free_bytes()
    return int(left or 0)
