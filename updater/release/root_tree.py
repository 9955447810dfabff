"""Root trees as they come from a vendor: a folder or a tar, read file by file without unpacking."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from updater.errors import InvalidDocument

_MOST_LINKS = 20


class RootTree(Protocol):
    """A root file system at rest; names are relative to its root, without a leading slash."""

    def names(self) -> list[str]:
        """Return every path, sorted."""

    def link(self, name: str) -> str | None:
        """Return where a symbolic link points, None for anything else."""

    def content(self, name: str) -> bytes | None:
        """Return a regular file's bytes, None for anything else; links are not followed."""


class FolderTree:
    """A root tree that lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return every path, sorted."""
        return sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*"))

    def link(self, name: str) -> str | None:
        """Return where a symbolic link points, None for anything else."""
        path = self._folder / name
        return str(path.readlink()) if path.is_symlink() else None

    def content(self, name: str) -> bytes | None:
        """Return a regular file's bytes, None for anything else."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None


class TarTree:
    """A root tree in a tar; where a path stands twice, the later one counts."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {posixpath.normpath(member.name).lstrip("/"): member for member in tar.getmembers()}
        self._members.pop(".", None)

    def names(self) -> list[str]:
        """Return every path, sorted."""
        return sorted(self._members)

    def link(self, name: str) -> str | None:
        """Return where a symbolic link points, None for anything else."""
        member = self._members.get(name)
        return member.linkname if member is not None and member.issym() else None

    def content(self, name: str) -> bytes | None:
        """Return a regular file's bytes, None for anything else."""
        member = self._members.get(name)
        if member is None or not (member.isreg() or member.islnk()):
            return None
        file = self._tar.extractfile(member)
        return file.read() if file is not None else None


@contextmanager
def open_root_tree(path: Path) -> Iterator[RootTree]:
    """Open a folder or a tar (compressed or not); raise InvalidDocument for anything else."""
    if path.is_dir():
        yield FolderTree(path)
        return
    try:
        tar = tarfile.open(path)  # noqa: SIM115 - closed by the `with` below
    except (tarfile.TarError, OSError) as error:
        raise InvalidDocument(str(path), "", f"it is no root tree: {error}", "give a folder or a tar") from error
    with tar:
        yield TarTree(tar)


def resolve(tree: RootTree, name: str) -> str | None:
    """Return the path that `name` stands for inside the tree, links in any part of it followed; None for a loop."""
    todo = list(reversed(posixpath.normpath(name).strip("/").split("/")))
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
            continue
        here = "/".join([*done, part])
        target = tree.link(here)
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            return None
        if target.startswith("/"):
            done = []
        todo += [piece for piece in reversed(target.split("/")) if piece not in ("", ".")]
    return "/".join(done)


def read_text(tree: RootTree, name: str) -> str | None:
    """Return a file's text with links followed, None when there is no such file."""
    path = resolve(tree, name)
    raw = tree.content(path) if path is not None else None
    return raw.decode("utf-8", "replace") if raw is not None else None
