"""Files read as memory."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from updater.files import explained


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Map a file that is not empty, to read from it as from memory."""
    with explained(f"cannot read {path}", "see its owner and its medium"), path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(mapping)
    try:
        yield view
    finally:
        view.release()
        # After a failure its traceback still holds slices; the mapping then ends with them.
        with contextlib.suppress(BufferError):
            mapping.close()
