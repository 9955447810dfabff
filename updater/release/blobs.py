"""A folder of content-addressed files that a release's transport is collected in before it is published."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from updater.files import CHUNK_BYTES, explained
from updater.format.compression import pack
from updater.format.transport import Blob, Index

_INDEX_LEVEL = 19


class BlobFolder:
    """Files named by their SHA-256; one that exists is complete."""

    def __init__(self, folder: Path) -> None:
        """Collect in `folder`, which is made where it is missing."""
        self.folder = folder
        with explained(f"cannot make {folder}", "see its owner and its medium"):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where a file lies."""
        return self.folder / sha256

    def put(self, chunks: Iterable[bytes]) -> Blob:
        """Write a file from chunks; return its pin."""
        digest = hashlib.sha256()
        length = 0
        unfinished = self.folder / "unfinished"
        with explained(f"cannot write to {self.folder}", "make room there"), unfinished.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                length += len(chunk)
                file.write(chunk)
        unfinished.replace(self.path(digest.hexdigest()))
        return Blob(length, digest.hexdigest())

    def put_index(self, content: bytes, *, packed: bool) -> Index:
        """Write an index, compressed where that is asked for and makes it smaller; return its pin."""
        raw = pack(content, _INDEX_LEVEL) if packed else content
        if len(raw) >= len(content):
            raw = content
        blob = self.put([raw])
        return Index(blob.length_bytes, len(content), blob.sha256)

    def read(self, pin: Blob | Index) -> bytes:
        """Return a file's bytes."""
        return self.path(pin.sha256).read_bytes()

    def chunks(self, pin: Blob | Index) -> Iterable[bytes]:
        """Yield a file's bytes."""
        with self.path(pin.sha256).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
