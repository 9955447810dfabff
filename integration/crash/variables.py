"""The EFI variables in a store that a machine lost its power over, as edk2 will find them at its next start.

Source: edk2's MdeModulePkg/Include/Guid/VariableFormat.h and the state transitions of its variable driver: a value is
replaced by marking the old one as about to go, writing the new one, marking it as valid, and the old one as gone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

_VOLUME_SIGNATURE_AT, _VOLUME_HEADER_LENGTH_AT = 40, 48
_STORE_HEADER_BYTES, _HEADER_BYTES = 28, 60
_AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_START_ID, _ERASED = 0x55AA, 0xFF
_ADDED, _LEAVING = 0x3F, 0x3E
_STATE_AT = 2

Name = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Variables:
    """The values that count, and the state of each record by its place; `whole` is False for no store at all."""

    whole: bool
    values: Mapping[Name, bytes]
    states: tuple[tuple[int, int], ...]


def read_variables(store: bytes) -> Variables:
    """Return what edk2 finds in a store (the raw bytes of its pflash)."""
    if store[_VOLUME_SIGNATURE_AT : _VOLUME_SIGNATURE_AT + 4] != b"_FVH":
        return Variables(False, {}, ())
    start = struct.unpack_from("<H", store, _VOLUME_HEADER_LENGTH_AT)[0]
    kind = UUID(bytes_le=store[start : start + 16])
    length, form, health = struct.unpack_from("<IBB", store, start + 16)
    if kind != _AUTHENTICATED or (form, health) != (_FORMATTED, _HEALTHY):
        return Variables(False, {}, ())
    added: dict[Name, bytes] = {}
    leaving: dict[Name, bytes] = {}
    states: list[tuple[int, int]] = []
    at, end = start + _STORE_HEADER_BYTES, start + length
    while at + _HEADER_BYTES <= end and struct.unpack_from("<H", store, at)[0] == _START_ID:
        state = store[at + _STATE_AT]
        states.append((at, state))
        name_bytes, value_bytes = struct.unpack_from("<II", store, at + 36)
        # A header that a cut left half-written: its lengths mean nothing, and edk2 stops here as well.
        if state == _ERASED or at + _HEADER_BYTES + name_bytes + value_bytes > end:
            break
        body = at + _HEADER_BYTES
        name = store[body : body + name_bytes].decode("utf-16-le", "replace").rstrip("\0")
        key = (UUID(bytes_le=store[at + 44 : at + 60]), name)
        value = store[body + name_bytes : body + name_bytes + value_bytes]
        if state == _ADDED:
            added[key] = value
        elif state == _LEAVING:
            leaving[key] = value
        at = (body + name_bytes + value_bytes + 3) & ~3
    return Variables(True, {**leaving, **added}, tuple(states))
