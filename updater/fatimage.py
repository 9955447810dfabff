"""A FAT file system inside a disk image file as a `Directory`: read here, edited by mtools."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from updater.errors import EnvironmentFailure
from updater.fat import READ_ONLY, FatReader
from updater.files import checked, explained, other_length
from updater.run import find_tool, run

# Nobody's mtools.conf applies, and odd geometries (an ESP on a partition boundary) are fine.
_ENVIRONMENT = {"MTOOLSRC": os.devnull, "MTOOLS_SKIP_CHECK": "1"}


class FatImage:
    """A `Directory` over the FAT file system at `offset_bytes` of an image file; needs no root and no loop device.

    Nothing else may write the image meanwhile. Each change is flushed to the image file when the call returns; a
    `replace` that is killed midway may leave the file partial, and the new content under its name plus `.new`, as FAT
    has no atomic rename.
    """

    def __init__(self, image: Path, *, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Serve the file system; raise EnvironmentFailure when there is none, or mtools is missing."""
        self._image = image
        self._offset = offset_bytes
        self._length = length_bytes
        self._name = f"{image} (FAT at byte {offset_bytes})"
        find_tool("mcopy", package="mtools")
        with self._reader():
            pass

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        """Return a file's bytes, or None when it is absent; refuse one larger than `limit_bytes`."""
        with self._reader() as reader:
            entry = reader.find(checked(path))
            if entry is None or entry.is_directory:
                return None
            if entry.length_bytes > limit_bytes:
                raise EnvironmentFailure(
                    f"{path} on {self._name} is larger than {limit_bytes} bytes",
                    mend="move it away: it is not ours",
                    reason="file-too-large",
                )
            return b"".join(reader.chunks(entry))

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes in chunks, past the page cache."""
        with self._reader() as reader:
            entry = reader.find(checked(path))
            if entry is None or entry.is_directory:
                raise self._absent(path)
            yield from reader.chunks(entry)

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a file of this name from chunks; one that exists is replaced by content."""
        self._make_parents(checked(path))
        with tempfile.TemporaryDirectory(prefix="acl-updater-") as folder:
            local = Path(folder) / "content"
            with explained(f"cannot write {local}", "free some space in TMPDIR"), local.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            old = self.size(path) or 0
            if local.stat().st_size > self.free_bytes() + old:
                raise EnvironmentFailure(
                    f"cannot write {path} on {self._name}: no space left for {local.stat().st_size} bytes",
                    mend="remove files there that nothing needs",
                    reason="no-space",
                )
            if old and self.is_read_only(path):
                self._edit("mattrib", "-r", f"::/{path}")
            self._edit("mcopy", "-o", local, f"::/{path}")

    def replace(self, path: str, content: bytes) -> None:
        """Put `content` in place of a small file."""
        # Written twice, as mtools renames short names to upper case.
        fresh = f"{path}.new"
        self.write_new(fresh, [content])
        self.write_new(path, [content])
        self.remove(fresh)

    def overwrite(self, path: str, content: bytes) -> None:
        """Put `content` over a file of that very length, in the sectors that it owns."""
        with self._reader() as reader:
            entry = reader.find(checked(path))
            if entry is None or entry.is_directory or entry.length_bytes != len(content):
                raise other_length(f"{path} on {self._name}", entry.length_bytes if entry else None, len(content))
            places = list(reader.places(entry))
        with explained(f"cannot write {self._name}", "check the image file"), self._image.open("r+b") as file:
            done = 0
            for offset, length in places:
                os.pwrite(file.fileno(), content[done : done + length], self._offset + offset)
                done += length
            os.fsync(file.fileno())

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all in it; an absent one is fine."""
        with self._reader() as reader:
            entry = reader.find(checked(path))
        if entry is None:
            return
        if entry.attributes & READ_ONLY:
            self._edit("mattrib", "-r", f"::/{path}")
        if entry.is_directory:
            for name in self.names(path):
                self.remove(f"{path}/{name}")
            self._edit("mrd", f"::/{path}")
        else:
            self._edit("mdel", f"::/{path}")

    def names(self, path: str = "") -> list[str]:
        """Return the sorted names in a folder; an absent folder has none."""
        with self._reader() as reader:
            return sorted(entry.name for entry in reader.entries(checked(path)) or ())

    def size(self, path: str) -> int | None:
        """Return a file's length in bytes, or None when it is absent."""
        with self._reader() as reader:
            entry = reader.find(checked(path))
        return entry.length_bytes if entry else None

    def free_bytes(self) -> int:
        """Return the bytes in free clusters."""
        with self._reader() as reader:
            return reader.free_bytes()

    def is_read_only(self, path: str) -> bool:
        """Tell whether a file carries the FAT read-only attribute."""
        with self._reader() as reader:
            entry = reader.find(checked(path))
        if entry is None:
            raise self._absent(path)
        return bool(entry.attributes & READ_ONLY)

    @contextmanager
    def _reader(self) -> Iterator[FatReader]:
        with explained(f"cannot read {self._name}", "check the image file"), self._image.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

            def read(offset: int, length: int) -> bytes:
                end = offset + length
                if offset < 0 or (self._length is not None and end > self._length):
                    raise EnvironmentFailure(
                        f"{self._name} refers to byte {end}, behind its end",
                        mend="mend it with fsck.vfat -r",
                        reason="fat-damaged",
                    )
                return os.pread(file.fileno(), length, self._offset + offset).ljust(length, b"\0")

            yield FatReader(read, self._name)

    def _make_parents(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if self.size(folder) is None:
                self._edit("mmd", f"::/{folder}")

    def _edit(self, tool: str, *arguments: str | Path) -> None:
        for argument in arguments:
            if isinstance(argument, str) and set(argument) & set("*?[]\\"):
                raise ValueError(f"mtools would take {argument!r} for a pattern")
        run([tool, "-i", f"{self._image}@@{self._offset}", *arguments], env=_ENVIRONMENT, timeout_s=300)
        with explained(f"cannot flush {self._image}", "see dmesg"), self._image.open("rb") as file:
            os.fsync(file.fileno())

    def _absent(self, path: str) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"cannot read {path} on {self._name}: there is no such file", mend="", reason="file-error"
        )
