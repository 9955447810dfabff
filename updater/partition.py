"""Partitions on block devices and inside disk image files."""

from __future__ import annotations

from pathlib import Path


class FileBlocks:
    """A `Blocks` over a range of a disk image file, a whole disk or a partition's device node."""

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
        """Open `path`; a block device opened for writing must be held by nobody (O_EXCL)."""
        raise NotImplementedError


class WholeDisk:
    """A disk or disk image file for access to its partition table, in units of its sectors."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open `path`."""
        raise NotImplementedError
