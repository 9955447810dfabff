"""Makes the lab's stock: keys, releases, a repository and a factory disk, cached by what they are made of."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import msgspec

from integration.images.reference import ReleaseSpec
from integration.lab.disk import VARIABLES
from integration.lab.emulator import find_emulator
from integration.lab.publisher import acl_release, link, promote
from integration.lab.stock import Known, Stock
from integration.lab.terms import DEFAULT_LAYOUT
from updater.layouts import Layout, load_layout
from updater.manifest import Manifest, parse_manifest, tree_length_bytes
from updater.release.cpio import TreeFile
from updater.release.uki import SecureBoot
from updater.slots import Slot

log = logging.getLogger(__name__)

_SOURCES = ("updater", "rollback", "partition-layouts", "integration/images")
_FILES = ("pyproject.toml", "constraints.txt")
_TOP = Path(__file__).resolve().parents[2]
_TRUST = "usr/share/acl-updater/trust"
_TRUSTING = "efi-variables.secure-boot.fd"

# Number -> version and what it is for. Number 1 is the factory release, 4 is older than it.
VERSIONS = {
    1: ("1.0.0", "the factory release"),
    2: ("2.0.0", "the update under test: faults are injected into it from outside"),
    3: ("3.0.0", "the next good update"),
    4: ("0.9.0", "an older release, for downgrades"),
    5: ("5.0.0", "larger than any slot: its manifest only"),
}
# More of them for disks on which only /usr swaps.
USR_VERSIONS = {
    6: ("6.0.0", "its /usr is btrfs"),
    7: ("7.0.0", "no addon names its slot: the initrd seeks it by the hash tree"),
    8: ("8.0.0", "with a UKI that leaves an ESP no room for two: its manifest only"),
}
_TOO_LARGE, _UKI_TOO_LARGE = 5, 8
_LARGE_BYTES = 8 << 30
_LARGE_UKI_BYTES = 170 << 20
# Well within the life of a timestamp, and longer than any run.
_FRESH_S = 12 * 3600
_UNUSED_S = 4 * 3600


@cache
def make_stock(layout: str = DEFAULT_LAYOUT) -> Stock:
    """Return the lab's stock for a layout, built on first use and after every change of what it is made of."""
    from integration.images.cache import cached

    emulator = find_emulator()
    home = cached("lab-stock", recipe(layout), lambda folder, final: _make(folder, final, layout))
    repository = renewed(home)
    about_releases = versions_for(load_layout(layout))
    releases = {
        int(number): Known(int(number), item["version"], item["root_hash"], about_releases[int(number)][1])
        for number, item in json.loads((home / "releases.json").read_text()).items()
    }
    about = {"loader": f"systemd-boot {(home / 'loader').read_text().strip()}"}
    store = home / VARIABLES
    return Stock(
        emulator,
        home / "factory.raw",
        repository,
        home / "keys",
        releases,
        home / "trust",
        about,
        layout,
        variables=store if store.exists() else None,
        trusting=home / _TRUSTING if (home / _TRUSTING).exists() else None,
    )


def versions_for(layout: Layout) -> dict[int, tuple[str, str]]:
    """Return the releases of a layout's stock by number: each one's version and what it is for."""
    return VERSIONS | (USR_VERSIONS if layout.swaps == "usr" else {})


def _spec(number: int, layout: Layout, trusted: Mapping[str, TreeFile], signing: SecureBoot | None) -> ReleaseSpec:
    # As Azure Container Linux has it: addons carry the verity parameters.
    addons = layout.partition("data", Slot.A).fixed_partuuid is not None and number != 7
    return ReleaseSpec(
        versions_for(layout)[number][0],
        changes=trusted,
        layout=layout.name,
        slot_addons=addons,
        file_system="btrfs" if number == 6 else "erofs",
        signing=signing,
    )


