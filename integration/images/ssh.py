"""The SSH server of lab images: dropbear, with the libraries that the base lacks."""

from __future__ import annotations

import logging
from pathlib import Path

from integration.images.base import SUITE
from integration.images.cache import cached
from integration.images.debian import PackageStore, find_mirror, keyring, sources, unpack
from updater.release.cpio import TreeFile, read_files
from updater.run import run

log = logging.getLogger(__name__)

PROGRAM = "usr/lib/acl-lab/dropbear"
_PACKAGES = ("dropbear-bin", "libtomcrypt1", "libtommath1")
_LIBRARIES = "usr/lib/x86_64-linux-gnu/"


def ssh_layer() -> dict[str, TreeFile]:
    """Return the server and its libraries by path in the root tree; no unit starts it: see `integration.lab.ssh`."""
    files = read_files(cached("ssh", {"recipe": 1, "suite": SUITE, "packages": _PACKAGES}, _make) / "tree")
    layer = {name: file for name, file in files.items() if name.startswith(_LIBRARIES)}
    return {**layer, PROGRAM: TreeFile(files["usr/sbin/dropbear"].content, 0o755)}


def _make(folder: Path, final: Path) -> None:
    log.info("ssh: fetching the lab's SSH server")
    apt = PackageStore(folder / "apt", sources(find_mirror(), SUITE, keyring()))
    apt.refresh()
    unpack(apt.download(_PACKAGES, with_dependencies=False), folder / "tree")
    run(["rm", "-rf", folder / "apt"])
