"""Publishing of built releases: what they travel in, then bytes, then the metadata that makes them visible."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from updater.errors import EnvironmentFailure, InvalidDocument, Refused
from updater.files import CHUNK_BYTES, Directory, MountedDirectory, explained
from updater.format.later import LaterDeltas, with_later
from updater.format.pins import pins
from updater.format.transport import Index, Transport
from updater.manifest import BLOCK_BYTES, Artifact, Manifest, Root, parse_manifest
from updater.release.frames import Progress
from updater.release.repository import Repository
from updater.release.transport import Stored, Ways, make_transport, quiet
from updater.schema import MAX_DOCUMENT_BYTES, encode_json
from updater.verity import build_tree
from updater.versions import Version

log = logging.getLogger(__name__)

TRANSPORT = "transport"
"""The folder of a build in which frames, packs and deltas are collected."""

Proof = Callable[[Iterator[bytes]], str]


@dataclass(frozen=True, slots=True)
class File:
    """One file of a release: where it lies, where it goes, and what its bytes must prove to be.

    `proof` returns a sentence on what is wrong with the bytes, or an empty text.
    """

    source: Path
    path: str
    length_bytes: int
    proof: Proof


@dataclass(frozen=True, slots=True)
class Build:
    """A folder that `acl-release build` made."""

    folder: Path
    manifest: Manifest
    raw: bytes

    def files(self) -> list[File]:
        """Return what is published beside the manifest, in the order in which it must be proven."""
        manifest, root = self.manifest, self.manifest.root
        base = f"images/{root.root_hash}"
        verity = _Verity(root)
        found = [
            File(self.folder / "root.img", f"{base}/data", root.length_bytes, verity.image),
            File(self.folder / "root.tree", f"{base}/tree", root.tree_length_bytes, verity.tree),
            _blob(self.folder / "uki.efi", manifest.uki),
        ]
        found += [
            _blob(self.folder / "addons" / addon.name, Artifact(addon.length_bytes, addon.sha256))
            for addon in manifest.addons
        ]
        if manifest.sbom is not None:
            found.append(_blob(self.folder / "sbom.cdx.json", manifest.sbom))
        return found + self.transport_files()

    def transport_files(self) -> list[File]:
        """Return the files in which the release travels."""
        if self.manifest.transport is None:
            return []
        return [
            pinned_file(self.folder / TRANSPORT / digest, length, digest)
            for digest, length in pins(self.manifest.transport).items()
        ]

    def same_as(self, published: bytes) -> bool:
        """Tell whether a published manifest is this release's, however that travels."""
        if self.raw == published:
            return True
        manifest = parse_manifest(published, "the published manifest")
        return self.manifest.transport is None and replace(manifest, transport=None) == self.manifest


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one build; `new` is False when it was published before."""

    version: str
    new: bool
    bytes_written: int


def read_build(folder: Path) -> Build:
    """Return the build in a folder; raise InvalidDocument or Refused when it is no build, or is not complete."""
    at = folder / "manifest.json"
    if not at.is_file():
        raise Refused(
            f"{folder} holds no manifest.json", mend="give the output folder of `acl-release build`", reason="no-build"
        )
    with explained(f"cannot read {at}", "see its owner and its medium"), at.open("rb") as file:
        raw = file.read(MAX_DOCUMENT_BYTES + 1)
    build = Build(folder, parse_manifest(raw, str(at)), raw)
    for needed in build.files():
        length = needed.source.stat().st_size if needed.source.is_file() else -1
        if length != needed.length_bytes:
            raise InvalidDocument(
                str(needed.source),
                "",
                "it is missing"
                if length < 0
                else f"it has {length} bytes, and the manifest says {needed.length_bytes}",
                "build the release anew",
            )
    return build


def publish(
    repository: Repository, folders: Sequence[Path], ways: Ways | None = None, progress: Progress = quiet
) -> list[Published]:
    """Publish builds as one revision; return what became of each.

    `ways` says how they shall travel, besides as they are; what is made for it is kept in the build's `transport`
    folder. The same build again changes nothing, and mends what an interrupted run left. Raises Refused
    (`version-exists`) when a version is published with another manifest, InvalidDocument when a file is not what its
    manifest says; nothing is visible then.
    """
    read = [read_build(folder) for folder in folders]
    builds = list(read)
    published = [_published(repository, build) for build in builds]
    for first, second in itertools.combinations(builds, 2):
        if first.manifest.release == second.manifest.release and first.raw != second.raw:
            raise _version_exists(second.manifest.version, str(first.folder))
    _refuse_no_space(repository.folder, builds)
    written = [sum(place(repository.folder, file) for file in build.files()) for build in builds]
    # In the order of versions: a release is made from those before it.
    for number in sorted(range(len(builds)), key=lambda number: builds[number].manifest.release):
        raw = published[number]
        if raw is not None:
            builds[number] = Build(builds[number].folder, parse_manifest(raw, "the published manifest"), raw)
        elif ways is not None:
            builds[number] = _travelling(repository, builds[number], builds, ways, progress)
        if builds[number].raw != read[number].raw:
            written[number] += sum(place(repository.folder, file) for file in builds[number].transport_files())
    new = [repository.put_target(f"manifests/{build.manifest.version}.json", build.raw) for build in builds]
    repository.publish()
    return [
        Published(build.manifest.version, is_new, count)
        for build, is_new, count in zip(builds, new, written, strict=True)
    ]


def _travelling(repository: Repository, build: Build, builds: Sequence[Build], ways: Ways, progress: Progress) -> Build:
    """Return the build with a manifest that says how it travels; its image lies in the repository already."""
    folder = repository.folder
    if not isinstance(folder, MountedDirectory):
        return build
    manifests = {Version(other.manifest.version): other.manifest for other in builds}
    for version in repository.versions():
        raw = repository.target(f"manifests/{version}.json")
        if raw is not None:
            manifests[Version(version)] = parse_manifest(raw, f"manifests/{version}.json")
    withdrawn = {Version(item.version) for item in repository.withdrawn().releases}
    earlier = [
        manifests[version]
        for version in sorted(manifests, reverse=True)
        if version < build.manifest.release
        and version not in withdrawn
        and manifests[version].image_id == build.manifest.image_id
    ]

    def read_index(index: Index) -> bytes:
        return folder.read(index.path, limit_bytes=index.length_bytes) or b""

    log.info("publish: how %s travels", build.manifest.version)
    stored = [Stored.below(folder.base, manifest) for manifest in (build.manifest, *earlier)]
    transport = make_transport(stored[0], stored[1:], read_index, build.folder / TRANSPORT, ways, progress)
    raw = encode_json(replace(build.manifest, transport=transport))
    # The constructor checks no limits: read it as a node will.
    return Build(build.folder, parse_manifest(raw, "manifest.json"), raw)


def _published(repository: Repository, build: Build) -> bytes | None:
    """Return the manifest under which the build is published, None when it is not; refuse other bytes."""
    found = None
    for version in repository.versions():
        # 1.0 and 1.0.0 are the same release to every node.
        if Version(version) != build.manifest.release:
            continue
        found = repository.target(f"manifests/{version}.json")
        if version != build.manifest.version or found is None or not build.same_as(found):
            raise _version_exists(build.manifest.version, f"the repository, as {version}")
    return found


def _version_exists(version: str, where: str) -> Refused:
    return Refused(
        f"release {version} is already in {where}, with other bytes",
        mend="a version never changes: build it again under a new one",
        reason="version-exists",
    )


def _refuse_no_space(folder: Directory, builds: Sequence[Build]) -> None:
    needed = sum(
        file.length_bytes for build in builds for file in build.files() if folder.size(file.path) != file.length_bytes
    )
    free = folder.free_bytes()
    if needed > free:
        raise EnvironmentFailure(
            f"the repository needs {needed} bytes more, and its file system has {free}",
            mend="make room there",
            reason="no-space",
        )


def place(folder: Directory, file: File) -> int:
    """Bring one file into the repository and prove it there; return the bytes written."""
    if folder.size(file.path) == file.length_bytes and not file.proof(folder.chunks(file.path)):
        return 0
    log.info("publish: %s as %s", file.source, file.path)
    with explained(f"cannot read {file.source}", "see its owner and its medium"):
        folder.write_new(file.path, _chunks(file.source))
    # Proven where it lies, so that neither a source that changes meanwhile nor a bad copy goes unnoticed.
    wrong = file.proof(folder.chunks(file.path))
    if wrong:
        folder.remove(file.path)
        raise InvalidDocument(str(file.source), "", f"it {wrong}", "build the release anew")
    return file.length_bytes


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _blob(source: Path, artifact: Artifact) -> File:
    return pinned_file(source, artifact.length_bytes, artifact.sha256)


def later_files(later: LaterDeltas) -> list[File]:
    """Return the files that a release's later deltas refer to."""
    transport = with_later(Transport(), later)
    return [pinned_file(Path(digest), length, digest) for digest, length in pins(transport).items()]


