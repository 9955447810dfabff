"""Partitions and disks, on block devices or inside image files, as bounded ranges of bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol

from updater.blocks import paged
from updater.errors import EnvironmentFailure, Refused
from updater.gpt import Gpt, parse

ALIGNMENT = 4096
_BLKSSZGET = 0x1268
_MOST_BYTES_A_CALL = 16 << 20
_LARGE_BYTES = 1 << 16


class _Unaligned(Exception):
    """Memory that direct access cannot use."""


class _Range:
    """An open file or block device, and the range of it that may be touched.

    Block devices are read and written past the page cache (O_DIRECT), so that what is read back is what the medium
    holds. Partitions in files are so, where the file system can do it, in large pieces and in all that `get_into`
    reads; what goes through the cache, `flush` drops from it. A block device is opened for writing with
    O_EXCL: the kernel refuses that while it is mounted or held by the device mapper, so that nothing which backs the
    running system can ever be written here, whatever the caller believes. It refuses a second claim as well, even by
    the same process: two ranges of one device, an image and the tree behind it, share the first one's descriptor.
    """

    _claimed: ClassVar[dict[int, list[int]]] = {}

    def __init__(
        self, path: Path, offset: int, length: int | None, name: str, *, writable: bool, direct: bool | None, hold: bool
    ) -> None:
        self.path = path
        self.name = name or str(path)
        self._base = offset
        self._writable = writable
        self._bypass = -1
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        self._claim: list[int] | None = None
        try:
            status = path.stat()
            is_device = stat.S_ISBLK(status.st_mode)
            self._direct = is_device if direct is None else direct
            if is_device and writable and hold:
                flags |= os.O_EXCL
                self._claim = self._claimed.setdefault(status.st_rdev, [])
            if self._direct:
                flags |= os.O_DIRECT
            self._file = os.dup(self._claim[0]) if self._claim else os.open(path, flags)
            if self._claim is not None:
                self._claim.append(self._file)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Refused(
                    f"{self.name} is in use: it is mounted, or the device mapper holds it",
                    mend="unmount it; if it backs the running system, it must not be written",
                    reason="device-in-use",
                ) from error
            raise EnvironmentFailure(
                f"cannot open {self.name}: {error.strerror}",
                mend="check the path and your rights",
                reason="open-failed",
            ) from error
        try:
            end = os.lseek(self._file, 0, os.SEEK_END)
            self.sector_bytes = _sector_bytes(self._file) if is_device else 512
            self.length_bytes = end - offset if length is None else length
            if offset < 0 or self.length_bytes < 0 or offset + self.length_bytes > end:
                raise EnvironmentFailure(
                    f"{self.name} would end at byte {offset + self.length_bytes} of {path}, which has {end}",
                    mend="the partition table does not fit this disk: restore one of the two",
                    reason="beyond-disk",
                )
        except BaseException:
            self.close()
            raise
        if not is_device and direct is None and hold and offset % ALIGNMENT == 0:
            # Filling the cache costs as much time as hashing what is in it.
            with suppress(OSError):
                self._bypass = os.open(path, flags | os.O_DIRECT)

    @property
    def read_back(self) -> str:
        return "O_DIRECT" if self._direct or self._bypass >= 0 else "fsync and POSIX_FADV_DONTNEED"

    def get(self, offset: int, length: int, alignment: int) -> bytes:
        self._check(offset, length, alignment)
        if self._direct:
            return self._get_direct(offset, length)
        pieces = []
        done = 0
        while done < length:
            try:
                piece = os.pread(self._file, min(length - done, _MOST_BYTES_A_CALL), self._base + offset + done)
            except OSError as error:
                raise self._failure("read", offset + done, error) from error
            if not piece:
                raise self._failure("read", offset + done, None)
            pieces.append(piece)
            done += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _get_direct(self, offset: int, length: int) -> bytes:
        # O_DIRECT wants memory, offset and length in whole sectors.
        view = paged(length)
        self._fill(offset, view)
        return bytes(view)

    def get_into(self, offset: int, room: memoryview, alignment: int) -> None:
        self._check(offset, len(room), alignment)
        self._fill(offset, room)

    def _fill(self, offset: int, room: memoryview) -> None:
        done = 0
        while done < len(room):
            end = min(len(room), done + _MOST_BYTES_A_CALL)
            file = self._file if self._bypass < 0 else self._bypass
            try:
                count = os.preadv(file, [room[done:end]], self._base + offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and file == self._bypass:
                    self._give_bypass_up()
                    continue
                raise self._failure("read", offset + done, error) from error
            if not count:
                raise self._failure("read", offset + done, None)
            done += count

    def put(self, offset: int, data: bytes | memoryview, alignment: int) -> None:
        length = len(data)
        self._check(offset, length, alignment)
        if not self._writable:
            raise ValueError(f"{self.name} is open for reading only")
        view = memoryview(data)
        try:
            self._put_from(offset, view)
        except _Unaligned:
            # Which memory a device can reach only its driver knows: a copy that begins on a page always will do.
            room = paged(min(length, _MOST_BYTES_A_CALL))
            for at in range(0, length, _MOST_BYTES_A_CALL):
                count = min(_MOST_BYTES_A_CALL, length - at)
                room[:count] = view[at : at + count]
                self._put_from(offset + at, room[:count], paged_memory=True)

    def _put_from(self, offset: int, view: memoryview, *, paged_memory: bool = False) -> None:
        file = self._bypass if self._bypass >= 0 and len(view) >= _LARGE_BYTES else self._file
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(file, view[done:], self._base + offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and file == self._bypass:
                    file = self._file
                    continue
                if error.errno == errno.EINVAL and self._direct and not paged_memory:
                    raise _Unaligned from error
                raise self._failure("write", offset + done, error) from error

    def _give_bypass_up(self) -> None:
        """Go through the cache from now on: the file system takes O_DIRECT, and then does not do it."""
        bypass, self._bypass = self._bypass, -1
        if bypass >= 0:
            os.close(bypass)

    def flush(self) -> None:
        try:
            if self._writable:
                os.fsync(self._file)
            if not self._direct:
                # Only clean pages are dropped: the flush comes first.
                os.posix_fadvise(self._file, self._base, self.length_bytes, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._failure("flush", 0, error) from error

    def close(self) -> None:
        self._give_bypass_up()
        if self._file >= 0:
            if self._claim is not None:
                self._claim.remove(self._file)
            os.close(self._file)
            self._file = -1

    def _check(self, offset: int, length: int, alignment: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length_bytes:
            raise ValueError(f"bytes {offset} to {offset + length} are not inside {self.name}")
        if offset % alignment or length % alignment:
            raise ValueError(f"bytes {offset} to {offset + length} of {self.name} are not whole blocks of {alignment}")

    def _failure(self, verb: str, offset: int, error: OSError | None) -> EnvironmentFailure:
        why = (error.strerror or str(error)) if error else "it ends there"
        full = error is not None and error.errno == errno.ENOSPC
        return EnvironmentFailure(
            f"cannot {verb} {self.name} at byte {offset}: {why}",
            mend="free some space for the image file" if full else "see dmesg for errors of that disk; replace it",
            reason="no-space" if full else "io-error",
        )


class FileBlocks:
    """A `Blocks` over a range of a disk image file, of a disk, or over a partition's own device node."""

    def __init__(
        self,
        path: Path,
        *,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        name: str = "",
        writable: bool = False,
        direct: bool | None = None,
    ) -> None:
        """Open `path`; `direct` bypasses the page cache (None: on block devices only).

        Raises Refused (reason `device-in-use`) for a block device that is to be written while it is mounted or held,
        EnvironmentFailure when it cannot be opened or is shorter than the range.
        """
        self._range = _Range(path, offset_bytes, length_bytes, name, writable=writable, direct=direct, hold=True)

    @property
    def name(self) -> str:
        """Return what to call it in messages."""
        return self._range.name

    @property
    def length_bytes(self) -> int:
        """Return the partition's length, rounded down to whole blocks."""
        return self._range.length_bytes // ALIGNMENT * ALIGNMENT

    @property
    def read_back(self) -> str:
        """Return how reads after `flush` come from the medium."""
        return self._range.read_back

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`; safe in several threads at once."""
        return self._range.get(offset, length, ALIGNMENT)

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room`, which begins on a page, with the bytes at `offset`; safe in several threads at once."""
        self._range.get_into(offset, room, ALIGNMENT)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`; durable only after `flush`."""
        self._range.put(offset, data, ALIGNMENT)

    def flush(self) -> None:
        """Make all writes durable, then drop cached pages, so that later reads come from the medium."""
        self._range.flush()

    def close(self) -> None:
        """Release the partition."""
        self._range.close()

    def __enter__(self) -> FileBlocks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class WholeDisk:
    """A disk or disk image file for access to its partition table; offsets and lengths are whole sectors."""

    def __init__(self, path: Path, *, writable: bool = False, direct: bool | None = None) -> None:
        """Open `path`; a disk may be written while its partitions are mounted. Raises EnvironmentFailure."""
        self._range = _Range(path, 0, None, "", writable=writable, direct=direct, hold=False)
        self._is_file = not stat.S_ISBLK(path.stat().st_mode)

    @property
    def name(self) -> str:
        """Return what to call it in messages."""
        return self._range.name

    @property
    def length_bytes(self) -> int:
        """Return the disk's length."""
        return self._range.length_bytes

    @property
    def sector_bytes(self) -> int | None:
        """Return the logical sector's size; None for an image file, whose partition table tells."""
        return None if self._is_file else self._range.sector_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`."""
        return self._range.get(offset, length, self._range.sector_bytes)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`; durable only after `flush`."""
        self._range.put(offset, data, self._range.sector_bytes)

    def flush(self) -> None:
        """Make all writes durable, then drop cached pages."""
        self._range.flush()

    def close(self) -> None:
        """Release the disk."""
        self._range.close()

    def __enter__(self) -> WholeDisk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Sectors(Protocol):
    """A whole disk, read and written by sectors; `WholeDisk` is one."""

    @property
    def name(self) -> str:
        """Return what to call it in messages."""

    @property
    def length_bytes(self) -> int:
        """Return the disk's length."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`; durable only after `flush`."""

    def flush(self) -> None:
        """Make all writes durable."""


