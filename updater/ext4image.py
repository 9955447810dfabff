"""An ext4 file system inside a disk image file as a `Directory`, read and edited by debugfs."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure
from updater.files import CHUNK_BYTES, checked, explained, other_length
from updater.run import find_tool, run

_MAGIC = 0xEF53
_NEEDS_RECOVERY = 0x4
_META_BG = 0x10
_PACKAGE = "e2fsprogs"
_COPY_BYTES = 4 << 20
_UNIT_BYTES = 1024
_SUPERBLOCK_OFFSET = 1024
_JOURNAL_MAGIC = b"\xc0\x3b\x39\x98"


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    mode: int
    length_bytes: int

    @property
    def is_directory(self) -> bool:
        return self.mode & 0o170000 == 0o040000


class Ext4Image:
    """A `Directory` over the ext4 at `offset_bytes` of an image file, below the folder `base`; needs no root.

    After a power cut the journal holds changes that the file system proper does not. It is replayed by `e2fsck -p`,
    which is what the image's own next boot would do, in a sparse copy of the partition: e2fsprogs 1.47 loses the
    offset when it opens a file system again behind a replayed journal. Reading reads the copy, and the image stays as
    it is; the first edit writes back the blocks that the replay changed.

    Nothing else may write the image meanwhile. Each change is flushed to the image file when the call returns. Edits
    do not go through the journal: when this process is killed midway, run `e2fsck -f` on the partition.
    """

    def __init__(
        self,
        image: Path,
        *,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        base: str = "",
        writable: bool = False,
    ) -> None:
        """Serve the file system; `base` is a folder in it, such as `lib/acl-updater`, made by the first write.

        Raises EnvironmentFailure when there is no ext4 or it is longer than `length_bytes`, when its journal cannot be
        replayed, or a tool is missing.
        """
        self._image = image
        self._offset = offset_bytes
        self._base = checked(base)
        self._writable = writable
        self._name = f"{image} (ext4 at byte {offset_bytes})"
        if "?" in str(image) or any(ord(char) < 32 for char in str(image)):
            raise EnvironmentFailure(
                f"{image} has a name that e2fsprogs cannot take", mend="rename the image file", reason="open-failed"
            )
        find_tool("debugfs", package=_PACKAGE)
        self._source = (image, offset_bytes)
        self._replayed: Callable[[], object] | None = None
        raw, incompatible = self._superblock()
        self._length = struct.unpack_from("<I", raw, 4)[0] * (1024 << struct.unpack_from("<I", raw, 24)[0])
        if length_bytes is not None and self._length > length_bytes:
            raise EnvironmentFailure(
                f"{self._name} says that it has {self._length} bytes, its partition has {length_bytes}",
                mend="the partition table and the file system disagree: make the image anew",
                reason="no-ext4",
            )
        if incompatible & _NEEDS_RECOVERY:
            self._recover()

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        """Return a file's bytes, or None when it is absent; refuse one larger than `limit_bytes`."""
        node = self._node(path)
        if node is None or node.is_directory:
            return None
        if node.length_bytes > limit_bytes:
            raise EnvironmentFailure(
                f"{path} on {self._name} is larger than {limit_bytes} bytes",
                mend="move it away: it is not ours",
                reason="file-too-large",
            )
        return self._debugfs(f"cat {self._at(path)}")

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes in chunks."""
        node = self._node(path)
        if node is None or node.is_directory:
            raise self._absent(path)
        with tempfile.TemporaryDirectory(prefix="acl-updater-") as folder:
            local = Path(folder) / "content"
            self._debugfs(f'dump {self._at(path)} "{local}"')
            with local.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a file of this name from chunks; one that exists is replaced by content."""
        with tempfile.TemporaryDirectory(prefix="acl-updater-") as folder:
            local = Path(folder) / "content"
            with explained(f"cannot write {local}", "free some space in TMPDIR"), local.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            self._write(path, local)

    def replace(self, path: str, content: bytes) -> None:
        """Put `content` in place of a small file: written beside it first, then put under its name."""
        fresh = f"{path}.new"
        self.write_new(fresh, [content])
        parent, _, name = self._full(path).rpartition("/")
        # debugfs has no rename. Neither `ln` nor `unlink` counts links, so that the two leave the count at one.
        commands = [f'cd "/{parent}"', f'ln "{name}.new" "{name}"', f'unlink "{name}.new"']
        if self._node(path) is not None:
            commands.insert(1, f'rm "{name}"')
        self._edit(commands)

    def overwrite(self, path: str, content: bytes) -> None:
        """Put `content` over a file of that very length; a kill midway may leave it partial."""
        length = self.size(path)
        if length != len(content):
            raise other_length(path, length, len(content))
        self.write_new(path, [content])

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all in it; an absent one is fine."""
        node = self._node(path)
        if node is None:
            return
        if node.is_directory:
            for name in self.names(path):
                self.remove(f"{path}/{name}")
            self._edit([f"rmdir {self._at(path)}"])
        else:
            self._edit([f"rm {self._at(path)}"])

    def names(self, path: str = "") -> list[str]:
        """Return the sorted names in a folder; an absent folder has none."""
        return sorted(node.name for node in self._listed(self._full(path)))

    def size(self, path: str) -> int | None:
        """Return a file's length in bytes, or None when it is absent."""
        node = self._node(path)
        return node.length_bytes if node else None

    def free_bytes(self) -> int:
        """Return the bytes in free blocks, without those reserved for root."""
        raw, incompatible = self._superblock()
        block_bytes = 1024 << struct.unpack_from("<I", raw, 24)[0]
        blocks, reserved, free, _, first = struct.unpack_from("<IIIII", raw, 4)
        per_group = struct.unpack_from("<I", raw, 32)[0]
        descriptor = max(struct.unpack_from("<H", raw, 254)[0], 32) if incompatible & 0x80 else 32
        if not incompatible & _META_BG:
            # The kernel brings the superblock's own count up to date at unmount only; the groups' are right.
            groups = -(-(blocks - first) // per_group)
            table = self._pread((first + 1) * block_bytes, groups * descriptor)
            free = 0
            for at in range(0, len(table), descriptor):
                free += struct.unpack_from("<H", table, at + 12)[0]
                if descriptor >= 64:
                    free += struct.unpack_from("<H", table, at + 44)[0] << 16
        return int(max(0, free - reserved) * block_bytes)

    def is_read_only(self, path: str) -> bool:
        """Tell whether a file lacks its owner's write permission."""
        node = self._node(path)
        if node is None:
            raise self._absent(path)
        return not node.mode & 0o200

    def _write(self, path: str, local: Path) -> None:
        self._make_parents(path)
        length = local.stat().st_size
        old = self._node(path)
        if length > self.free_bytes() + (old.length_bytes if old else 0):
            raise EnvironmentFailure(
                f"cannot write {path} on {self._name}: no space left for {length} bytes",
                mend="remove files there that nothing needs",
                reason="no-space",
            )
        local.chmod(0o644)
        parent, _, name = self._full(path).rpartition("/")
        commands = [f'cd "/{parent}"', f'write "{local}" "{name}"', f'sif "{name}" uid 0', f'sif "{name}" gid 0']
        if old is not None:
            commands.insert(1, f'rm "{name}"')
        self._edit(commands)

    def _make_parents(self, path: str) -> None:
        parts = self._full(path).split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            above, name = "/".join(parts[: depth - 1]), parts[depth - 1]
            if not any(node.name == name for node in self._listed(above)):
                self._edit([f'cd "/{above}"', f'mkdir "{name}"'])

    def _full(self, path: str) -> str:
        full = "/".join(part for part in (self._base, checked(path)) if part)
        if any(ord(char) < 32 or char == '"' for char in full):
            raise ValueError(f"debugfs cannot take the path {full!r}")
        return full

    def _at(self, path: str) -> str:
        return f'"/{self._full(path)}"'

    def _node(self, path: str) -> _Node | None:
        parent, _, name = self._full(path).rpartition("/")
        return next((node for node in self._listed(parent) if node.name == name), None)

    def _listed(self, full: str) -> list[_Node]:
        """Return what a folder holds; nothing when it is absent or no folder."""
        raw = self._debugfs(f'ls -p "/{full}"', absent_is_fine=True)
        nodes = []
        for line in raw.decode("utf-8", "surrogateescape").splitlines():
            parts = line.split("/")
            if len(parts) == 8 and parts[1] != "0" and parts[5] not in (".", ".."):
                nodes.append(_Node(parts[5], int(parts[2], 8), int(parts[6] or 0)))
        return nodes

    def _debugfs(self, command: str, *, absent_is_fine: bool = False) -> bytes:
        done = run(["debugfs", "-R", command, f"{self._image}?offset={self._offset}"])
        complaint = _complaint(done.stderr)
        if complaint and not (absent_is_fine and ("not found" in complaint or "not a directory" in complaint)):
            raise self._failed(command, complaint)
        return b"" if complaint else done.stdout

    def _edit(self, commands: list[str]) -> None:
        if not self._writable:
            raise ValueError(f"{self._name} is open for reading only")
        self._write_back()
        script = "".join(f"{command}\n" for command in commands)
        done = run(
            ["debugfs", "-w", "-f", "-", f"{self._image}?offset={self._offset}"], stdin=script.encode(), timeout_s=300
        )
        complaint = _complaint(done.stderr)
        if complaint:
            raise self._failed("; ".join(commands), complaint)
        with explained(f"cannot flush {self._image}", "see dmesg"), self._image.open("rb") as file:
            os.fsync(file.fileno())

    def _superblock(self) -> tuple[bytes, int]:
        raw = self._pread(1024, 1024)
        if struct.unpack_from("<H", raw, 56)[0] != _MAGIC:
            raise EnvironmentFailure(
                f"{self._name}: there is no ext4 file system",
                mend="make one with mkfs.ext4, or name the right image",
                reason="no-ext4",
            )
        return raw, struct.unpack_from("<I", raw, 96)[0]

    def _pread(self, offset: int, length: int) -> bytes:
        with explained(f"cannot read {self._name}", "check the image file"), self._image.open("rb") as file:
            return os.pread(file.fileno(), length, self._offset + offset).ljust(length, b"\0")

    def _recover(self) -> None:
        find_tool("e2fsck", package=_PACKAGE)
        folder = Path(tempfile.mkdtemp(prefix="acl-updater-"))
        # The copy goes away with this object, or when it is written back.
        self._replayed = weakref.finalize(self, shutil.rmtree, folder, True)
        copy = folder / "partition"
        with explained(f"cannot copy {self._name}", "free some space in TMPDIR"):
            _copy_sparse(self._image, self._offset, self._length, copy)
        done = run(["e2fsck", "-p", copy], check=False, timeout_s=600)
        # 1: errors were corrected.
        if done.returncode not in (0, 1):
            text = (done.stdout + done.stderr).decode("utf-8", "replace").strip()[-800:]
            raise EnvironmentFailure(
                f"{self._name} was not unmounted, and its journal cannot be replayed: {text}",
                mend="boot the image once, or take its state partition out and run `e2fsck -f` on it",
                reason="dirty-journal",
            )
        self._image, self._offset = copy, 0

    def _write_back(self) -> None:
        if self._replayed is not None:
            copy, (self._image, self._offset) = self._image, self._source
            with explained(f"cannot write {self._name}", "free some space for the image file"):
                _write_back(copy, self._image, self._offset)
            self._replayed()
            self._replayed = None

    def _failed(self, command: str, complaint: str) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"debugfs on {self._name}: `{command}`: {complaint}",
            mend=f"check it with `e2fsck -fn '{self._image}?offset={self._offset}'`",
            reason="no-space" if "allocate block" in complaint else "tool-failed",
        )

    def _absent(self, path: str) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"cannot read {path} on {self._name}: there is no such file", mend="", reason="file-error"
        )