def recipe(layout: str = DEFAULT_LAYOUT) -> dict[str, object]:
    """Return what the stock is made of: the digest of all sources that reach an image or the repository."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in _source_files():
        digest.update(f"{path.relative_to(_TOP)}\0".encode() + path.read_bytes() + b"\0")
    return {"format": 1, "layout": layout, "sources": digest.hexdigest()}


def _source_files() -> Iterable[Path]:
    for name in _SOURCES:
        yield from sorted(p for p in (_TOP / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    yield from (_TOP / name for name in _FILES)


def _make(folder: Path, final: Path, layout: str) -> None:
    from integration.images.boot_options import make_boot_options
    from integration.images.disk import make_factory_disk
    from integration.images.reference import build, prepare
    from integration.images.secure_boot import enroll, make_key

    disk_layout = load_layout(layout)
    parts = prepare()
    keys, repository = folder / "keys", folder / "repository"
    acl_release("keys", "init", "--keys", keys)
    acl_release("repo", "init", "--repo", repository, "--keys", keys)
    trust = folder / "trust"
    trust.mkdir()
    shutil.copyfile(repository / "metadata/1.root.json", trust / "1.root.json")
    root = TreeFile((trust / "1.root.json").read_bytes())
    # A firmware without Secure Boot does not look at signatures, so that one stock serves both.
    signing = make_key(folder / "secure-boot") if disk_layout.is_uefi else None
    known = {}
    for number, (version, _) in versions_for(disk_layout).items():
        if number in (_TOO_LARGE, _UKI_TOO_LARGE):
            continue
        log.info("lab: building release %s", version)
        spec = _spec(number, disk_layout, {f"{_TRUST}/1.root.json": root}, signing)
        release = build(spec, folder / f"build-{number}", parts)
        known[number] = {"version": version, "root_hash": release.manifest.root.root_hash}
        if number == 1:
            make_factory_disk(release, folder / "factory.raw", parts.tools, signing=signing)
            store = find_emulator().firmware_variables
            if disk_layout.boot.backend == "efi-bootnext":
                make_boot_options(folder / "factory.raw", disk_layout, store, folder / VARIABLES)
                store = folder / VARIABLES
            if signing is not None:
                enroll(store, folder / _TRUSTING, signing.certificate)
    builds = sorted(folder.glob("build-*"))
    # Plain: scenarios cut and tamper by bytes served, and compressing four releases takes minutes.
    acl_release("publish", "--plain", *builds, "--repo", repository, "--keys", keys)
    known[_TOO_LARGE] = _publish_too_large(repository, keys, builds[0])
    if _UKI_TOO_LARGE in versions_for(disk_layout):
        known[_UKI_TOO_LARGE] = _publish_uki_too_large(repository, keys, builds[0])
    promote(repository, keys, VERSIONS[2][0])
    for build_folder in builds:
        shutil.rmtree(build_folder)
    forget_old(final)
    (folder / "releases.json").write_text(json.dumps(known, indent=2))
    (folder / "loader").write_text(f"{parts.tools.loader_version}\n")


def forget_old(final: Path) -> None:
    """Remove stocks that nobody has used for a while: each weighs gigabytes, and every change of a source makes one."""
    for other in final.parent.iterdir():
        if other.is_dir() and other != final and time.time() - other.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)


def _publish_too_large(repository: Path, keys: Path, model: Path) -> dict[str, str]:
    """Publish a manifest alone: a node must refuse it before it asks for the first byte of the image."""
    manifest = _model_manifest(model)
    version = VERSIONS[_TOO_LARGE][0]
    root = msgspec.structs.replace(
        manifest.root,
        length_bytes=_LARGE_BYTES,
        tree_length_bytes=tree_length_bytes(_LARGE_BYTES // 4096),
        root_hash=hashlib.sha256(version.encode()).hexdigest(),
    )
    return _publish_manifest(repository, keys, msgspec.structs.replace(manifest, version=version, root=root))


def _publish_uki_too_large(repository: Path, keys: Path, model: Path) -> dict[str, str]:
    manifest = _model_manifest(model)
    version = USR_VERSIONS[_UKI_TOO_LARGE][0]
    root = msgspec.structs.replace(manifest.root, root_hash=hashlib.sha256(version.encode()).hexdigest())
    uki = msgspec.structs.replace(manifest.uki, length_bytes=_LARGE_UKI_BYTES)
    return _publish_manifest(repository, keys, msgspec.structs.replace(manifest, version=version, root=root, uki=uki))


def _model_manifest(model: Path) -> Manifest:
    return parse_manifest((model / "manifest.json").read_bytes(), "manifest.json")


def _publish_manifest(repository: Path, keys: Path, manifest: Manifest) -> dict[str, str]:
    from updater.release.keys import KeyRing
    from updater.release.repository import opened, utc_now
    from updater.schema import encode_json

    with opened(repository, KeyRing([keys]), utc_now) as revision:
        revision.put_target(f"manifests/{manifest.version}.json", encode_json(manifest))
        revision.publish()
    return {"version": manifest.version, "root_hash": manifest.root.root_hash}


def renewed(home: Path) -> Path:
    """Return a copy of the cached repository whose short-lived metadata is fresh."""
    from integration.images.cache import locked

    work = home / "served"
    with locked(home / "renew.lock"):
        timestamp = work / "metadata/timestamp.json"
        if timestamp.exists() and time.time() - timestamp.stat().st_mtime < _FRESH_S:
            return work
        fresh = home / "served.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(home / "repository", fresh, copy_function=link)
        acl_release("refresh", "--repo", fresh, "--keys", home / "keys")
        shutil.rmtree(work, ignore_errors=True)
        fresh.rename(work)
        return work
