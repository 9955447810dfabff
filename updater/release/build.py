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
from updater.layouts import Layout, load_layout
from updater.manifest import Addon, Artifact, Manifest, Root, parse_manifest
from updater.release.cpio import write_cpio
from updater.release.erofs import make_root_image, pad_to_blocks
from updater.release.hashtree import HashTree, make_hash_tree
from updater.release.image_checks import check_root_tree, require_sound
from updater.release.plain_initrd import write_plain_initrd, write_repacked_initrd
from updater.release.ready_image import extract_image
from updater.release.root_tree import RootTree, open_root_tree, read_text
from updater.release.sbom import installed_packages, make_sbom, vendor_of
from updater.release.uki import DEADLINES, SecureBoot, UkiParts, make_addon, make_uki
from updater.release.uki_checks import check_uki
from updater.release.unit_layer import initrd_overlay, slot_seeker
from updater.release.usr_tree import ETC_DEFAULTS, as_root_tree, write_usr_tree
from updater.release.verity_parameters import VerityParameters, verity_parameters
from updater.schema import encode_json
from updater.slots import Slot

log = logging.getLogger(__name__)

# An ESP of 192 MiB without its file system, loader, entries and addons.
_ESP_BYTES_FOR_UKIS = 176 << 20

# Every UUID of a release is derived under this one, so that the same inputs give the same root hash.
_NAMESPACE = uuid.UUID("5f0c3d0e-6f0e-5d53-9a3a-7a6a5b1f4c2e")


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """What a release is made of; `root` is a tree (folder or tar), or a ready image where `root_is_image`.

    What of the tree swaps is said by the layouts: all of it, or its usr/ with etc/ as the folder `etc_defaults` in it.
    With `slot_addons` each slot gets an addon with its verity parameters, which are in the UKI otherwise.

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
    addon_stub: Path | None = None
    signing: SecureBoot | None = None
    plain_initrd: bool = False
    repacked_initrd: bool = False
    slot_addons: bool = False
    etc_defaults: str = ETC_DEFAULTS
    checked: bool = True


@dataclass(frozen=True, slots=True)
class BuiltRelease:
    """A release's folder: manifest.json, root.img, root.tree, uki.efi, addons/ and sbom.cdx.json."""

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

    def addon(self, name: str) -> Path:
        """Return an addon by its name in the manifest."""
        return self.folder / "addons" / name


def build_release(inputs: BuildInputs) -> BuiltRelease:
    """Build a release into `inputs.out`; the same inputs give the same bytes.

    Raises InvalidDocument for a bad version or name, Refused for an image whose failed boot would not end by itself,
    and EnvironmentFailure for a missing tool.
    """
    if inputs.built.tzinfo is None:
        raise InvalidDocument("build", "built", "the time has no zone", "give it in UTC")
    mtime_s = int(inputs.built.timestamp())
    layout = _layout(inputs)
    folder = inputs.out
    folder.mkdir(parents=True, exist_ok=True)
    identity = uuid.uuid5(_NAMESPACE, f"{inputs.image_id}/{inputs.version}")
    # One salt for all releases of an image: equal blocks have equal digests, so a node's own hash tree is an index of
    # the blocks that it already holds.
    salt = hashlib.sha256(f"salt/{inputs.image_id}".encode()).digest()
    image = folder / "root.img"
    log.info("%s: checking the root, listing its packages", inputs.version)
    with _opened(inputs, layout) as root:
        if inputs.checked:
            needed = slot_seeker(layout) if _seeks(inputs, layout) else {}
            require_sound(check_root_tree(root, inputs.version, needed), str(inputs.root))
        os_release = (read_text(root, "etc/os-release") or read_text(root, "usr/lib/os-release") or "").encode()
        _write_sbom(inputs, root, identity)
    log.info("%s: root image and hash tree", inputs.version)
    length_bytes = _make_image(inputs, layout, image, identity, mtime_s)
    tree = make_hash_tree(image, folder / "root.tree", salt=salt, uuid=identity)
    log.info("%s: UKI", inputs.version)
    parameters = verity_parameters(layout, tree.root_hash, per_slot=inputs.slot_addons)
    addons = _make_addons(inputs, parameters, folder, mtime_s)
    _build_uki(inputs, layout, parameters, os_release, tree.root_hash, addons)
    manifest = _manifest(inputs, folder, identity, salt, length_bytes, tree, addons)
    return BuiltRelease(folder, manifest)


