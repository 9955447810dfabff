"""EFI variables of a running machine, of a variable store in a file, or of neither.

Sources: the kernel's Documentation/filesystems/efivarfs.rst (attributes prefix, immutable flag); systemd's Boot Loader
Interface (names, GUID, UTF-16 strings, feature bits of LoaderFeatures).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Protocol
from uuid import UUID

from updater.errors import EnvironmentFailure

LOADER_GUID = UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
GLOBAL_GUID = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
# Non-volatile, seen by boot services, seen at run time.
NON_VOLATILE = 0x7
# Firmware takes a kilobyte or two for sure; the loader's largest variable is a list of names.
MAX_BYTES = 64 * 1024

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IMMUTABLE = 0x10


class LoaderFeature(IntFlag):
    """What a loader says that it can do, in the variable LoaderFeatures."""

    ENTRY_DEFAULT = 1 << 2
    ENTRY_ONESHOT = 1 << 3
    BOOT_COUNTING = 1 << 4
    SORT_KEY = 1 << 8
    TYPE1_UKI = 1 << 16
    ENTRY_PREFERRED = 1 << 19


class EfiVariables(Protocol):
    """Read and change EFI variables; every call may raise EnvironmentFailure.

    `volatile` tells whether variables that a loader sets for one boot are to be seen: only on a running machine.
    `present` tells whether there are variables at all.
    """

    @property
    def present(self) -> bool:
        """Tell whether there are variables to be had."""

    @property
    def volatile(self) -> bool:
        """Tell whether variables of the running boot are among them."""

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        """Return a variable's value without its attributes, or None when there is none."""

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        """Set a non-volatile variable; an empty value is not a value, see `delete`."""

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        """Remove a variable; an absent one is fine."""

    def writable(self) -> str | None:
        """Return None when variables can be changed, else the reason why not."""


def decode_text(value: bytes | None) -> str | None:
    """Return a UTF-16 string up to its first NUL; None for no value or an empty string."""
    if value is None:
        return None
    text = value[: len(value) & ~1].decode("utf-16-le", "replace").split("\0", 1)[0]
    return text or None


def encode_text(text: str) -> bytes:
    """Return `text` as the NUL-terminated UTF-16 that loaders read."""
    return (text + "\0").encode("utf-16-le")


def read_text(variables: EfiVariables, name: str, guid: UUID = LOADER_GUID) -> str | None:
    """Return a string variable such as LoaderEntrySelected, or None when it is absent or empty."""
    return decode_text(variables.read(name, guid))


def read_features(variables: EfiVariables) -> LoaderFeature | None:
    """Return the loader's features, or None when it did not name them (8 bytes, little endian)."""
    raw = variables.read("LoaderFeatures")
    return LoaderFeature(int.from_bytes(raw[:8], "little")) if raw and len(raw) >= 8 else None


def boot_count_file(variables: EfiVariables) -> str | None:
    """Return the file that the loader counted for this boot, such as `loader/entries/b+2-1.conf`, or None."""
    path = read_text(variables, "LoaderBootCountPath")
    return path.replace("\\", "/").strip("/") if path else None


class NoEfiVariables:
    """No variables: a machine without UEFI, or a disk image whose store nobody gave."""

    def __init__(self, why: str = "there are no EFI variables here") -> None:
        """Take the reason that `writable` tells."""
        self._why = why

    @property
    def present(self) -> bool:
        return False

    @property
    def volatile(self) -> bool:
        return False

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        return None

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        raise EnvironmentFailure(
            f"cannot set the EFI variable {name}: {self._why}",
            mend="boot by UEFI, or name a variable store with --efi-vars",
            reason="no-efi-variables",
        )

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        return None

    def writable(self) -> str | None:
        return self._why


class SimulatedEfiVariables:
    """Variables in memory, with the behaviour of the real ones, for models and rehearsals."""

    def __init__(
        self, values: dict[str, bytes] | None = None, *, volatile: bool = True, locked: str | None = None
    ) -> None:
        """Take loader variables by name; `locked` is the reason why nothing can be changed."""
        self.values: dict[tuple[UUID, str], bytes] = {
            (LOADER_GUID, name): value for name, value in (values or {}).items()
        }
        self._volatile = volatile
        self._locked = locked

    @property
    def present(self) -> bool:
        return True

    @property
    def volatile(self) -> bool:
        return self._volatile

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        return self.values.get((guid, name))

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        self._refuse_locked(name)
        self.values[guid, name] = _checked(name, value)

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        if (guid, name) in self.values:
            self._refuse_locked(name)
            del self.values[guid, name]

    def writable(self) -> str | None:
        return self._locked

    def _refuse_locked(self, name: str) -> None:
        if self._locked:
            raise _unwritable(name, self._locked)


def _checked(name: str, value: bytes) -> bytes:
    if not value or len(value) > MAX_BYTES:
        raise ValueError(f"{name}: {len(value)} bytes are no value of an EFI variable")
    return value


def _unwritable(name: str, why: str) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"cannot change the EFI variable {name}: {why}",
        mend="mount efivarfs for writing, or use a layout that needs no EFI variables",
        reason="efi-variables-read-only",
    )
