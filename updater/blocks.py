"""Partitions as bounded ranges of bytes that are proven, written and read back."""

from __future__ import annotations

import mmap
from typing import Protocol


class Blocks(Protocol):
    """One partition, on a device or inside a disk image file.

    Offsets and lengths are bytes, multiples of 4096. No access leaves the partition: ValueError. I/O errors raise
    EnvironmentFailure with reason `io-error` that names the partition and the offset.
    """

    @property
    def name(self) -> str:
        """Return what to call it in messages, such as `/dev/sda4 (slot b, root)`."""

    @property
    def length_bytes(self) -> int:
        """Return the partition's length."""

    @property
    def read_back(self) -> str:
        """Return how reads after `flush` come from the medium: `O_DIRECT`, or `fsync and POSIX_FADV_DONTNEED`."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`; may be called from other threads while one writes elsewhere."""

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room`, which begins on a page (see `paged`); otherwise like `read`."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`; durable only after `flush`."""

    def flush(self) -> None:
        """Make all writes durable, then drop cached pages, so that later reads come from the medium."""

    def close(self) -> None:
        """Release the partition."""


def paged(length: int) -> memoryview:
    """Return memory that begins on a page, as direct access wants it; to be used again and again.

    Fresh memory costs the kernel more time to hand out, page by page, than hashing what is read into it.
    """
    return memoryview(mmap.mmap(-1, max(1, length)))[:length]
