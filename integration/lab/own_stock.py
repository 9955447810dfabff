"""A stock of the user's own releases, in the place of the lab's."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from integration.lab.disk import VARIABLES
from integration.lab.emulator import find_emulator
from integration.lab.factory import forget_old, make_stock, renewed
from integration.lab.publisher import acl_release, promote
from integration.lab.scenario import Own, Scenario
from integration.lab.stock import Known, Stock
from integration.lab.terms import Misuse
from updater.layouts import load_layout
from updater.manifest import Manifest, parse_manifest

log = logging.getLogger(__name__)


def stock_for(scenario: Scenario) -> Stock:
    """Return what a scenario starts from: the lab's stock of its layout, or one of the releases that it brings."""
    if scenario.own is None:
        return make_stock(scenario.layout)
    releases = {number: Path(folder) for number, folder in scenario.own.releases.items()}
    return _own_stock(scenario.own, releases, scenario.layout)


def _own_stock(own: Own, folders: Mapping[int, Path], layout: str) -> Stock:
    from integration.images.cache import cached

    manifests = {number: read_manifest(folder) for number, folder in folders.items()}
    _refuse_unfit(own, manifests, layout)
    digests = {number: _digest(folder / "manifest.json") for number, folder in folders.items()}
    recipe = {"own": 1, "layout": layout, "releases": digests, "disk": own.disk is not None}
    home = cached("lab-stock", recipe, lambda folder, final: _make(folder, final, own, dict(folders), layout))
    emulator = find_emulator()
    variables = Path(own.variables) if own.variables is not None else None
    made = home / VARIABLES
    return Stock(
        emulator,
        Path(own.disk) if own.disk is not None else home / "factory.raw",
        renewed(home),
        home / "keys",
        {
            number: Known(number, manifest.version, manifest.root.root_hash, "your own")
            for number, manifest in manifests.items()
        },
        home / "trust",
        {"releases": ", ".join(manifest.version for manifest in manifests.values())},
        layout,
        variables=variables or (made if made.exists() else None),
        trusting=variables,
    )


@cache
def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a release's folder; raise Misuse where `acl-release build` left none."""
    path = folder / "manifest.json"
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise Misuse(
            f"there is no release in {folder}: {error.strerror}",
            mend="name a folder that `acl-release build` left",
            reason="no-release",
        ) from error


def _refuse_unfit(own: Own, manifests: Mapping[int, Manifest], layout: str) -> None:
    for manifest in manifests.values():
        if layout not in manifest.layouts:
            raise Misuse(
                f"release {manifest.version} is for {', '.join(manifest.layouts)}, the scenario for {layout}",
                mend="write its `layout`, or build the release for this one",
                reason="wrong-layout",
            )
    for path, what in ((own.disk, "disk image"), (own.variables, "store of EFI variables")):
        if path is not None and not Path(path).is_file():
            raise Misuse(f"there is no {what} {path}", mend="name a file, beside the scenario's", reason="no-disk")
    if own.disk is not None and own.variables is None and load_layout(layout).boot.backend == "efi-bootnext":
        raise Misuse(
            f"a disk of {layout} boots by variables, and none were given",
            mend="give `variables`, its store",
            reason="no-variables",
        )


def _make(folder: Path, final: Path, own: Own, folders: dict[int, Path], layout: str) -> None:
    keys, repository, trust = folder / "keys", folder / "repository", folder / "trust"
    acl_release("keys", "init", "--keys", keys)
    acl_release("repo", "init", "--repo", repository, "--keys", keys)
    trust.mkdir()
    shutil.copyfile(repository / "metadata/1.root.json", trust / "1.root.json")
    log.info("lab: publishing %d releases of yours", len(folders))
    acl_release("publish", "--plain", *folders.values(), "--repo", repository, "--keys", keys)
    promote(repository, keys, read_manifest(folders.get(2, folders[1])).version)
    if own.disk is None:
        _make_disk(folder, folders[1], layout)
    forget_old(final)


def _make_disk(folder: Path, release: Path, name: str) -> None:
    from integration.images.boot_options import make_boot_options
    from integration.images.disk import make_factory_disk
    from integration.images.tooltree import tool_tree
    from updater.release.build import BuiltRelease

    layout = load_layout(name)
    make_factory_disk(BuiltRelease(release, read_manifest(release)), folder / "factory.raw", tool_tree(), layout=layout)
    if layout.boot.backend == "efi-bootnext":
        make_boot_options(folder / "factory.raw", layout, find_emulator().firmware_variables, folder / VARIABLES)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
