"""Writer of initrd archives (cpio, "newc" format), the same bytes for the same content."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_FILE_MODE = 0o644
_PROGRAM_MODE = 0o755


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A regular file or, with `link`, a symbolic link; owned by root."""

    content: bytes = b""
    mode: int = _FILE_MODE
    link: str = ""


def read_files(folder: Path) -> dict[str, TreeFile]:
    """Return the files under `folder` by their path inside it; a script (`#!`) is executable whatever its mode says.

    Wheels and checkouts do not keep permission bits reliably.
    """
    files: dict[str, TreeFile] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            files[name] = TreeFile(link=str(path.readlink()))
        elif path.is_file():
            content = path.read_bytes()
            files[name] = TreeFile(content, _PROGRAM_MODE if content.startswith(b"#!") else _FILE_MODE)
    return files


def parent_folders(names: Mapping[str, object]) -> list[str]:
    """Return every folder that the named files need, parents first."""
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return sorted(folders - {"."})


def write_cpio(files: Mapping[str, TreeFile], mtime_s: int) -> bytes:
    """Return an archive of the files and the folders that they need, padded to 512 bytes."""
    out = bytearray()
    inode = 0
    for folder in parent_folders(files):
        inode += 1
        out += _record(folder, stat.S_IFDIR | 0o755, b"", inode, mtime_s, links=2)
    for name in sorted(files):
        inode += 1
        file = files[name]
        if file.link:
            out += _record(name, stat.S_IFLNK | 0o777, file.link.encode(), inode, mtime_s)
        else:
            out += _record(name, stat.S_IFREG | file.mode, file.content, inode, mtime_s)
    out += _record(_TRAILER, 0, b"", 0, 0)
    return bytes(out.ljust(-(-len(out) // 512) * 512, b"\0"))


def _record(name: str, mode: int, content: bytes, inode: int, mtime_s: int, links: int = 1) -> bytes:
    raw_name = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, mtime_s, len(content), 0, 0, 0, 0, len(raw_name), 0)
    header = _MAGIC + b"".join(f"{number:08X}".encode() for number in numbers)
    return _padded(header + raw_name) + _padded(content)


def _padded(raw: bytes) -> bytes:
    return raw + b"\0" * (-len(raw) % 4)
