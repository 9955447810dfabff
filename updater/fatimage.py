"""A FAT file system inside a disk image file as a `Directory`, edited by mtools."""

from __future__ import annotations

from pathlib import Path


class FatImage:
    """A `Directory` over the FAT file system at `offset_bytes` of an image file; needs no root."""

    def __init__(self, image: Path, *, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Serve the file system; raise EnvironmentFailure when there is none."""
        raise NotImplementedError