def write_table(disk: Sectors, table: Gpt) -> Gpt:
    """Write both copies of a changed table, safe to cut at any sector, and return it as read back.

    The copy that readers do not use goes first: the backup while the primary is valid, so that from the first sector
    of the primary on its stand-in is complete and new; the primary when it is the damaged one. Within a copy the
    array is durable before its header. A table that the disk holds already is not written.

    Raises EnvironmentFailure when the disk is not the one that `table` was parsed from, or reads back otherwise.
    """
    present = parse(disk.read, disk.length_bytes, table.sector_bytes)
    if not table.continues(present):
        raise EnvironmentFailure(
            f"the partition table of {disk.name} was changed by someone else in the meantime",
            mend="run the command again",
            reason="gpt-changed",
        )
    if present.consistent and present.entries == table.entries:
        return present
    # Where the arrays lie, and which copies are valid, is asked of the disk: the value may be older.
    fresh = present.with_entries_of(table)
    copies = [fresh.backup_image(), fresh.primary_image()]
    for copy in copies if fresh.primary_ok else reversed(copies):
        for offset, raw in copy:
            disk.write(offset, raw)
            disk.flush()
    written = parse(disk.read, disk.length_bytes, table.sector_bytes)
    if not written.consistent or written.entries != table.entries:
        raise EnvironmentFailure(
            f"the partition table of {disk.name} does not read back as it was written",
            mend="see dmesg for errors of that disk; replace it",
            reason="io-error",
        )
    return written


def _sector_bytes(file: int) -> int:
    raw = fcntl.ioctl(file, _BLKSSZGET, b"\0" * 4)
    return int(struct.unpack("i", raw)[0])
