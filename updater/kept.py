"""Bytes of a transfer that outlive a kill, until what is made of them is on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from updater.files import fsync_directory

log = logging.getLogger(__name__)

SETTLE_BYTES = 8 << 20
"""Used bytes after which what was made of them is flushed, more than wait anywhere to be written.

Twice as many are kept at most, beside those ahead.
"""

LEAST_SYNC_BYTES = 1 << 18
_COPY_BYTES = 1 << 20
_NAME = re.compile(r"([0-9a-f]{64})-(\d{1,15})")


@dataclass(slots=True)
class _Run:
    """Bytes of one remote file from `start` on, in a file of their own; those before `needed_from` are done with."""

    file: Path
    start: int
    length: int
    needed_from: int
    dirty: bool = False

    @property
    def end(self) -> int:
        return self.start + self.length


class Kept:
    """A folder of runs of bytes as they came from mirrors.

    Nothing in it is proven: whoever takes bytes from it proves them as if they had just been fetched. A kill loses
    none of them; a power cut those since the last sync, which comes at least once for each operation or frame. It
    serves several threads at once. It is a convenience: where the disk fails or is full, it keeps nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        spare_bytes: int = 0,
        settle_bytes: int = SETTLE_BYTES,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        """Take up what `folder` holds; leave `spare_bytes` of its file system to others.

        `sync` makes an open file durable.
        """
        self._folder = folder
        self._sync = sync
        self._settle_bytes = settle_bytes
        self._runs: dict[str, list[_Run]] = {}
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._new_names = False
        self._unsynced_bytes = 0
        self._settle: Callable[[], None] | None = None
        self._used: list[tuple[str, int, int]] = []
        self._used_bytes = 0
        self._settled: list[tuple[str, int, int]] = []
        self._left_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir()):
                self._take_up(file)
            self._left_bytes = shutil.disk_usage(folder).free - spare_bytes
        except OSError as error:
            self._give_up(error)

    def copy(self, path: str, offset: int, content: bytearray | memoryview) -> list[tuple[int, int]]:
        """Fill `content`, the bytes of a remote file from `offset` on; return its gaps as (start, end) within it."""
        gaps = []
        at, end = offset, offset + len(content)
        with self._lock:
            for run in sorted(self._runs.get(_key(path), []), key=lambda run: run.start):
                low, high = max(run.start, at), min(run.end, end)
                if low >= high or not self._read(run, low, memoryview(content)[low - offset : high - offset]):
                    continue
                if low > at:
                    gaps.append((at - offset, low - offset))
                at = high
        if at < end:
            gaps.append((at - offset, end - offset))
        return gaps

    def prefix(self, path: str) -> Iterator[bytes]:
        """Yield what is kept of a remote file from its first byte on, without a gap."""
        at = 0
        piece = bytearray(_COPY_BYTES)
        while True:
            gaps = self.copy(path, at, piece)
            known = gaps[0][0] if gaps else len(piece)
            if not known:
                return
            yield bytes(memoryview(piece)[:known])
            at += known

    def add(self, path: str, offset: int, piece: bytes, unit_bytes: int) -> None:
        """Keep a piece of a remote file; `unit_bytes` is the longest part of it that is of use only whole."""
        try:
            with self._lock:
                if len(piece) > self._left_bytes:
                    return
                self._append(path, offset, piece)
            # Written before it is waited for: from here on only a power cut can lose it.
            with self._syncing:
                if self._unsynced_bytes >= max(unit_bytes, LEAST_SYNC_BYTES):
                    self._sync_all()
        except OSError as error:
            self._give_up(error)

    def drop(self, path: str, offset: int, length: int) -> None:
        """Forget what turned out to be wrong, and what came together with it."""
        with self._lock:
            for run in list(self._runs.get(_key(path), [])):
                if run.start < offset + length and offset < run.end:
                    self._remove(path, run)

    def used(self, path: str, offset: int, length: int) -> None:
        """Note that a part was used: it is forgotten when what was made of it is durable."""
        if self._settle is None:
            return
        self._used.append((path, offset, length))
        self._used_bytes += length
        if self._used_bytes < self._settle_bytes:
            return
        self._settle()
        # What is made of the last parts may wait in memory to be written: those stay until the next time.
        self._forget(self._settled)
        self._settled, self._used, self._used_bytes = self._used, [], 0

    @contextmanager
    def until_durable(self, settle: Callable[[], None]) -> Iterator[None]:
        """Let go inside the block of what is used; `settle` makes durable what was written so far."""
        self._settle = settle
        try:
            yield
        finally:
            self._settle = None

    def made_durable(self) -> None:
        """Forget all that was used: what was made of it is on the disk."""
        self._forget([*self._settled, *self._used])
        self._settled, self._used, self._used_bytes = [], [], 0

    def clear(self) -> None:
        """Remove the folder."""
        with self._lock:
            self._runs.clear()
            self._left_bytes = 0
            shutil.rmtree(self._folder, ignore_errors=True)

    def _take_up(self, file: Path) -> None:
        match = _NAME.fullmatch(file.name)
        if match is None:
            file.unlink()
            return
        start = int(match.group(2))
        self._runs.setdefault(match.group(1), []).append(_Run(file, start, file.stat().st_size, start))

    def _read(self, run: _Run, low: int, into: memoryview) -> bool:
        try:
            with run.file.open("rb") as file:
                file.seek(low - run.start)
                return file.readinto(into) == len(into)
        except OSError as error:
            log.warning("cannot read %s, and do without: %s", run.file, error)
            return False

    def _append(self, path: str, offset: int, piece: bytes) -> None:
        runs = self._runs.setdefault(_key(path), [])
        # Short enough that each soon holds nothing that is needed, and goes.
        run = next((run for run in runs if run.end == offset and run.length < self._settle_bytes // 2), None)
        if run is None:
            run = next((run for run in runs if run.start == offset), None)
            if run is not None:
                self._remove(path, run)
            run = _Run(self._folder / f"{_key(path)}-{offset}", offset, 0, offset)
            runs.append(run)
            self._new_names = True
        with run.file.open("ab") as file:
            file.write(piece)
        run.length += len(piece)
        run.dirty = True
        self._left_bytes -= len(piece)
        self._unsynced_bytes += len(piece)

    def _sync_all(self) -> None:
        with self._lock:
            dirty = [run for runs in self._runs.values() for run in runs if run.dirty]
            new_names, self._new_names, self._unsynced_bytes = self._new_names, False, 0
            for run in dirty:
                run.dirty = False
        for run in dirty:
            # What was used up in the meantime is gone.
            with contextlib.suppress(FileNotFoundError):
                handle = os.open(run.file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._sync(handle)
                finally:
                    os.close(handle)
        if new_names:
            fsync_directory(self._folder)

    def _forget(self, parts: list[tuple[str, int, int]]) -> None:
        with self._lock:
            for path, offset, length in parts:
                for run in list(self._runs.get(_key(path), [])):
                    if max(offset, run.start) <= run.needed_from < offset + length:
                        run.needed_from = min(offset + length, run.end)
                        if run.needed_from == run.end:
                            self._remove(path, run)

    def _remove(self, path: str, run: _Run) -> None:
        self._runs[_key(path)].remove(run)
        self._left_bytes += run.length
        run.file.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        log.warning("cannot keep what arrives in %s, a kill would cost more of it: %s", self._folder, error)
        with self._lock:
            self._runs.clear()
            self._left_bytes = 0


def _key(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()
