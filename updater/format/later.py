"""The signed document of the deltas that a release was given after its publication."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from updater.errors import InvalidDocument
from updater.format.transport import Delta, FileTransport, ImageTransport, Transport
from updater.manifest import Manifest
from updater.schema import Sha256Hex, VersionText, decode_json, limited

_DELTAS = limited("list at most 64 deltas", max_length=64)


class LaterDeltas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deltas to one release, whose manifest stays as it was published; `root_hash` and `uki_sha256` name its content.

    A TUF target of its own beside the manifest, signed by the same role.
    """

    format: Literal[1]
    version: VersionText
    root_hash: Sha256Hex
    uki_sha256: Sha256Hex
    root: Annotated[list[Delta], _DELTAS] = []
    uki: Annotated[list[Delta], _DELTAS] = []


def later_path(version: str) -> str:
    """Return the target's path: no version begins with a letter, so it is never taken for a manifest."""
    return f"manifests/deltas-{version}.json"


def parse_later(raw: bytes, manifest: Manifest, what: str) -> LaterDeltas:
    """Return the document of a release; raise InvalidDocument when it is malformed or belongs to another release."""
    later = decode_json(raw, LaterDeltas, what)
    pinned = (manifest.version, manifest.root.root_hash, manifest.uki.sha256)
    if (later.version, later.root_hash, later.uki_sha256) != pinned:
        raise InvalidDocument(
            what, "", f"it is not about release {manifest.version} as published", "add the deltas to the release anew"
        )
    return later


def with_later(transport: Transport, later: LaterDeltas) -> Transport:
    """Return how a release travels with both; where both name a source, the manifest's delta comes first."""
    root, uki = transport.root, transport.uki
    return Transport(
        ImageTransport(root.frames, root.reuse, [*root.deltas, *later.root]),
        FileTransport(uki.frames, [*uki.deltas, *later.uki]),
    )
