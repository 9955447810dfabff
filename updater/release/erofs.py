"""Root images: a root tree as an erofs file system, the same bytes for the same tree."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from updater.manifest import BLOCK_BYTES
from updater.run import find_tool, run


def make_root_image(tree: Path, image: Path, *, uuid: UUID, mtime_s: int) -> int:
    """Write `tree` (a folder or a tar) as uncompressed erofs, padded to whole blocks; return its length in bytes.

    Uncompressed, because then an unchanged file keeps its blocks and the next release's delta stays small.
    """
    image.unlink(missing_ok=True)
    source = ["--tar=f", image, tree] if tree.is_file() else [image, tree]
    run(
        [
            find_tool("mkfs.erofs", package="erofs-utils"),
            "--quiet",
            f"-b{BLOCK_BYTES}",
            f"-T{mtime_s}",
            f"-U{uuid}",
            *source,
        ],
        env={"SOURCE_DATE_EPOCH": str(mtime_s)},
        timeout_s=1800,
    )
    return pad_to_blocks(image)


def pad_to_blocks(image: Path) -> int:
    """Append zeros up to a whole number of 4096-byte blocks; return the length in bytes."""
    length = image.stat().st_size
    padded = -(-length // BLOCK_BYTES) * BLOCK_BYTES
    if padded != length:
        with image.open("r+b") as file:
            file.truncate(padded)
    return padded


def extract_root_image(image: Path, folder: Path) -> None:
    """Unpack an erofs image into a folder, for looking at: owners and modes are not kept."""
    run(
        [
            find_tool("fsck.erofs", package="erofs-utils"),
            "--no-preserve",
            "--overwrite",
            f"--extract={folder}",
            image,
        ],
        timeout_s=1800,
    )