def pinned_file(source: Path, length_bytes: int, digest: str) -> File:
    """Return a file that is named by its SHA-256 in the repository."""

    def proof(chunks: Iterator[bytes]) -> str:
        found = _sha256(chunks)
        return "" if found == digest else f"has SHA-256 {found}, and the manifest says {digest}"

    return File(source, f"blobs/{digest[:2]}/{digest}", length_bytes, proof)


class _Verity:
    """Proves an image, then its tree block by block: the root hash alone covers only a tree's first block."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._tree_sha256 = ""

    def image(self, chunks: Iterator[bytes]) -> str:
        tree, found = build_tree(_whole_blocks(chunks), bytes.fromhex(self._root.salt))
        if found != self._root.root_hash:
            return f"has root hash {found}, and the manifest says {self._root.root_hash}"
        self._tree_sha256 = hashlib.sha256(tree).hexdigest()
        return ""

    def tree(self, chunks: Iterator[bytes]) -> str:
        if not self._tree_sha256:
            return "cannot be judged, because its image is wrong"
        return "" if _sha256(chunks) == self._tree_sha256 else "is not the hash tree of its image"


def _sha256(chunks: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _whole_blocks(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of whole blocks, as hashing wants them."""
    rest = b""
    for chunk in chunks:
        joined = rest + chunk
        cut = len(joined) - len(joined) % BLOCK_BYTES
        rest = joined[cut:]
        if cut:
            yield joined[:cut]
    if rest:
        yield rest
