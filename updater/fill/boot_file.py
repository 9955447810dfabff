"""A boot file on its way: from the running release's by a delta, in compressed frames, or as it is."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from updater.errors import EnvironmentFailure, InvalidDocument, NetworkFailure, Untrusted, UpdaterError
from updater.fetch import Fetcher
from updater.fill.framed import fetch_frames
from updater.fill.rows import rows_of
from updater.fill.ways import FILE_TROUBLE, WayFailed, fetch_index
from updater.format.columns import malformed
from updater.format.frames import parse_frames
from updater.format.patch import apply
from updater.format.recipe import Operation, Recipe, parse_recipe
from updater.format.through import memory_bytes, packed, unpacked_length, write_unpacked
from updater.format.transport import Delta, FileTransport, Through
from updater.manifest import BLOCK_BYTES
from updater.prefetch import Part, fetch_spans, spans, stream_whole
from updater.records import FileRecord
from updater.ways import Choice, Way

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Barring = Callable[[Way, UpdaterError], None]
OldFile = Callable[[], Iterable[bytes]]
"""Yields the bytes of the running release's file of the same name."""

_PIECE_BLOCKS = 256


def fetch_file(
    fetcher: Fetcher,
    file: FileRecord,
    transport: FileTransport | None,
    choice: Choice,
    path: Path,
    *,
    delta: Delta | None,
    held: OldFile,
    on_barred: Barring,
    progress: Progress,
    what: str,
) -> Way:
    """Write a boot file to `path`, proven by its SHA-256, by the first way that works; return that way.

    Raises what the last way raised; a failing network ends the work at once.
    """
    trouble: UpdaterError | None = None
    for way in choice.order:
        try:
            if way is Way.PLAIN:
                _plain(fetcher, file, path, progress, what)
            else:
                chunks = (
                    _from_delta(fetcher, delta, file, held, path.with_name("old"), what)
                    if way is Way.DELTA
                    else _from_frames(fetcher, transport, file, what)
                )
                if _write(chunks, file, path, progress) != file.sha256:
                    raise WayFailed(
                        f"{what}: what the {way.value} way made is not the file that the manifest pins",
                        mend="it is fetched in another way; publish the release anew",
                        reason="file-mismatch",
                    )
        except (InvalidDocument, WayFailed) as failure:
            log.warning("the %s way fails for good: %s", way.value, failure)
            on_barred(way, failure)
            trouble = failure
        except Untrusted as failure:
            log.warning("the %s way: %s", way.value, failure)
            trouble = failure
        except NetworkFailure as failure:
            if failure.reason not in FILE_TROUBLE:
                raise
            log.warning("the %s way: %s", way.value, failure)
            trouble = failure
        else:
            return way
    assert trouble is not None
    raise trouble


def _plain(fetcher: Fetcher, file: FileRecord, path: Path, progress: Progress, what: str) -> None:
    failures: list[Untrusted | NetworkFailure] = []
    for alone in fetcher.per_mirror():
        mirror = alone.mirrors[0]
        try:
            address = f"blobs/{file.sha256[:2]}/{file.sha256}"
            found = _write(stream_whole(alone, address, file.length_bytes), file, path, progress)
            if found != file.sha256 and alone.kept is not None:
                # An earlier mirror may have brought the start that was kept: this one answers for all of it.
                alone.kept.drop(address, 0, file.length_bytes)
                found = _write(stream_whole(alone, address, file.length_bytes), file, path, progress)
                if found != file.sha256:
                    alone.kept.drop(address, 0, file.length_bytes)
        except NetworkFailure as failure:
            log.warning("%s", failure)
            failures.append(failure)
            continue
        if found == file.sha256:
            return
        fetcher.avoid(mirror)
        failures.append(
            Untrusted(
                f"{what} does not match its manifest (sha256 {found[:12]}… instead of {file.sha256[:12]}…), served by "
                f"{mirror}",
                mend="use another mirror; nothing unproven was written",
                reason="blob-mismatch",
            )
        )
    failures.sort(key=lambda failure: isinstance(failure, NetworkFailure))
    raise failures[0]


def _write(chunks: Iterable[bytes], file: FileRecord, path: Path, progress: Progress) -> str:
    """Write a file of scratch and return its SHA-256."""
    digest = hashlib.sha256()
    done = 0
    with path.open("wb") as out:
        for chunk in chunks:
            done += len(chunk)
            if done > file.length_bytes:
                # It is not the file already, and need not fill the disk.
                return ""
            digest.update(chunk)
            out.write(chunk)
            progress(done, file.length_bytes)
    return digest.hexdigest()


def _from_frames(fetcher: Fetcher, transport: FileTransport | None, file: FileRecord, what: str) -> Iterator[bytes]:
    framed = transport.frames if transport else None
    assert framed is not None
    index = parse_frames(fetch_index(fetcher, framed.index), framed, what)
    _require_length(index.content_bytes, file, what)
    frames = [(framed.file.path, index.frame(number)) for number in range(index.count)]
    with closing(fetch_frames(fetcher, frames)) as arriving:
        for frame, chunks in arriving:
            yield from frame.unpack(chunks, what)