def _complaint(stderr: bytes) -> str:
    """Return what debugfs complains of: it exits with zero whatever happens, and begins with its version."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    return "; ".join(line.strip() for line in lines if line.strip() and not line.startswith("debugfs 1."))


def _copy_sparse(source: Path, offset: int, length: int, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        write.truncate(length)
        for at, piece in _pieces(read.fileno(), offset, offset + length):
            os.pwrite(write.fileno(), piece, at - offset)


def _write_back(copy: Path, image: Path, offset: int) -> None:
    """Write what a replay changed; a kill in between leaves a journal that can be replayed again.

    So the journal's own superblock, and the file system's, which say that there is nothing to replay, go last.
    """
    with copy.open("rb") as read, image.open("r+b") as write:
        last: list[tuple[int, bytes]] = []
        for at, piece in _pieces(read.fileno(), 0, os.fstat(read.fileno()).st_size):
            old = os.pread(write.fileno(), len(piece), offset + at)
            if piece == old:
                continue
            for within in range(0, len(piece), _UNIT_BYTES):
                unit = piece[within : within + _UNIT_BYTES]
                if unit == old[within : within + _UNIT_BYTES]:
                    continue
                if at + within == _SUPERBLOCK_OFFSET or unit[:4] == _JOURNAL_MAGIC:
                    last.append((offset + at + within, unit))
                else:
                    os.pwrite(write.fileno(), unit, offset + at + within)
        os.fsync(write.fileno())
        for position, unit in last:
            os.pwrite(write.fileno(), unit, position)
        os.fsync(write.fileno())


def _pieces(file: int, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of what a sparse file holds between `at` and `end`."""
    while at < end:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
            stop = min(os.lseek(file, at, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # The rest is a hole.
                return
            raise
        while at < stop:
            piece = os.pread(file, min(_COPY_BYTES, stop - at), at)
            if not piece:
                return
            yield at, piece
            at += len(piece)
