"""The part of a manifest that says how a release's bytes travel: frames, packs and deltas, each pinned by hash."""

from __future__ import annotations

from typing import Annotated

import msgspec

from updater.schema import LengthBytes, Sha256Hex, VersionText, limited

MOST_INDEX_BYTES = 1 << 26
_INDEX_LENGTH = limited("write a number of bytes from 1 to 64 MiB", ge=1, le=MOST_INDEX_BYTES)


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in the repository at `blobs/<first two>/<sha256>`, read in ranges; its index pins each range."""

    length_bytes: LengthBytes
    sha256: Sha256Hex

    @property
    def path(self) -> str:
        """Return where it lies in the repository."""
        return f"blobs/{self.sha256[:2]}/{self.sha256}"


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table that is fetched whole and hashed before it is parsed.

    `content_bytes` is its length unpacked: where it differs from `length_bytes`, the file is one zstd frame.
    """

    length_bytes: Annotated[int, _INDEX_LENGTH]
    content_bytes: Annotated[int, _INDEX_LENGTH]
    sha256: Sha256Hex

    @property
    def path(self) -> str:
        """Return where it lies in the repository."""
        return f"blobs/{self.sha256[:2]}/{self.sha256}"


class Framed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A byte string cut into independent zstd frames: `file` holds them end to end, `index` pins each."""

    index: Index
    file: Blob


class Reuse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where each block of the image lies in the packs (`map`), and what may already be held (`candidates`)."""

    map: Index
    candidates: Index
    packs: Annotated[list[Framed], limited("list 1 to 64 packs", min_length=1, max_length=64)]


class Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to make the content from an older one.

    `source` is the root hash of the older image, or the SHA-256 of the older file; `source_version` is for people.
    `payload` holds the operations' bytes end to end. `memory_bytes` bounds what the largest operation needs.
    """

    source: Sha256Hex
    source_version: VersionText
    recipe: Index
    payload: Blob | None
    memory_bytes: LengthBytes


_DELTAS = limited("list at most 32 deltas", max_length=32)


class ImageTransport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the root image travels, besides as it is."""

    frames: Framed | None = None
    reuse: Reuse | None = None
    deltas: Annotated[list[Delta], _DELTAS] = []


class FileTransport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a boot file travels, besides as it is."""

    frames: Framed | None = None
    deltas: Annotated[list[Delta], _DELTAS] = []


class Transport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a release travels; whatever is absent travels as it is."""

    root: ImageTransport = ImageTransport()
    uki: FileTransport = FileTransport()
