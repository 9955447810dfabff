"""An ext4 file system inside a disk image file as a `Directory`, edited by debugfs."""

from __future__ import annotations

from pathlib import Path


class Ext4Image:
    """A `Directory` over the ext4 at `offset_bytes` of an image file, below the folder `base`; needs no root."""

    def __init__(
        self,
        image: Path,
        *,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        base: str = "",
        writable: bool = False,
    ) -> None:
        """Serve the file system; `base` is a folder in it, such as `lib/acl-updater`."""
        raise NotImplementedError
