"""The kernel's calls that `MountedDirectory` makes, answered by a file system in memory."""

from __future__ import annotations

import errno
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import cast

import pytest

from tests.volatile_files import CLUSTER_BYTES, File, Folder, VolatileFiles
from updater.files import MountedDirectory

# Where no real descriptor is.
_numbers = itertools.count(1 << 24)
_open: dict[int, tuple[VolatilePath, int]] = {}


@dataclass(frozen=True)
class VolatilePath:
    """As much of a `pathlib.Path` as `MountedDirectory` uses."""

    tree: VolatileFiles
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"/{self.tree.name}/{'/'.join(self.parts)}"

    def __truediv__(self, path: str) -> VolatilePath:
        return VolatilePath(self.tree, (*self.parts, *path.split("/")))

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def parent(self) -> VolatilePath:
        return VolatilePath(self.tree, self.parts[:-1])

    def with_name(self, name: str) -> VolatilePath:
        return self.parent / name

    def _number(self) -> int:
        number = self.tree.find(self.parts)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return number

    def node(self) -> File | Folder:
        return self.tree.nodes[self._number()]

    def exists(self) -> bool:
        try:
            return self.tree.find(self.parts) is not None
        except NotADirectoryError:
            return False

    def is_dir(self) -> bool:
        return self.exists() and isinstance(self.node(), Folder)

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> SimpleNamespace:
        node = self.node()
        if isinstance(node, Folder):
            return SimpleNamespace(st_size=CLUSTER_BYTES, st_mode=0o40755)
        return SimpleNamespace(st_size=len(node.content or b""), st_mode=0o100444 if node.read_only else 0o100644)

    def mkdir(self, *, exist_ok: bool) -> None:
        if not self.is_dir():
            self.tree.make(self.parent._number(), self.name, is_folder=True)

    def unlink(self) -> None:
        self._number()
        self.tree.unlink(self.parent._number(), self.name)

    def rmdir(self) -> None:
        node = self.node()
        assert isinstance(node, Folder)
        if node.names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self.unlink()

    def replace(self, target: VolatilePath) -> None:
        self.tree.rename(self.parent._number(), self.name, target.name)

    def open(self, mode: str) -> VolatileFile:
        if isinstance(self.parent.node(), File):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if mode == "wb" and not self.exists():
            self.tree.make(self.parent._number(), self.name, is_folder=False)
        number = self._number()
        node = self.tree.nodes[number]
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode != "rb" and node.read_only:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if mode == "wb":
            self.tree.truncate(number)
        return VolatileFile(self, number, mode)


def kind(path: VolatilePath) -> str:
    """Return what a path is, whatever the slot, the tries and the number in its name."""
    name = re.sub(r"\+\d+-\d+", "+N", "/".join(path.parts))
    name = re.sub(r"(^|[/-])[ab](?=[.+]|$)", r"\1SLOT", name)
    name = re.sub(r"[0-9a-f]{32,}", "TARGET", name)
    name = re.sub(r"\d+", "N", name)
    return re.sub(r"(sets/N)/.+", r"\1/ROLE.json", name) or "the topmost folder"


class VolatileFile:
    """An open file, without a buffer: each write is one call."""

    def __init__(self, path: VolatilePath, number: int, mode: str) -> None:
        """Open the file of this number."""
        self._tree = path.tree
        self._number = number
        self._mode = mode
        self._at = 0
        self._descriptor = next(_numbers)
        _open[self._descriptor] = path, number

    def fileno(self) -> int:
        return self._descriptor

    def read(self, length: int) -> bytes:
        content = self._tree.file(self._number).content
        if content is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        found = content[self._at : self._at + length]
        self._at += len(found)
        return found

    def write(self, data: bytes) -> None:
        (self._tree.append if self._mode == "wb" else self._tree.overwrite)(self._number, data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def __enter__(self) -> VolatileFile:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        _open.pop(self._descriptor, None)


class Calls:
    """The module `os` for `updater.files`: volatile folders are served from memory, all else by the real one."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: object, flags: int) -> int:
        if not isinstance(path, VolatilePath):
            return os.open(cast(Path, path), flags)
        descriptor = next(_numbers)
        _open[descriptor] = path, path.tree.find(path.parts) or 0
        return descriptor

    def close(self, descriptor: int) -> None:
        if _open.pop(descriptor, None) is None:
            os.close(descriptor)

    def fsync(self, descriptor: int) -> None:
        known = _open.get(descriptor)
        if known is None:
            os.fsync(descriptor)
            return
        path, number = known
        caller = sys._getframe(1).f_code.co_name
        if caller == "fsync_directory":
            caller = sys._getframe(2).f_code.co_name
        path.tree.flush(number, f"{caller.strip('_')} flushes {kind(path)}")

    def listdir(self, path: object) -> list[str]:
        if not isinstance(path, VolatilePath):
            return os.listdir(cast(Path, path))  # noqa: PTH208 - as the caller does
        node = path.node()
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return [name for name, _ in node.names.values()]

    def statvfs(self, path: object) -> os.statvfs_result | SimpleNamespace:
        if not isinstance(path, VolatilePath):
            return os.statvfs(cast(Path, path))
        return SimpleNamespace(f_bavail=path.tree.free_bytes // CLUSTER_BYTES, f_frsize=CLUSTER_BYTES)

    def posix_fadvise(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        if descriptor not in _open:
            os.posix_fadvise(descriptor, offset, length, advice)


@contextmanager
def volatile_calls() -> Iterator[None]:
    """Let `MountedDirectory` reach volatile file systems, meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("updater.files.os", Calls())
        yield


def mounted(tree: VolatileFiles) -> MountedDirectory:
    """Return the product's own directory over a volatile file system; to be used under `volatile_calls`."""
    return MountedDirectory(cast(Path, VolatilePath(tree)))
