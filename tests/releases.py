"""Tiny signed releases, published by the real tools into a real repository in a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tests.disks import image_of, root_of
from tests.portable_executable import build_uki
from updater.manifest import Manifest, parse_manifest
from updater.release.channels import promote, withdraw
from updater.release.create import create
from updater.release.keys import KeyRing, new_names
from updater.release.publish import publish
from updater.release.repository import opened, utc_now
from updater.release.settings import DEFAULT_LIFETIMES_S, Settings
from updater.release.transport import Ways
from updater.schema import encode_json

BLOCKS = 150


@dataclass(frozen=True)
class Release:
    """A built release with all its bytes."""

    manifest: Manifest
    raw: bytes
    image: bytes
    tree: bytes
    uki: bytes

    @property
    def version(self) -> str:
        """Return the version."""
        return self.manifest.version

    def write(self, folder: Path) -> Path:
        """Write the folder that `acl-release build` would leave; return it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_bytes(self.raw)
        (folder / "root.img").write_bytes(self.image)
        (folder / "root.tree").write_bytes(self.tree)
        (folder / "uki.efi").write_bytes(self.uki)
        return folder


def make_release(
    version: str,
    *,
    seed: int | None = None,
    blocks: int = BLOCKS,
    epoch: int = 1,
    layouts: tuple[str, ...] = ("dps-root",),
    image: bytes | None = None,
) -> Release:
    """Build a release whose image is `blocks` random blocks, or `image`."""
    if image is None:
        image = image_of(
            blocks, seed=seed if seed is not None else int(hashlib.sha256(version.encode()).hexdigest()[:8], 16)
        )
    root, tree = root_of(image)
    uki = build_uki(version, f"roothash={root.root_hash} systemd.verity_root_options=panic-on-corruption panic=1")
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
        "addons": [],
    }
    raw = encode_json(document)
    return Release(parse_manifest(raw, version), raw, image, tree, uki)


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
