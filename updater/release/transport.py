"""How a release will travel: its frames, packs and deltas, made from the release and those before it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from updater.format.blockmap import parse_map
from updater.format.pins import pins
from updater.format.transport import Delta, FileTransport, ImageTransport, Index, Transport
from updater.manifest import BLOCK_BYTES, Manifest
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, OperationSizes, make_delta
from updater.release.files import mapped
from updater.release.frames import IMAGE, PACK, Framing, Progress, cut, make_framed
from updater.release.packs import EarlierPacks, make_reuse
from updater.release.uki_deltas import Ukis
from updater.schema import encode_json

log = logging.getLogger(__name__)

# Blocks that left a release and came back are found this far back.
_EARLIER_RELEASES = 3


@dataclass(frozen=True, slots=True)
class Ways:
    """What is made for a release; `deltas` counts the releases before it that get one.

    `framing` is that of image and UKI; packs are compressed at its level.
    """

    frames: bool = True
    reuse: bool = True
    deltas: int = 3
    framing: Framing = IMAGE
    sizes: OperationSizes = field(default_factory=OperationSizes)


@dataclass(frozen=True, slots=True)
class Stored:
    """A release with the files that hold its image and its UKI."""

    manifest: Manifest
    image: Path
    uki: Path

    @classmethod
    def below(cls, folder: Path, manifest: Manifest) -> Stored:
        """Return a release as it lies in a repository's folder."""
        uki = manifest.uki.sha256
        return cls(manifest, folder / f"images/{manifest.root.root_hash}/data", folder / f"blobs/{uki[:2]}/{uki}")


def quiet(what: str, done_bytes: int, total_bytes: int) -> None:
    """Take progress and say nothing."""


def make_transport(
    release: Stored,
    earlier: Sequence[Stored],
    read_index: Callable[[Index], bytes],
    folder: Path,
    ways: Ways,
    progress: Progress = quiet,
) -> Transport:
    """Make what `ways` asks for into `folder`, as files named by their SHA-256; return what goes into the manifest.

    `earlier` are kept releases, the newest first; `read_index` returns an index of theirs. The same inputs, made
    before into the same folder, are not made again.
    """
    blobs = BlobFolder(folder)
    earlier = earlier[: max(ways.deltas, _EARLIER_RELEASES if ways.reuse else 0)]
    memo = folder / f"{_inputs(release, earlier, ways)}.json"
    known = _remembered(memo, blobs)
    if known is not None:
        return known
    with contextlib.ExitStack() as open_files:

        def content(path: Path) -> Content:
            return Content.of(open_files.enter_context(mapped(path)))

        image, uki = content(release.image), content(release.uki)
        olds = [content(old.image) for old in earlier]
        reuse = None
        if ways.reuse:
            packed = [
                _earlier_packs(old.manifest, old_image, read_index)
                for old, old_image in list(zip(earlier, olds, strict=True))[:_EARLIER_RELEASES]
                if old.manifest.transport is not None and old.manifest.transport.root.reuse is not None
            ]
            framing = replace(PACK, level=ways.framing.level)
            reuse = make_reuse(image.raw, image.digests, packed, blobs, progress, framing=framing)
        ukis = Ukis(release.uki, blobs, ways.sizes, progress)
        image_deltas: list[Delta] = []
        uki_deltas: list[Delta] = []
        for old, old_image in list(zip(earlier, olds, strict=True))[: ways.deltas]:
            version = old.manifest.version
            source = old.manifest.root.root_hash
            if source != release.manifest.root.root_hash and source not in [delta.source for delta in image_deltas]:
                image_deltas.append(make_delta(old_image, image, source, version, blobs, progress, sizes=ways.sizes))
            source = old.manifest.uki.sha256
            if source != release.manifest.uki.sha256 and source not in [delta.source for delta in uki_deltas]:
                uki_deltas += ukis.deltas(old.uki, source, version)
        image_frames = uki_frames = None
        if ways.frames:
            framing = ways.framing
            image_frames = make_framed(
                cut(image.raw, framing.frame_bytes), len(image.raw), framing, blobs, "frames", progress
            )
            uki_frames = make_framed(
                cut(uki.raw, framing.frame_bytes), len(uki.raw), framing, blobs, "UKI frames", progress
            )
        transport = Transport(ImageTransport(image_frames, reuse, image_deltas), FileTransport(uki_frames, uki_deltas))
    memo.write_bytes(encode_json(transport))
    return transport


def _earlier_packs(manifest: Manifest, image: Content, read_index: Callable[[Index], bytes]) -> EarlierPacks:
    assert manifest.transport is not None
    reuse = manifest.transport.root.reuse
    assert reuse is not None
    blocks = manifest.root.length_bytes // BLOCK_BYTES
    blockmap = parse_map(read_index(reuse.map), reuse, blocks, (), f"block map of {manifest.version}")
    return EarlierPacks(image.digests, blockmap, reuse.packs)


def _inputs(release: Stored, earlier: Sequence[Stored], ways: Ways) -> str:
    """Return a name for everything that the result follows from."""
    known = [encode_json(msgspec.structs.replace(release.manifest, transport=None))]
    known += [encode_json(old.manifest) for old in earlier]
    known.append(repr(ways).encode())
    return hashlib.sha256(b"\0".join(known)).hexdigest()[:16]


def _remembered(memo: Path, blobs: BlobFolder) -> Transport | None:
    if not memo.is_file():
        return None
    transport = msgspec.json.decode(memo.read_bytes(), type=Transport)
    # Packs of earlier releases lie in the repository.
    wanted = pins(transport)
    made = {name: blobs.path(name).stat().st_size for name in wanted if blobs.path(name).is_file()}
    if any(wanted[name] != length for name, length in made.items()):
        return None
    log.info("%s: made before", memo)
    return transport
