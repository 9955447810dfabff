"""Tiny signed releases, published by the real tools into a real repository in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.disks import image_of, root_of
from tests.portable_executable import build_pe, build_uki
from updater.layouts import Layout, load_layout
from updater.manifest import Manifest, parse_manifest
from updater.release.channels import promote, withdraw
from updater.release.create import create
from updater.release.keys import KeyRing, new_names
from updater.release.publish import publish
from updater.release.repository import opened, utc_now
from updater.release.settings import DEFAULT_LIFETIMES_S, Settings
from updater.release.transport import Ways
from updater.schema import encode_json
from updater.slots import Slot

BLOCKS = 150


@dataclass(frozen=True)
class Release:
    """A built release with all its bytes."""

    manifest: Manifest
    raw: bytes
    image: bytes
    tree: bytes
    uki: bytes
    addons: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Return the version."""
        return self.manifest.version

    def addons_of(self, slot: Slot) -> dict[str, bytes]:
        """Return the addons that a slot gets."""
        return {addon.name: self.addons[addon.name] for addon in self.manifest.addons if addon.slot in (None, slot)}

    def write(self, folder: Path) -> Path:
        """Write the folder that `acl-release build` would leave; return it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_bytes(self.raw)
        (folder / "root.img").write_bytes(self.image)
        (folder / "root.tree").write_bytes(self.tree)
        (folder / "uki.efi").write_bytes(self.uki)
        for name, content in self.addons.items():
            (folder / "addons").mkdir(exist_ok=True)
            (folder / "addons" / name).write_bytes(content)
        return folder


def make_release(
    version: str,
    *,
    seed: int | None = None,
    blocks: int = BLOCKS,
    epoch: int = 1,
    layouts: tuple[str, ...] = ("dps-root",),
    image: bytes | None = None,
    layout: Layout | None = None,
) -> Release:
    """Build a release whose image is `blocks` random blocks, or `image`.

    Where the PARTUUIDs of `layout` (or else of the first one) are fixed it has an addon for each slot.
    """
    if image is None:
        image = image_of(
            blocks, seed=seed if seed is not None else int(hashlib.sha256(version.encode()).hexdigest()[:8], 16)
        )
    root, tree = root_of(image)
    layout = layout or load_layout(layouts[0])
    addons: dict[str, bytes] = {}
    words = f"roothash={root.root_hash} systemd.verity_root_options=panic-on-corruption panic=1"
    if layout.partition("data", Slot.A).fixed_partuuid:
        words = "panic=1"
        for slot in Slot:
            line = verity_words(layout, slot, root.root_hash)
            addons[f"slot-{slot}.addon.efi"] = build_pe([(".text", b"\xc3"), (".cmdline", line.encode())])
    uki = build_uki(version, words)
    document = {
        "format": 1,
        "version": version,
        "image_id": "acl-reference",
        "architecture": "x86-64",
        "layouts": list(layouts),
        "built": "2026-11-01T00:00:00Z",
        "security_epoch": epoch,
        "root": json.loads(encode_json(root)),
        "uki": {"length_bytes": len(uki), "sha256": hashlib.sha256(uki).hexdigest()},
        "addons": [
            {
                "name": name,
                "length_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "slot": name[len("slot-")],
            }
            for name, content in addons.items()
        ],
    }
    raw = encode_json(document)
    return Release(parse_manifest(raw, version), raw, image, tree, uki, addons)


def verity_words(layout: Layout, slot: Slot, root_hash: str) -> str:
    """Return the kernel's words that boot one slot of a layout whose PARTUUIDs are fixed."""
    data = layout.partition("data", slot)
    offset = data.hash_offset_bytes
    tree = data if offset else layout.partition("hash", slot)
    where = f"hash-offset={offset}," if offset else ""
    return (
        f"usrhash={root_hash} systemd.verity_usr_data=PARTUUID={data.partuuid} "
        f"systemd.verity_usr_hash=PARTUUID={tree.partuuid} systemd.verity_usr_options={where}panic-on-corruption"
    )


class Publisher:
    """A release engineer with a repository in a folder and all keys at hand."""

    def __init__(self, folder: Path) -> None:
        """Make keys and an empty repository below `folder`."""
        self.folder = folder
        self.mirror = folder / "repo"
        self.ring = KeyRing([folder / "keys"])
        for name in new_names(2):
            self.ring.create(name, "ed25519", None)
        create(self.mirror, self.ring, Settings(dict(DEFAULT_LIFETIMES_S)), None, utc_now)

    @property
    def roots(self) -> list[Path]:
        """Return the trusted roots that images ship."""
        return sorted((self.mirror / "metadata").glob("*.root.json"))

    def publish(self, *releases: Release, ways: Ways | None = None) -> None:
        """Publish releases, by themselves or with what `ways` says they shall travel in."""
        folders = [release.write(self.folder / "out" / release.version) for release in releases]
        with opened(self.mirror, self.ring, utc_now) as repository:
            publish(repository, folders, ways)

    def promote(self, version: str, channel: str = "stable") -> None:
        """Let a channel offer a release."""
        with opened(self.mirror, self.ring, utc_now) as repository:
            promote(repository, version, channel)

    def withdraw(self, version: str, why: str) -> None:
        """Put a release on the signed list."""
        with opened(self.mirror, self.ring, utc_now) as repository:
            withdraw(repository, version, why, None)
