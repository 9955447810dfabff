"""Deltas between two releases that are published already."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from updater.errors import Refused
from updater.files import Directory, MountedDirectory, explained
from updater.format.later import LaterDeltas, later_path, parse_later
from updater.format.transport import Delta, Transport
from updater.manifest import Manifest, parse_manifest
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, OperationSizes, make_delta
from updater.release.files import mapped
from updater.release.frames import Progress
from updater.release.publish import pinned_file, place
from updater.release.repository import Repository
from updater.release.transport import Stored, quiet
from updater.release.uki_deltas import Ukis
from updater.schema import encode_json
from updater.versions import Version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Added:
    """What nodes fetch on the way from one release to the other; `new` is False where both deltas were there."""

    source_version: str
    version: str
    root: Delta | None
    uki: Delta | None
    new: bool

    @property
    def fetch_bytes(self) -> int:
        """Return the bytes of both deltas."""
        made = [delta for delta in (self.root, self.uki) if delta is not None]
        return sum(delta.recipe.length_bytes + (delta.payload.length_bytes if delta.payload else 0) for delta in made)


def add_deltas(
    repository: Repository,
    source_version: str,
    version: str,
    *,
    sizes: OperationSizes | None = None,
    progress: Progress = quiet,
) -> Added:
    """Make the deltas from one published release to another, in either direction, and publish them.

    The manifests stay as they are, and what is published already is not made again. Raises Refused for releases that
    are not published, withdrawn, or of different images.
    """
    old, new = _published(repository, source_version), _published(repository, version)
    _refuse_misfit(repository, old, new)
    before = _later(repository, new)
    own = new.transport or Transport()
    root = _from(old.root.root_hash, [*own.root.deltas, *before.root])
    uki = _from(old.uki.sha256, [*own.uki.deltas, *before.uki])
    wants_root = root is None and old.root.root_hash != new.root.root_hash
    wants_uki = uki is None and old.uki.sha256 != new.uki.sha256
    if not wants_root and not wants_uki:
        return Added(old.version, new.version, root, uki, new=False)
    base = _base(repository.folder)
    source, target = Stored.below(base, old), Stored.below(base, new)
    with explained("cannot make a scratch folder", "set TMPDIR to a folder with room"):
        scratch = tempfile.TemporaryDirectory(prefix="acl-delta-")
    with scratch as folder:
        blobs = BlobFolder(Path(folder))
        if wants_root:
            root = _made(source.image, target.image, old.root.root_hash, old.version, blobs, sizes, progress)
        ukis = [uki] if uki else []
        if wants_uki:
            made = Ukis(target.uki, blobs, sizes or OperationSizes(), progress)
            ukis = made.deltas(source.uki, old.uki.sha256, old.version)
        document = LaterDeltas(
            1,
            new.version,
            new.root.root_hash,
            new.uki.sha256,
            [*before.root, *([root] if wants_root and root else [])],
            [*before.uki, *(ukis if wants_uki else [])],
        )
        raw = encode_json(document)
        # The constructor checks no limits: read it as a node will.
        parse_later(raw, new, later_path(new.version))
        for path in sorted(blobs.folder.iterdir()):
            place(repository.folder, pinned_file(path, path.stat().st_size, path.name))
    repository.put_target(later_path(new.version), raw)
    repository.publish()
    log.info("deltas from %s to %s are published", old.version, new.version)
    return Added(old.version, new.version, root, ukis[0] if ukis else None, new=True)


def _made(
    old: Path,
    new: Path,
    source: str,
    source_version: str,
    blobs: BlobFolder,
    sizes: OperationSizes | None,
    progress: Progress,
) -> Delta:
    with ExitStack() as opened:
        before, after = (Content.of(opened.enter_context(mapped(path))) for path in (old, new))
        return make_delta(before, after, source, source_version, blobs, progress, sizes=sizes)


def _from(source: str, deltas: Sequence[Delta]) -> Delta | None:
    return next((delta for delta in deltas if delta.source == source), None)


def _published(repository: Repository, version: str) -> Manifest:
    wanted = Version(version)
    for published in repository.versions():
        raw = repository.target(f"manifests/{published}.json") if Version(published) == wanted else None
        if raw is not None:
            return parse_manifest(raw, f"manifests/{published}.json")
    raise Refused(
        f"release {version} is not published here",
        mend="see `acl-release status` for what is",
        reason="release-unknown",
    )


def _later(repository: Repository, manifest: Manifest) -> LaterDeltas:
    path = later_path(manifest.version)
    raw = repository.target(path)
    if raw is None:
        return LaterDeltas(1, manifest.version, manifest.root.root_hash, manifest.uki.sha256)
    return parse_later(raw, manifest, path)


def _refuse_misfit(repository: Repository, old: Manifest, new: Manifest) -> None:
    if old.version == new.version:
        raise Refused(f"both are release {new.version}", mend="name two releases", reason="same-release")
    if (old.image_id, old.architecture) != (new.image_id, new.architecture):
        raise Refused(
            f"release {old.version} is of {old.image_id} for {old.architecture}, release {new.version} of "
            f"{new.image_id} for {new.architecture}: no node goes from one to the other",
            mend="name two releases of one image",
            reason="other-image",
        )
    why = {Version(item.version): item.why for item in repository.withdrawn().releases}.get(new.release)
    if why is not None:
        raise Refused(
            f"release {new.version} is withdrawn: {why}", mend="name another with --to", reason="release-withdrawn"
        )


def _base(folder: Directory) -> Path:
    if not isinstance(folder, MountedDirectory):
        raise Refused("this repository is no folder here", mend="name one with --repo", reason="no-repository")
    return folder.base
