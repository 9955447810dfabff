"""Our side of a pair: the built releases, their signed repository, and a node's disk with the older one."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from integration.bench.measure import Usage, run_measured
from integration.bench.pairs import NEW, Side, built_at
from integration.images.disk import make_factory_disk
from integration.images.reference import with_tools
from integration.images.tooltree import ToolTree
from updater.layouts import Layout, layout_folders, load_layout, parse_layout
from updater.manifest import parse_manifest
from updater.release.build import BuildInputs, BuiltRelease, build_release
from updater.run import find_tool, run
from updater.slots import Slot

log = logging.getLogger(__name__)

IMAGE_ID = "acl-bench"
_MIB = 1 << 20
_PUBLISHING_S = 3600.0
_CLI = "import sys; from {module} import main; sys.exit(main())"
CLIENT = [sys.executable, "-c", _CLI.format(module="updater.cli")]
PUBLISHER = [sys.executable, "-c", _CLI.format(module="updater.release.cli")]


def build_side(side: Side, out: Path, tools: ToolTree) -> BuiltRelease:
    """Build one release as `acl-release build` does, without its checks: these roots hold no updater and never boot."""
    with_tools(tools)
    return build_release(
        BuildInputs(
            version=side.version,
            image_id=IMAGE_ID,
            built=built_at(side.version),
            root=side.root,
            kernel=side.kernel,
            initrds=[side.initrd],
            out=out,
            stub=tools.stub,
            repacked_initrd=True,
            checked=False,
        )
    )


def existing(folder: Path) -> BuiltRelease:
    """Return a release that was built before."""
    raw = (folder / "manifest.json").read_bytes()
    return BuiltRelease(folder, parse_manifest(raw, str(folder)))


@dataclass(frozen=True, slots=True)
class Site:
    """A repository in a folder, with its keys and the roots that nodes trust."""

    folder: Path

    @property
    def repository(self) -> Path:
        """Return the folder that is served."""
        return self.folder / "repository"

    @property
    def trust(self) -> Path:
        """Return the folder with the trusted roots."""
        return self.folder / "trust"

    def command(self, *words: str | Path) -> list[str]:
        """Return the words of one `acl-release` command on this repository."""
        # Before the verb, where options stand that every verb knows.
        return [*PUBLISHER, "--repo", str(self.repository), "--keys", str(self.folder / "keys"), *map(str, words)]


def make_site(site: Site, old: BuiltRelease, new: BuiltRelease, older: Sequence[str], newer: Sequence[str]) -> Usage:
    """Publish a pair, each release with its own options, and offer the newer; return what publishing that one cost."""
    shutil.rmtree(site.folder, ignore_errors=True)
    site.folder.mkdir(parents=True)
    run(site.command("keys", "init", "--root-keys", "1"), timeout_s=_PUBLISHING_S)
    run(site.command("repo", "init"), timeout_s=_PUBLISHING_S)
    run(site.command("publish", *older, old.folder), timeout_s=_PUBLISHING_S)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    cost = run_measured(site.command("publish", *newer, new.folder), env=environment, folder=site.folder)
    run(site.command("promote", new.manifest.version, "--channel", "stable"), timeout_s=_PUBLISHING_S)
    site.trust.mkdir()
    for root in sorted((site.repository / "metadata").glob("*.root.json")):
        shutil.copy2(root, site.trust / root.name)
    return cost


def roomy_layout(folder: Path, releases: Sequence[BuiltRelease]) -> Path:
    """Write the reference layout with slots in which the releases fit; return its file."""
    data = max(release.manifest.root.length_bytes for release in releases)
    tree = max(release.manifest.root.tree_length_bytes for release in releases) + 4096
    shipped = _layout_file("dps-root")
    document = yaml.safe_load(shipped.read_text())
    for partition in document["partitions"]:
        if partition["role"] in ("data", "hash"):
            length = data if partition["role"] == "data" else tree
            partition["length"] = f"{-(-length // _MIB)}MiB"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "layout.yaml"
    target.write_text(yaml.safe_dump(document, sort_keys=False))
    return target


def _layout_file(name: str) -> Path:
    load_layout(name)
    return next(folder / f"{name}.yaml" for folder in layout_folders() if (folder / f"{name}.yaml").is_file())


@dataclass(frozen=True, slots=True)
class Disk:
    """A node's disk in a file, and how it goes back to its factory state."""

    path: Path
    pristine: Path
    layout_file: Path

    @property
    def layout(self) -> Layout:
        """Return its layout."""
        return parse_layout(self.layout_file.read_bytes(), str(self.layout_file))

    def offset(self, role: str, slot: Slot) -> int:
        """Return where a slot's partition begins, in bytes."""
        offset = _MIB
        for partition in self.layout.partitions:
            if partition.role == role and partition.slot is slot:
                return offset
            offset += partition.length_bytes
        raise LookupError(role)

    def reset(self) -> None:
        """Put back all but the running slot's image: table, boot partition, records; the other slot becomes a hole."""
        first = self.offset("data", Slot.A)
        last = first + self.layout.partition("data", Slot.A).length_bytes
        length = self.pristine.stat().st_size
        if not self.path.exists():
            run(["cp", "--sparse=always", self.pristine, self.path], timeout_s=1800)
            return
        for begin, end in ((0, first), (last, length)):
            words = ["--punch-hole", "--offset", str(begin), "--length", str(end - begin)]
            run([find_tool("fallocate", package="util-linux"), *words, self.path], timeout_s=1800)
            copy_sparse(self.pristine, self.path, begin, end)


def make_disk(folder: Path, old: BuiltRelease, layout_file: Path, tools: ToolTree) -> Disk:
    """Make a node's disk whose running slot holds the older release."""
    disk = Disk(folder / "node.raw", folder / "pristine.raw", layout_file)
    disk.path.unlink(missing_ok=True)
    make_factory_disk(old, disk.pristine, tools, layout=disk.layout)
    return disk


def write_settings(target: Path, url: str, site: Site, disk: Disk, network: Mapping[str, int]) -> Path:
    """Write a node's configuration; return it."""
    settings: dict[str, object] = {
        "layout": str(disk.layout_file),
        "mirrors": [url],
        "trusted_roots": str(site.trust),
    }
    if network:
        settings["network"] = dict(network)
    target.write_text(yaml.safe_dump(settings))
    return target


def stage_command(disk: Disk, settings: Path) -> list[str]:
    """Return the words that stage the newer release on a node's disk."""
    return [*CLIENT, "--disk", str(disk.path), "--config", str(settings), "--json", "stage", "--to", NEW]


def copy_sparse(source: Path, target: Path, begin: int, end: int) -> None:
    """Copy the bytes from `begin` to `end`, without the holes, into a file that has zeros there."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        position = begin
        while position < end:
            try:
                position = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            if position >= end:
                return
            stop = min(end, os.lseek(reader.fileno(), position, os.SEEK_HOLE))
            while position < stop:
                chunk = os.pread(reader.fileno(), min(_MIB, stop - position), position)
                os.pwrite(writer.fileno(), chunk, position)
                position += len(chunk)