def command_line(verity: Sequence[str], panic_s: int, extra: Sequence[str]) -> str:
    """Return the command line of a release's UKI; `verity` may be empty where addons carry those words."""
    return " ".join([*verity, *DEADLINES, f"panic={panic_s}", *extra])


def artifact(path: Path) -> Artifact:
    """Return a file's length and digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(length_bytes=path.stat().st_size, sha256=digest)


def _layout(inputs: BuildInputs) -> Layout:
    """Return the first layout; raise InvalidDocument when a release cannot be for all of them at once."""
    layouts = [load_layout(name) for name in inputs.layouts]
    first, *others = (verity_parameters(layout, "", per_slot=inputs.slot_addons) for layout in layouts)
    if any(other != first for other in others):
        raise InvalidDocument(
            "build",
            "layouts",
            f"{' and '.join(inputs.layouts)} do not find a slot by the same kernel parameters",
            "build one release for each",
        )
    return layouts[0]


def _seeks(inputs: BuildInputs, layout: Layout) -> bool:
    return layout.partition("data", Slot.A).fixed_partuuid is not None and not inputs.slot_addons


def _make_image(inputs: BuildInputs, layout: Layout, image: Path, identity: uuid.UUID, mtime_s: int) -> int:
    if inputs.root_is_image:
        shutil.copyfile(inputs.root, image)
        return pad_to_blocks(image)
    if layout.swaps == "root":
        return make_root_image(inputs.root, image, uuid=identity, mtime_s=mtime_s)
    tree = image.with_name("usr.tar")
    try:
        write_usr_tree(inputs.root, tree, etc_defaults=inputs.etc_defaults)
        return make_root_image(tree, image, uuid=identity, mtime_s=mtime_s)
    finally:
        tree.unlink(missing_ok=True)


def _make_addons(inputs: BuildInputs, parameters: VerityParameters, folder: Path, mtime_s: int) -> list[Addon]:
    made = []
    for slot, words in parameters.addons.items():
        path = folder / "addons" / f"slot-{slot}.addon.efi"
        path.parent.mkdir(exist_ok=True)
        make_addon(words, path, stub=inputs.addon_stub, mtime_s=mtime_s, signing=inputs.signing)
        pinned = artifact(path)
        made.append(Addon(name=path.name, length_bytes=pinned.length_bytes, sha256=pinned.sha256, slot=slot))
    return made


def _build_uki(
    inputs: BuildInputs,
    layout: Layout,
    parameters: VerityParameters,
    os_release: bytes,
    root_hash: str,
    addons: Sequence[Addon],
) -> None:
    folder, mtime_s = inputs.out, int(inputs.built.timestamp())
    overlay = folder / "initrd.overlay"
    deadlines = write_cpio(initrd_overlay(layout if _seeks(inputs, layout) else None), mtime_s)
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
        command_line=command_line(parameters.uki, inputs.panic_s, inputs.command_line),
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
        beside = [folder / "addons" / addon.name for addon in addons]
        findings = check_uki(folder / "uki.efi", root_hash, deadlines, addons=beside, swaps=layout.swaps)
        require_sound(findings, "uki.efi")


def _require_room_on_the_esp(uki: Path) -> None:
    length = uki.stat().st_size
    if 2 * length > _ESP_BYTES_FOR_UKIS:
        raise Refused(
            f"with its initrd unpacked the UKI has {length} bytes, and an ESP must hold two",
            mend="build with --repack-initrd instead, or make the initrd smaller",
            reason="uki-too-large",
        )


def _manifest(
    inputs: BuildInputs,
    folder: Path,
    identity: uuid.UUID,
    salt: bytes,
    length_bytes: int,
    tree: HashTree,
    addons: list[Addon],
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
        addons=addons,
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
def _opened(inputs: BuildInputs, layout: Layout) -> Iterator[RootTree]:
    if not inputs.root_is_image:
        with open_root_tree(inputs.root) as root:
            yield root
        return
    with tempfile.TemporaryDirectory(dir=inputs.out) as folder:
        unpacked = Path(folder) / "image"
        unpacked.mkdir()
        extract_image(inputs.root, unpacked)
        if layout.swaps == "usr":
            unpacked = as_root_tree(unpacked, etc_defaults=inputs.etc_defaults)
        with open_root_tree(unpacked) as root:
            yield root
