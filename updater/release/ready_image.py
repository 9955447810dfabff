"""Ready images as vendors build them, unpacked for looking at: erofs, btrfs or ext4, without a mount."""

from __future__ import annotations

from pathlib import Path

from updater.errors import InvalidDocument
from updater.release.erofs import extract_root_image
from updater.run import find_tool, run

# File system -> where its magic number lies, and the number. Sources: the kernel's erofs_fs.h, btrfs_tree.h, ext4.h.
_MAGICS = {
    "erofs": (1024, bytes.fromhex("e2e1f5e0")),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "ext4": (1080, b"\x53\xef"),
}


def file_system_of(image: Path) -> str:
    """Return the name of an image's file system; raise InvalidDocument for one that cannot be looked into."""
    with image.open("rb") as file:
        for name, (at, magic) in _MAGICS.items():
            file.seek(at)
            if file.read(len(magic)) == magic:
                return name
    raise InvalidDocument(str(image), "", "its file system is none of erofs, btrfs and ext4", "build it as one of them")


def extract_image(image: Path, folder: Path) -> None:
    """Unpack an image into a folder, for looking at: owners are not kept."""
    kind = file_system_of(image)
    if kind == "erofs":
        extract_root_image(image, folder)
    elif kind == "btrfs":
        run([find_tool("btrfs", package="btrfs-progs"), "restore", "--symlink", image, folder], timeout_s=1800)
    else:
        run([find_tool("debugfs", package="e2fsprogs"), "-R", f"rdump / {folder}", image], timeout_s=1800)
