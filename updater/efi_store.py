"""The non-volatile EFI variables in a store file, such as the one that OVMF keeps for a virtual machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from updater.efivars import LOADER_GUID, NON_VOLATILE, checked_value, stored_bytes, unwritable
from updater.errors import EnvironmentFailure
from updater.files import fsync_directory


class FileEfiVariables:
    """The non-volatile variables in a store file, such as OVMF's, by virt-firmware (the extra `lab`)."""

    def __init__(self, store: Path) -> None:
        """Open `store`; raise EnvironmentFailure when it is none, or when virt-firmware is not installed."""
        self._path = store
        self._values: dict[tuple[UUID, str], bytes] = {}
        self._load()

    @property
    def present(self) -> bool:
        return True

    @property
    def volatile(self) -> bool:
        return False

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        return self._values.get((guid, name))

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        from virt.firmware.efi.efivar import EfiVar

        variable = EfiVar(name, guid=str(guid), attr=NON_VOLATILE, data=checked_value(name, value))
        self._change(lambda variables: variables.update({name: variable}), name, guid)

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        if (guid, name) in self._values:
            self._change(lambda variables: variables.pop(name), name, guid)

    def writable(self) -> str | None:
        if not os.access(self._path, os.W_OK):
            return f"{self._path} cannot be written"
        return None

    def names(self, guid: UUID = LOADER_GUID) -> list[str]:
        return sorted(name for vendor, name in self._values if vendor == guid)

    def free_bytes(self) -> int | None:
        store, _ = self._load()
        # Writing the file packs the store anew, so that only what is there now counts.
        used = sum(stored_bytes(name, value) for (_, name), value in self._values.items())
        return max(0, int(store.end - store.start) - used)

    def _load(self) -> tuple[Any, Any]:
        store, variables = _open_store(self._path)
        self._values = {
            (UUID(str(variable.guid)), str(variable.name)): bytes(variable.data) for variable in variables.values()
        }
        return store, variables

    def _change(self, change: Callable[[Any], object], name: str, guid: UUID) -> None:
        reason = self.writable()
        if reason:
            raise unwritable(name, reason)
        store, variables = self._load()
        known = variables.get(name)
        twins = len(variables) != _stored_variables(store) or (known is not None and UUID(str(known.guid)) != guid)
        if twins:
            # virt-firmware files variables by name alone, so that writing would lose another vendor's.
            raise unwritable(name, f"{self._path} holds variables of one name from several vendors")
        change(variables)
        with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
            fresh = Path(folder) / self._path.name
            with _store_errors(self._path):
                store.write_varstore(str(fresh), variables)
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            shutil.copymode(self._path, fresh)
            fresh.replace(self._path)
        fsync_directory(self._path.parent)
        self._load()


def _open_store(path: Path) -> tuple[Any, Any]:
    try:
        from virt.firmware.varstore import autodetect
    except ImportError as error:
        raise EnvironmentFailure(
            "a store of EFI variables cannot be read: virt-firmware is not installed",
            mend="install acl-updater[lab], or leave --efi-vars away",
            reason="tool-missing",
        ) from error
    with _store_errors(path):
        store = autodetect.open_varstore(str(path))
        if store is None:
            raise ValueError("its format is not known")
        return store, store.get_varlist()


def _stored_variables(store: Any) -> int:
    """Count the valid variables of an edk2 store by their headers (`AUTHENTICATED_VARIABLE_HEADER`)."""
    content, position, count = store.filedata, store.start, 0
    while position + 60 <= store.end and content[position : position + 2] == b"\xaa\x55":
        count += content[position + 2] == 0x3F
        name_bytes, value_bytes = struct.unpack_from("<LL", content, position + 36)
        position = (position + 60 + name_bytes + value_bytes + 3) & ~3
    return count


@contextlib.contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Turn what virt-firmware does on a bad store (it also exits the process) into an error that names the file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise EnvironmentFailure(
            f"{path} is no store of EFI variables that can be used: {error or type(error).__name__}",
            mend="name the variable store that belongs to the disk image, such as a copy of OVMF_VARS_4M.fd",
            reason="efi-store",
        ) from error