def _from_delta(
    fetcher: Fetcher, delta: Delta | None, file: FileRecord, held: OldFile, copy: Path, what: str
) -> Iterator[bytes]:
    assert delta is not None
    through = delta.through
    length = through.content_bytes if through else file.length_bytes
    recipe = parse_recipe(fetch_index(fetcher, delta.recipe), delta, length, what)
    with _proven_copy(held, delta, copy, what) as old:
        if through is None:
            yield from _made(fetcher, delta, recipe, old, what)
            return
        _require_sense(through, delta, recipe, os.fstat(old.fileno()).st_size, what)
        with _unpacked(old, through, copy, what) as plain:
            old.close()
            yield from packed(_made(fetcher, delta, recipe, plain, what), through, what)


def _require_sense(through: Through, delta: Delta, recipe: Recipe, old_bytes: int, what: str) -> None:
    """Raise InvalidDocument for a detour that does not lead to the recipe, or needs more memory than declared."""
    if unpacked_length(through.source, old_bytes, what) != recipe.source_bytes:
        raise malformed(what, f"the old file does not unpack to {recipe.source_bytes} bytes")
    needed = memory_bytes(through, recipe.memory_bytes)
    if needed > delta.memory_bytes:
        raise malformed(what, f"it needs {needed} bytes of memory, more than the manifest declares")


def _unpacked(old: BinaryIO, through: Through, copy: Path, what: str) -> BinaryIO:
    """Write the unpacked form of the old file to scratch."""
    plain = copy.open("w+b")
    try:
        copy.unlink()
        write_unpacked(old, os.fstat(old.fileno()).st_size, through.source, plain, what)
        plain.flush()
    except BaseException:
        plain.close()
        raise
    return plain


def _proven_copy(held: OldFile, delta: Delta, copy: Path, what: str) -> BinaryIO:
    """Copy the old file to scratch, where blocks can be read in any order, and prove it whole."""
    digest = hashlib.sha256()
    file = copy.open("w+b")
    try:
        # Nobody else needs its name, and it goes with the last reader.
        copy.unlink()
        try:
            for chunk in held():
                digest.update(chunk)
                file.write(chunk)
        except EnvironmentFailure as error:
            raise WayFailed(error.message, mend=error.mend, reason="source-unreadable") from error
        if digest.hexdigest() != delta.source:
            raise WayFailed(
                f"{what}: the running release's file is not the one that the delta is from",
                mend="prove the running slot's boot files; the file is fetched in another way",
                reason="source-damaged",
            )
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _made(fetcher: Fetcher, delta: Delta, recipe: Recipe, old: BinaryIO, what: str) -> Iterator[bytes]:
    """Yield the new file from its first byte to its last."""
    payload = delta.payload
    parts = (Part(payload.path, item.offset, item.length_bytes, item.sha256) for item in recipe.operations if payload)
    arriving = fetch_spans(fetcher, spans(parts))
    left = recipe.content_bytes
    output = b""
    made = -1
    try:
        for row in rows_of(recipe):
            for at in range(0, row.blocks, _PIECE_BLOCKS):
                count = min(_PIECE_BLOCKS, row.blocks - at)
                if row.operation >= 0:
                    if row.operation != made:
                        output = b""
                        output = _applied(recipe.operations[row.operation], next(arriving)[1], old, what)
                        made = row.operation
                    low = (row.at + at) * BLOCK_BYTES
                    piece = output[low : low + count * BLOCK_BYTES]
                elif row.source >= 0:
                    piece = _blocks(old, row.source + at, count)
                else:
                    piece = bytes(count * BLOCK_BYTES)
                yield piece[:left]
                left -= min(left, len(piece))
    finally:
        arriving.close()


def _applied(operation: Operation, payload: memoryview, old: BinaryIO, what: str) -> bytes:
    source = b"".join(_blocks(old, run.first, run.blocks) for run in operation.sources)
    try:
        return apply(operation, payload, source, what)
    except EnvironmentFailure as error:
        raise WayFailed(error.message, mend=error.mend, reason=error.reason) from error


def _blocks(old: BinaryIO, first: int, count: int) -> bytes:
    """Return blocks of a file; behind its end stand zeros."""
    return os.pread(old.fileno(), count * BLOCK_BYTES, first * BLOCK_BYTES).ljust(count * BLOCK_BYTES, b"\0")


def _require_length(length: int, file: FileRecord, what: str) -> None:
    if length != file.length_bytes:
        raise InvalidDocument(
            what,
            "",
            f"its frames hold {length} bytes, and the file has {file.length_bytes}",
            "publish the release anew",
        )
