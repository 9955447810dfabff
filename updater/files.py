"""Folders of small files whose every change is durable when the call returns."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from updater.errors import EnvironmentFailure

CHUNK_BYTES = 1 << 20


class Directory(Protocol):
    """A folder on a state partition or an ESP, reached by relative POSIX paths without `..`.

    Names keep their case but FAT compares them without; callers use lower-case names only. Every mutation is durable
    on return (file flushed, then its folder). Missing parents are made by writes. All raise EnvironmentFailure.
    """

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        """Return a file's bytes, or None when it is absent; refuse one larger than `limit_bytes`."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes in chunks, read from the medium and not from a cache where that can be had."""

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a file of this name from chunks; one that exists is replaced by content, not by rename.

        A cut may leave it partial: for files that nothing refers to yet.
        """

    def replace(self, path: str, content: bytes) -> None:
        """Put `content` in place of a small file so that a reader finds the old or the new whole."""

    def overwrite(self, path: str, content: bytes) -> None:
        """Put `content` over a file of that very length, in the sectors that it owns: each is old or new after a cut.

        Raises EnvironmentFailure when the file is absent or of another length.
        """

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all in it; an absent one is fine."""

    def names(self, path: str = "") -> list[str]:
        """Return the sorted names in a folder; an absent folder has none."""

    def size(self, path: str) -> int | None:
        """Return a file's length in bytes, or None when it is absent."""

    def free_bytes(self) -> int:
        """Return the bytes that can still be written."""

    def is_read_only(self, path: str) -> bool:
        """Tell whether a file carries the FAT read-only attribute, or no write permission."""


def checked(path: str) -> str:
    """Return `path` when it is relative and clean; raise ValueError otherwise."""
    parts = path.split("/")
    if path.startswith("/") or (path and any(part in ("", ".", "..") for part in parts)) or "\0" in path:
        raise ValueError(f"not a clean relative path: {path!r}")
    return path


def other_length(path: str, length: int | None, wanted: int) -> EnvironmentFailure:
    """Return the error of a file that cannot be overwritten in place."""
    return EnvironmentFailure(
        f"cannot overwrite {path}: it {'is missing' if length is None else f'has {length} bytes'} instead of {wanted}",
        mend="write it anew, with power that will not fail meanwhile",
        reason="file-error",
    )


def fsync_directory(path: Path) -> None:
    """Flush a folder: a new or renamed name can be lost in a power cut without it."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (FUSE, 9p) cannot flush folders, and say EINVAL; they order renames by themselves.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(what: str, mend: str) -> Iterator[None]:
    """Turn an OSError inside the block into an EnvironmentFailure that names `what` and says what to do."""
    try:
        yield
    except OSError as error:
        reason = {errno.ENOSPC: "no-space", errno.EROFS: "read-only", errno.EIO: "io-error"}.get(
            error.errno or 0, "file-error"
        )
        raise EnvironmentFailure(f"{what}: {error.strerror or error}", mend=mend, reason=reason) from error


class MountedDirectory:
    """A `Directory` below a mounted path; each change is flushed, file first, then folder."""

    def __init__(self, base: Path) -> None:
        """Serve the folder `base`; it need not exist yet."""
        self.base = base

    def _at(self, path: str) -> Path:
        return self.base / checked(path) if path else self.base

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        at = self._at(path)
        with explained(f"cannot read {at}", "see dmesg for errors of that disk"):
            try:
                with at.open("rb") as file:
                    content = file.read(limit_bytes + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if len(content) > limit_bytes:
            raise EnvironmentFailure(
                f"{at} is larger than {limit_bytes} bytes", mend="move it away: it is not ours", reason="file-too-large"
            )
        return content

    def chunks(self, path: str) -> Iterator[bytes]:
        at = self._at(path)
        with explained(f"cannot read {at}", "see dmesg for errors of that disk"), at.open("rb") as file:
            # Written pages are clean after fsync, so that this drops them and the reads go to the medium.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        at = self._at(path)
        with explained(f"cannot write {at}", "free some space there, or see dmesg"):
            self._make_parents(at)
            with at.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            fsync_directory(at.parent)

    def replace(self, path: str, content: bytes) -> None:
        at = self._at(path)
        temporary = at.with_name(at.name + ".new")
        with explained(f"cannot write {at}", "free some space there, or see dmesg"):
            self._make_parents(at)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(at)
            fsync_directory(at.parent)

    def overwrite(self, path: str, content: bytes) -> None:
        at = self._at(path)
        length = self.size(path)
        if length != len(content):
            raise other_length(str(at), length, len(content))
        with explained(f"cannot overwrite {at}", "see dmesg for errors of that disk"), at.open("r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def remove(self, path: str) -> None:
        at = self._at(path)
        with explained(f"cannot remove {at}", "see dmesg for errors of that disk"):
            try:
                if at.is_dir() and not at.is_symlink():
                    for name in self.names(path):
                        self.remove(f"{path}/{name}")
                    at.rmdir()
                else:
                    at.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            fsync_directory(at.parent)

    def names(self, path: str = "") -> list[str]:
        at = self._at(path)
        with explained(f"cannot list {at}", "see dmesg for errors of that disk"):
            try:
                return sorted(os.listdir(at))  # noqa: PTH208 - names are wanted, not paths
            except (FileNotFoundError, NotADirectoryError):
                return []

    def size(self, path: str) -> int | None:
        at = self._at(path)
        with explained(f"cannot look at {at}", "see dmesg for errors of that disk"):
            try:
                return at.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def free_bytes(self) -> int:
        at = self.base
        while not at.exists():
            at = at.parent
        with explained(f"cannot ask {at} for its free space", "see dmesg for errors of that disk"):
            figures = os.statvfs(at)
        return figures.f_bavail * figures.f_frsize

    def is_read_only(self, path: str) -> bool:
        at = self._at(path)
        with explained(f"cannot look at {at}", "see dmesg for errors of that disk"):
            # vfat shows the FAT read-only attribute as missing write permission.
            return not at.stat().st_mode & 0o200

    def _make_parents(self, at: Path) -> None:
        missing = []
        parent = at.parent
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            fsync_directory(folder.parent)


class Below:
    """A `Directory` that is a folder of another one."""

    def __init__(self, directory: Directory, folder: str) -> None:
        """Serve the folder `folder` of `directory`; it need not exist yet."""
        self._directory = directory
        self._folder = checked(folder)

    def _at(self, path: str) -> str:
        return f"{self._folder}/{checked(path)}" if path else self._folder

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        return self._directory.read(self._at(path), limit_bytes=limit_bytes)

    def chunks(self, path: str) -> Iterator[bytes]:
        return self._directory.chunks(self._at(path))

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        self._directory.write_new(self._at(path), chunks)

    def replace(self, path: str, content: bytes) -> None:
        self._directory.replace(self._at(path), content)

    def overwrite(self, path: str, content: bytes) -> None:
        self._directory.overwrite(self._at(path), content)

    def remove(self, path: str) -> None:
        self._directory.remove(self._at(path))

    def names(self, path: str = "") -> list[str]:
        return self._directory.names(self._at(path))

    def size(self, path: str) -> int | None:
        return self._directory.size(self._at(path))

    def free_bytes(self) -> int:
        return self._directory.free_bytes()

    def is_read_only(self, path: str) -> bool:
        return self._directory.is_read_only(self._at(path))
