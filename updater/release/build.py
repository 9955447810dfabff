"""Releases from root trees: image, hash tree, UKI, manifest and SBOM in one folder."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from updater.errors import InvalidDocument, Refused
from updater.manifest import Artifact, Manifest, Root, parse_manifest
from updater.release.cpio import write_cpio
from updater.release.erofs import extract_root_image, make_root_image, pad_to_blocks
from updater.release.hashtree import HashTree, make_hash_tree
from updater.release.image_checks import check_root_tree, require_sound
from updater.release.plain_initrd import write_plain_initrd, write_repacked_initrd
from updater.release.root_tree import RootTree, open_root_tree, read_text
from updater.release.sbom import installed_packages, make_sbom, vendor_of
from updater.release.uki import DEADLINES, SecureBoot, UkiParts, make_uki
from updater.release.uki_checks import check_uki
from updater.release.unit_layer import initrd_overlay
from updater.schema import encode_json

log = logging.getLogger(__name__)

# An ESP of 192 MiB without its file system, loader, entries and addons.
_ESP_BYTES_FOR_UKIS = 176 << 20

# Every UUID of a release is derived under this one, so that the same inputs give the same root hash.
_NAMESPACE = uuid.UUID("5f0c3d0e-6f0e-5d53-9a3a-7a6a5b1f4c2e")


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """What a release is made of; `root` is a tree (folder or tar), or a ready image where `root_is_image`.

    The kernel and the initrds come from outside the tree, since each vendor builds them differently; the updater's
    deadlines are appended to the initrds. With `plain_initrd` the UKI holds them uncompressed, with `repacked_initrd`
    compressed as any node can do it again: docs/decisions/0010 and 0011. `checked` is false only for images that are
    meant to be broken.
    """

    version: str
    image_id: str
    built: datetime
    root: Path
    kernel: Path
    initrds: Sequence[Path]
    out: Path
    root_is_image: bool = False
    kernel_version: str = ""
    layouts: Sequence[str] = ("dps-root",)
    security_epoch: int = 0
    panic_s: int = 10
    command_line: Sequence[str] = ()
    stub: Path | None = None
    signing: SecureBoot | None = None
    plain_initrd: bool = False
    repacked_initrd: bool = False
    checked: bool = True


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

    Raises InvalidDocument for a bad version or name, Refused for an image whose failed boot would not end by itself,
    and EnvironmentFailure for a missing tool.
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
    log.info("%s: checking the root, listing its packages", inputs.version)
    with _opened(inputs) as root:
        if inputs.checked:
            require_sound(check_root_tree(root, inputs.version), str(inputs.root))
        os_release = (read_text(root, "etc/os-release") or read_text(root, "usr/lib/os-release") or "").encode()
        _write_sbom(inputs, root, identity)
    log.info("%s: root image and hash tree", inputs.version)
    if inputs.root_is_image:
        shutil.copyfile(inputs.root, image)
        length_bytes = pad_to_blocks(image)
    else:
        length_bytes = make_root_image(inputs.root, image, uuid=identity, mtime_s=mtime_s)
    tree = make_hash_tree(image, folder / "root.tree", salt=salt, uuid=identity)
    log.info("%s: UKI", inputs.version)
    _build_uki(inputs, folder, os_release, tree.root_hash, mtime_s)
    manifest = _manifest(inputs, folder, identity, salt, length_bytes, tree)
    return BuiltRelease(folder, manifest)


def command_line(root_hash: str, panic_s: int, extra: Sequence[str]) -> str:
    """Return the kernel command line of a release."""
    return " ".join([f"roothash={root_hash}", *DEADLINES, f"panic={panic_s}", *extra])


def artifact(path: Path) -> Artifact:
    """Return a file's length and digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(length_bytes=path.stat().st_size, sha256=digest)


def _build_uki(inputs: BuildInputs, folder: Path, os_release: bytes, root_hash: str, mtime_s: int) -> None:
    overlay = folder / "initrd.overlay"
    deadlines = write_cpio(initrd_overlay(), mtime_s)
    overlay.write_bytes(deadlines)
    osrel = folder / "os-release"
    osrel.write_bytes(os_release)
    initrds = list(inputs.initrds)
    if inputs.plain_initrd or inputs.repacked_initrd:
        write = write_plain_initrd if inputs.plain_initrd else write_repacked_initrd
        initrds = [folder / f"initrd.{number}" for number in range(len(inputs.initrds))]
        for initrd, written in zip(inputs.initrds, initrds, strict=True):
            write(initrd, written)
    parts = UkiParts(
        kernel=inputs.kernel,
        initrds=[*initrds, overlay],
        command_line=command_line(root_hash, inputs.panic_s, inputs.command_line),
        os_release=osrel,
        stub=inputs.stub,
        kernel_version=inputs.kernel_version,
    )
    make_uki(parts, folder / "uki.efi", mtime_s=mtime_s, signing=inputs.signing)
    for made in {overlay, osrel, *initrds} - set(inputs.initrds):
        made.unlink()
    if inputs.plain_initrd:
        _require_room_on_the_esp(folder / "uki.efi")
    if inputs.checked:
        require_sound(check_uki(folder / "uki.efi", root_hash, deadlines), "uki.efi")


def _require_room_on_the_esp(uki: Path) -> None:
    length = uki.stat().st_size
    if 2 * length > _ESP_BYTES_FOR_UKIS:
        raise Refused(
            f"with its initrd unpacked the UKI has {length} bytes, and an ESP must hold two",
            mend="build with --repack-initrd instead, or make the initrd smaller",
            reason="uki-too-large",
        )


def _manifest(
    inputs: BuildInputs, folder: Path, identity: uuid.UUID, salt: bytes, length_bytes: int, tree: HashTree
) -> Manifest:
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
        sbom=artifact(folder / "sbom.cdx.json"),
    )
    raw = encode_json(manifest)
    (folder / "manifest.json").write_bytes(raw)
    # The constructor checks no limits: read it as a node will.
    return parse_manifest(raw, "manifest.json")


def _write_sbom(inputs: BuildInputs, root: RootTree, identity: uuid.UUID) -> None:
    raw = make_sbom(
        installed_packages(root),
        image_id=inputs.image_id,
        version=inputs.version,
        vendor=vendor_of(root),
        built=inputs.built,
        serial=identity,
    )
    (inputs.out / "sbom.cdx.json").write_bytes(raw)


@contextmanager
def _opened(inputs: BuildInputs) -> Iterator[RootTree]:
    if not inputs.root_is_image:
        with open_root_tree(inputs.root) as root:
            yield root
        return
    with tempfile.TemporaryDirectory(dir=inputs.out) as folder:
        extract_root_image(inputs.root, Path(folder))
        with open_root_tree(Path(folder)) as root:
            yield root
