"""EFI variables of the running machine, or none where there are none.

Sources: the kernel's Documentation/filesystems/efivarfs.rst (attributes prefix, immutable flag); systemd's Boot Loader
Interface (names, GUID, UTF-16 strings, feature bits of LoaderFeatures).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from enum import IntFlag
from pathlib import Path
from typing import Protocol
from uuid import UUID

from updater.errors import EnvironmentFailure

LOADER_GUID = UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
GLOBAL_GUID = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
# Non-volatile, seen by boot services, seen at run time.
NON_VOLATILE = 0x7
# Firmware takes a kilobyte or two for sure; the loader's largest variable is a list of names.
MAX_BYTES = 64 * 1024

EFIVARFS = Path("/sys/firmware/efi/efivars")
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

    def names(self, guid: UUID = LOADER_GUID) -> list[str]:
        """Return the sorted names of a vendor's variables."""

    def free_bytes(self) -> int | None:
        """Return how much more the store takes, or None where the firmware does not tell."""


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


class Forgiving:
    """Variables for reading only, where one that cannot be read counts as absent and is kept in `failures`."""

    def __init__(self, variables: EfiVariables) -> None:
        """Read from `variables`."""
        self._variables = variables
        self._failed: dict[str, str] = {}

    @property
    def failures(self) -> tuple[str, ...]:
        """Return one sentence for each variable that could not be read."""
        return tuple(self._failed.values())

    @property
    def present(self) -> bool:
        return self._variables.present

    @property
    def volatile(self) -> bool:
        return self._variables.volatile

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        try:
            return self._variables.read(name, guid)
        except EnvironmentFailure as error:
            self._failed[name] = str(error)
            return None

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        raise unwritable(name, "it was opened for reading")

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        raise unwritable(name, "it was opened for reading")

    def writable(self) -> str | None:
        return "opened for reading"

    def names(self, guid: UUID = LOADER_GUID) -> list[str]:
        try:
            return self._variables.names(guid)
        except EnvironmentFailure as error:
            self._failed[""] = str(error)
            return []

    def free_bytes(self) -> int | None:
        try:
            return self._variables.free_bytes()
        except EnvironmentFailure as error:
            self._failed[""] = str(error)
            return None


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

    def names(self, guid: UUID = LOADER_GUID) -> list[str]:
        return []

    def free_bytes(self) -> int | None:
        return None


class LiveEfiVariables:
    """The variables of the running machine, through efivarfs."""

    def __init__(self, base: Path = EFIVARFS) -> None:
        """Serve the efivarfs mounted at `base`; it need not be there."""
        self._base = base

    @property
    def present(self) -> bool:
        # Mounted and empty is what a kernel shows whose firmware gave it no run-time services.
        with contextlib.suppress(OSError):
            return any(self._base.iterdir())
        return False

    @property
    def volatile(self) -> bool:
        return self.present

    def read(self, name: str, guid: UUID = LOADER_GUID) -> bytes | None:
        at = self._at(name, guid)
        try:
            raw = at.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot read the EFI variable {name}: {error.strerror}",
                mend="see dmesg for errors of the firmware",
                reason="efi-variables-unreadable",
            ) from error
        # Four bytes of attributes come first. A variable being written by another process may read empty.
        return raw[4:] if len(raw) > 4 else None

    def write(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        content = NON_VOLATILE.to_bytes(4, "little") + checked_value(name, value)
        at = self._at(name, guid)
        try:
            with _mutable(at):
                # One write call is one SetVariable: attributes and value cannot be parted.
                handle = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    written = os.write(handle, content)
                finally:
                    os.close(handle)
        except OSError as error:
            raise unwritable(name, error.strerror or str(error)) from error
        if written != len(content):
            raise unwritable(name, f"the firmware took {written} of {len(content)} bytes")

    def delete(self, name: str, guid: UUID = LOADER_GUID) -> None:
        at = self._at(name, guid)
        try:
            with _mutable(at):
                at.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritable(name, error.strerror or str(error)) from error

    def writable(self) -> str | None:
        if not self.present:
            return f"there are no EFI variables at {self._base}: this machine did not boot by UEFI"
        if os.statvfs(self._base).f_flag & os.ST_RDONLY:
            return f"{self._base} is mounted read-only"
        if not os.access(self._base, os.W_OK):
            return f"this user may not write to {self._base}"
        return None

    def names(self, guid: UUID = LOADER_GUID) -> list[str]:
        suffix = f"-{guid}"
        try:
            found = [path.name for path in self._base.iterdir()]
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot list the EFI variables at {self._base}: {error.strerror}",
                mend="mount efivarfs there",
                reason="efi-variables-unreadable",
            ) from error
        return sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix))

    def free_bytes(self) -> int | None:
        # Kernels since 6.5 ask QueryVariableInfo; older ones, and firmware without it, tell a size of zero.
        with contextlib.suppress(OSError):
            told = os.statvfs(self._base)
            if told.f_bsize == 1 and told.f_blocks:
                return told.f_bavail
        return None

    def _at(self, name: str, guid: UUID) -> Path:
        return self._base / f"{name}-{guid}"


@contextlib.contextmanager
def _mutable(at: Path) -> Iterator[None]:
    """Take the immutable flag away, which efivarfs sets against a careless `rm -rf`, and put it back."""
    flags = _flags(at)
    if flags is None or not flags & _FS_IMMUTABLE:
        yield
        return
    _set_flags(at, flags & ~_FS_IMMUTABLE)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            _set_flags(at, flags)


def _flags(at: Path) -> int | None:
    import fcntl

    try:
        handle = os.open(at, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        raw = fcntl.ioctl(handle, _FS_IOC_GETFLAGS, bytes(8))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    finally:
        os.close(handle)
    return int.from_bytes(raw[:4], "little")


def _set_flags(at: Path, flags: int) -> None:
    import fcntl

    handle = os.open(at, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))
    finally:
        os.close(handle)


def checked_value(name: str, value: bytes) -> bytes:
    """Return `value` when firmware can hold it; raise ValueError otherwise."""
    if not value or len(value) > MAX_BYTES:
        raise ValueError(f"{name}: {len(value)} bytes are no value of an EFI variable")
    return value


def stored_bytes(name: str, value: bytes) -> int:
    """Return what a variable takes in a store like EDK2's: a header of 60 bytes, name and value, aligned to 4."""
    return (60 + 2 * (len(name) + 1) + len(value) + 3) & ~3


def unwritable(name: str, why: str) -> EnvironmentFailure:
    """Return the error for a variable that cannot be changed."""
    return EnvironmentFailure(
        f"cannot change the EFI variable {name}: {why}",
        mend="mount efivarfs for writing, or use a layout that needs no EFI variables",
        reason="efi-variables-read-only",
    )
