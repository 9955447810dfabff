"""The other slot of a node as an update finds it, in a plain file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from integration.bench.course import HALF, OLDER, ZEROS
from updater.errors import EnvironmentFailure

_PIECE = 4 << 20


def fill(slot: Path, state: str, old: Path, new: Path, *, offset: int = 0, length: int) -> None:
    """Write `length` bytes at `offset` of a file: zeros, the older image, or half of the newer one and then zeros.

    Every byte is written and flushed, so that no contender pays for the allocation of a hole.
    """
    content: tuple[Path | None, int]
    if state == ZEROS:
        content = (None, 0)
    elif state == OLDER:
        content = (old, old.stat().st_size)
    elif state == HALF:
        content = (new, new.stat().st_size // 2 // 4096 * 4096)
    else:
        raise ValueError(state)
    source, kept = content
    slot.touch()
    with slot.open("r+b") as target:
        target.seek(offset)
        if source is not None:
            with source.open("rb") as reader:
                left = kept
                while left and (piece := reader.read(min(_PIECE, left))):
                    target.write(piece)
                    left -= len(piece)
        zeros = bytes(_PIECE)
        left = length - kept
        while left > 0:
            left -= target.write(zeros[: min(_PIECE, left)])
        target.flush()
        os.fsync(target.fileno())


def digest(path: Path, *, offset: int = 0, length: int) -> str:
    """Return the SHA-256 of a part of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while length > 0:
            piece = file.read(min(_PIECE, length))
            if not piece:
                break
            found.update(piece)
            length -= len(piece)
    return found.hexdigest()


def require_same(expected: str, path: Path, *, offset: int = 0, length: int, who: str) -> None:
    """Raise EnvironmentFailure when a contender left something else in the slot than the newer image."""
    if digest(path, offset=offset, length=length) != expected:
        raise EnvironmentFailure(
            f"{who} ended well, and the slot does not hold the new image", mend="see its log", reason="wrong-image"
        )
