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


_FRAMES = limited("list 1 to 8 frames", min_length=1, max_length=8)
_FRAME_BYTES = limited("write a number of bytes from 1 to 512 MiB", ge=1, le=1 << 29)
_AT_BYTES = limited("write a number of bytes from 0 to 2 GiB", ge=0, le=1 << 31)
_LEVEL = limited("write a level from 1 to 22", ge=1, le=22)
_LIBRARY = limited("write such as libzstd 1.5.7", pattern=r"^libzstd [0-9]{1,4}(\.[0-9]{1,4}){2}$(?!\n)")


class FrameWithin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A zstd frame inside a file: where it lies, its length, and that of its content."""

    at_bytes: Annotated[int, _AT_BYTES]
    length_bytes: Annotated[int, _FRAME_BYTES]
    content_bytes: Annotated[int, _FRAME_BYTES]


class Packing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the bytes from `at_bytes` of a file's unpacked form become the zstd frame that the file holds.

    `worker` compresses in zstd's own thread, which makes other frames; `sized` writes the content's length.
    """

    at_bytes: Annotated[int, _AT_BYTES]
    content_bytes: Annotated[int, _FRAME_BYTES]
    level: Annotated[int, _LEVEL]
    worker: bool
    checksum: bool
    sized: bool


class Through(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A detour of a delta: its recipe goes from the old file's unpacked form to the new file's, of `content_bytes`.

    In an unpacked form frames are replaced by their content. `library` makes the new file's frames, byte for byte.
    """

    library: Annotated[str, _LIBRARY]
    content_bytes: LengthBytes
    source: Annotated[list[FrameWithin], _FRAMES]
    content: Annotated[list[Packing], _FRAMES]


class Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to make the content from an older one.

    `source` is the root hash of the older image, or the SHA-256 of the older file; `source_version` is for people.
    `payload` holds the operations' bytes end to end. `memory_bytes` bounds what the largest operation needs, and
    unpacking and packing where the delta goes `through` unpacked forms.
    """

    source: Sha256Hex
    source_version: VersionText
    recipe: Index
    payload: Blob | None
    memory_bytes: LengthBytes
    through: Through | None = None


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
