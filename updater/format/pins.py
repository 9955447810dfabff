"""The files that a transport refers to."""

from __future__ import annotations

from collections.abc import Iterator

from updater.format.transport import Blob, Framed, Index, Transport


def pins(transport: Transport) -> dict[str, int]:
    """Return the length of every file of a transport by its SHA-256."""
    return {pin.sha256: pin.length_bytes for pin in _pins(transport)}


def _pins(transport: Transport) -> Iterator[Blob | Index]:
    for content in (transport.root, transport.uki):
        if content.frames is not None:
            yield from _framed(content.frames)
        for delta in content.deltas:
            yield delta.recipe
            if delta.payload is not None:
                yield delta.payload
    reuse = transport.root.reuse
    if reuse is not None:
        yield from (reuse.map, reuse.candidates)
        for pack in reuse.packs:
            yield from _framed(pack)


def _framed(framed: Framed) -> Iterator[Blob | Index]:
    yield from (framed.index, framed.file)
