"""Releases from root trees: image, hash tree, UKI, manifest and SBOM in one folder."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from updater.errors import InvalidDocument
from updater.manifest import Artifact, Manifest, Root
from updater.release.cpio import TreeFile, read_files, write_cpio
from updater.release.erofs import make_root_image, pad_to_blocks
from updater.release.hashtree import make_hash_tree
from updater.release.uki import DEADLINES, SecureBoot, UkiParts, make_uki
from updater.schema import encode_json

log = logging.getLogger(__name__)

# Every UUID of a release is derived under this one, so that the same inputs give the same root hash.
_NAMESPACE = uuid.UUID("5f0c3d0e-6f0e-5d53-9a3a-7a6a5b1f4c2e")
_UNITS = Path(__file__).resolve().parents[1] / "units"
# Files of the root that the initrd needs as well.
_SHARED_WITH_INITRD = (
    "usr/lib/acl-updater/watchdog",
    "usr/lib/modprobe.d/50-acl-updater.conf",
    "usr/lib/modules-load.d/50-acl-updater.conf",
    "usr/lib/systemd/system.conf.d/50-acl-updater.conf",
    "usr/lib/systemd/system/acl-updater-watchdog.service",
)


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """What a release is made of; `root` is a tree (folder or tar), or a ready image where `root_is_image`."""

    version: str
    image_id: str
    built: datetime
    root: Path
    kernel: Path
    initrds: Sequence[Path]
    out: Path
    root_is_image: bool = False
    kernel_version: str = ""
    os_release: bytes = b""
    layouts: Sequence[str] = ("dps-root",)
    security_epoch: int = 0
    panic_s: int = 10
    command_line: Sequence[str] = ()
    stub: Path | None = None
    signing: SecureBoot | None = None


@dataclass(frozen=True, slots=True)
class BuiltRelease:
    """A release's folder: manifest.json, root.img, root.tree, uki.efi and, from a tree, sbom.cdx.json."""

    folder: Path
    manifest: Manifest

    @property
    def image(self) -> Path:
        """Return the root image."""
        return self.folder / "root.img"

    @property
    def tree(self) -> Path:
        """Return the hash blocks without their superblock."""
        return self.folder / "root.tree"

    @property
    def uki(self) -> Path:
        """Return the UKI."""
        return self.folder / "uki.efi"


def build_release(inputs: BuildInputs) -> BuiltRelease:
    """Build a release into `inputs.out`; the same inputs give the same bytes.

    Raises InvalidDocument for a bad version or name, and EnvironmentFailure for a missing tool.
    """
    if inputs.built.tzinfo is None:
        raise InvalidDocument("build", "built", "the time has no zone", "give it in UTC")
    mtime_s = int(inputs.built.timestamp())
    folder = inputs.out
    folder.mkdir(parents=True, exist_ok=True)
    identity = uuid.uuid5(_NAMESPACE, f"{inputs.image_id}/{inputs.version}")
    # One salt for all releases of an image: equal blocks have equal digests, so a node's own hash tree is an index of
    # the blocks that it already holds.
    salt = hashlib.sha256(f"salt/{inputs.image_id}".encode()).digest()
    image = folder / "root.img"
    log.info("%s: root image", inputs.version)
    if inputs.root_is_image:
        image.write_bytes(b"")
        _copy(inputs.root, image)
        length_bytes = pad_to_blocks(image)
    else:
        length_bytes = make_root_image(inputs.root, image, uuid=identity, mtime_s=mtime_s)
    log.info("%s: hash tree", inputs.version)
    tree = make_hash_tree(image, folder / "root.tree", salt=salt, uuid=identity)
    log.info("%s: UKI", inputs.version)
    _build_uki(inputs, folder, tree.root_hash, mtime_s)
    manifest = Manifest(
        format=1,
        version=inputs.version,
        image_id=inputs.image_id,
        architecture="x86-64",
        layouts=list(inputs.layouts),
        built=inputs.built.strftime("%Y-%m-%dT%H:%M:%SZ"),
        security_epoch=inputs.security_epoch,
        root=Root(
            length_bytes=length_bytes,
            tree_length_bytes=tree.length_bytes,
            root_hash=tree.root_hash,
            salt=salt.hex(),
            uuid=str(identity),
        ),
        uki=artifact(folder / "uki.efi"),
        addons=[],
        sbom=None,
    )
    (folder / "manifest.json").write_bytes(encode_json(manifest))
    return BuiltRelease(folder, manifest)


def command_line(root_hash: str, panic_s: int, extra: Sequence[str]) -> str:
    """Return the kernel command line of a release."""
    return " ".join([f"roothash={root_hash}", *DEADLINES, f"panic={panic_s}", *extra])


def initrd_overlay() -> dict[str, TreeFile]:
    """Return the initrd's deadlines: what an initrd needs so that a failure in it becomes a reboot with evidence."""
    root = read_files(_UNITS / "root")
    return {**read_files(_UNITS / "initrd"), **{name: root[name] for name in _SHARED_WITH_INITRD}}


def artifact(path: Path) -> Artifact:
    """Return a file's length and digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(length_bytes=path.stat().st_size, sha256=digest)


def _build_uki(inputs: BuildInputs, folder: Path, root_hash: str, mtime_s: int) -> None:
    overlay = folder / "initrd.overlay"
    overlay.write_bytes(write_cpio(initrd_overlay(), mtime_s))
    os_release = folder / "os-release"
    os_release.write_bytes(inputs.os_release)
    parts = UkiParts(
        kernel=inputs.kernel,
        initrds=[*inputs.initrds, overlay],
        command_line=command_line(root_hash, inputs.panic_s, inputs.command_line),
        os_release=os_release,
        stub=inputs.stub,
        kernel_version=inputs.kernel_version,
    )
    make_uki(parts, folder / "uki.efi", mtime_s=mtime_s, signing=inputs.signing)
    overlay.unlink()
    os_release.unlink()


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)
