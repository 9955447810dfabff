"""Release manifests: what a release is, pinned by hashes down to its last block."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from updater.errors import InvalidDocument
from updater.format.transport import Transport
from updater.schema import (
    HexBytes,
    LengthBytes,
    Name,
    Sha256Hex,
    UtcText,
    UuidText,
    VersionText,
    decode_json,
    limited,
)
from updater.slots import Slot
from updater.versions import Version

BLOCK_BYTES = 4096


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The root image with its dm-verity tree (format type 1, sha256, 4096-byte blocks).

    `length_bytes` is the image, padded to whole blocks; `tree_length_bytes` the hash blocks without the superblock.
    The hash partition holds one superblock block, then the tree: see `updater.verity`.
    """

    length_bytes: LengthBytes
    tree_length_bytes: LengthBytes
    root_hash: Sha256Hex
    salt: HexBytes
    uuid: UuidText


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file pinned by its length and SHA-256, found in the repository as `blobs/<first two>/<sha256>`."""

    length_bytes: Annotated[int, limited("write a number of bytes from 1 to 1 GiB", ge=1, le=1 << 30)]
    sha256: Sha256Hex


class Addon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A UKI addon: a signed PE file that adds to the command line.

    With `slot` it is placed only in that slot: it carries the verity words of the slot's own partitions.
    """

    name: Annotated[
        str,
        limited(
            "write a file name such as fips.addon.efi: lower-case letters, digits, '-' and '_'",
            pattern=r"^[a-z0-9][a-z0-9_-]{0,40}\.addon\.efi$(?!\n)",
        ),
    ]
    length_bytes: Annotated[int, limited("write a number of bytes from 1 to 16 MiB", ge=1, le=1 << 24)]
    sha256: Sha256Hex
    slot: Slot | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A release: its identity, the layouts it fits, its root image, UKI and addons."""

    format: Literal[1]
    version: VersionText
    image_id: Name
    architecture: Literal["x86-64", "arm64"]
    layouts: Annotated[list[Name], limited("name at least one layout, such as dps-root", min_length=1, max_length=16)]
    built: UtcText
    security_epoch: Annotated[int, limited("write a whole number from 0 to 1,000,000", ge=0, le=1_000_000)]
    root: Root
    uki: Artifact
    addons: Annotated[list[Addon], limited("list at most 16 addons", max_length=16)] = []
    sbom: Artifact | None = None
    transport: Transport | None = None

    def __post_init__(self) -> None:
        root = self.root
        if root.length_bytes % BLOCK_BYTES:
            raise InvalidDocument(
                "manifest",
                "root.length_bytes",
                f"{root.length_bytes} is not a multiple of 4096",
                "pad the image",
            )
        blocks = root.length_bytes // BLOCK_BYTES
        expected = tree_length_bytes(blocks)
        if root.tree_length_bytes != expected:
            raise InvalidDocument(
                "manifest",
                "root.tree_length_bytes",
                f"{root.tree_length_bytes} does not fit {blocks} data blocks, whose tree has {expected} bytes",
                "build the release anew",
            )
        names = [addon.name for addon in self.addons]
        if len(set(names)) != len(names):
            raise InvalidDocument("manifest", "addons", "two addons bear the same name", "rename one")
        if len({addon.slot for addon in self.addons} - {None}) == 1:
            raise InvalidDocument(
                "manifest",
                "addons",
                "only one slot has an addon of its own: the release could not be booted from the other",
                "add one for each slot",
            )

    @property
    def release(self) -> Version:
        """Return the version as a value that sorts."""
        return Version(self.version)


def tree_length_bytes(data_blocks: int) -> int:
    """Return the length in bytes of the dm-verity tree over `data_blocks` (sha256: 128 digests a block)."""
    total = 0
    level = data_blocks
    while level > 1:
        level = -(-level // 128)
        total += level
    # A single data block is its own root: cryptsetup writes no tree level for it.
    return total * BLOCK_BYTES


def parse_manifest(raw: bytes, source: str) -> Manifest:
    """Parse a manifest's bytes as hostile input; raise InvalidDocument."""
    return decode_json(raw, Manifest, source)


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The release that a channel offers, and when it was promoted."""

    format: Literal[1]
    channel: Name
    release: VersionText
    promoted: UtcText


class Withdrawal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One withdrawn release."""

    version: VersionText
    why: Annotated[str, limited("keep it below 500 characters", max_length=500)]
    withdrawn: UtcText


class Withdrawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed list of releases that nobody may stage or arm any more."""

    format: Literal[1]
    releases: Annotated[list[Withdrawal], limited("list at most 10,000 releases", max_length=10_000)] = []
