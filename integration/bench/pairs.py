"""Pairs of releases to go from and to, made of Debian packages with and without their security updates.

A stable suite alone is the older release; the same packages with the security suite are the newer one. Packages are
unpacked, never installed: no script runs, no root is needed. Every byte is a vendor's own, except that kernel modules
are decompressed, since two `.ko.xz` have nothing in common for any tool.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration.images.base import EPOCH, SUITE
from integration.images.cache import cached
from integration.images.debian import Mirror, PackageStore, find_mirror, keyring, package_version, sources, unpack
from integration.images.reference import with_tools
from integration.images.tooltree import ToolTree
from updater.errors import EnvironmentFailure
from updater.release.cpio import TreeFile, write_cpio
from updater.run import find_tool, run

log = logging.getLogger(__name__)

OLD, NEW = "1.0.0", "2.0.0"
_SMALL = ("bash", "ca-certificates", "coreutils", "curl", "kmod", "procps", "xz-utils")
_BASE = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "python3", "curl", "ca-certificates",
    "xz-utils",
)  # fmt: skip
_SERVICES = (
    "containerd", "runc", "e2fsprogs", "iputils-ping", "openssh-server", "rsync", "vim", "git", "jq",
    "bind9-dnsutils", "nginx-light", "libnss3-tools", "nodejs", "redis-server", "postgresql-client",
)  # fmt: skip
_CONTAINERS = (
    "containerd", "runc", "docker.io", "docker-cli", "podman", "containernetworking-plugins", "e2fsprogs",
    "iputils-ping", "openssh-server", "rsync", "jq", "bind9-dnsutils",
)  # fmt: skip
_KERNEL = "linux-image-cloud-amd64"
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "var")
# What an initrd for virtual machines holds of a root tree.
_INITRD_LIBRARIES = (
    "acl", "apparmor", "audit", "blkid", "c", "cap", "cap-ng", "crypt", "crypto", "cryptsetup", "devmapper", "fdisk",
    "kmod", "lzma", "m", "mount", "pam", "pcre2-8", "seccomp", "selinux", "ssl", "systemd", "tinfo", "udev", "uuid",
    "z", "zstd",
)  # fmt: skip
_INITRD_FILES = (
    "usr/lib/systemd/systemd*", "usr/lib/udev/*", "usr/bin/udevadm", "usr/bin/systemctl", "usr/bin/journalctl",
    "usr/bin/kmod", "usr/bin/bash", "usr/bin/mount", "usr/bin/umount",
    *(f"usr/lib/x86_64-linux-gnu/lib{name}.so*" for name in _INITRD_LIBRARIES),
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so*", "usr/lib/x86_64-linux-gnu/systemd/*.so*",
)  # fmt: skip
_FILE_SYSTEMS = (
    "btrfs",
    "efivarfs",
    "erofs",
    "ext4",
    "fat",
    "fuse",
    "isofs",
    "jbd2",
    "nls",
    "overlayfs",
    "squashfs",
    "xfs",
)
_SMALL_INITRD = ("drivers/virtio", "drivers/block/virtio_blk.ko", "drivers/nvme", "drivers/md/dm-verity.ko", "fs/erofs")
# What a host may boot from, and no file system of a network.
_FULL_INITRD = (
    "drivers/virtio", "drivers/block", "drivers/nvme", "drivers/scsi", "drivers/md", "drivers/net", "drivers/hv",
    *(f"fs/{name}" for name in _FILE_SYSTEMS), "crypto", "lib", "net/core",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a pair is made of; with `kernel_moves` the newer release has the newer kernel too."""

    name: str
    summary: str
    packages: tuple[str, ...]
    kernel_moves: bool = False
    modules: tuple[str, ...] = _FULL_INITRD


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("Q", "a small root, security updates only", _SMALL, modules=_SMALL_INITRD),
        Recipe("S", "a root of the 512 MiB class, security updates only", _BASE + _SERVICES),
        Recipe(
            "K",
            "a container host of about 700 MB, security updates with a kernel bump",
            (*_BASE, *_CONTAINERS, _KERNEL),
            kernel_moves=True,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Side:
    """One release of a pair before it is built: root tree, kernel, initrd."""

    version: str
    folder: Path

    @property
    def root(self) -> Path:
        """Return the root tree as a tar."""
        return self.folder / "root.tar"

    @property
    def kernel(self) -> Path:
        """Return the kernel image."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Return the initrd."""
        return self.folder / "initrd"

    @property
    def boot_bytes(self) -> int:
        """Return the length of kernel and initrd."""
        return self.kernel.stat().st_size + self.initrd.stat().st_size

    @property
    def packages(self) -> dict[str, str]:
        """Return the versions of its packages."""
        lines = (self.folder / "packages").read_text().splitlines()
        return dict(line.split("\t", 1) for line in lines)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two releases, and what separates them."""

    recipe: Recipe
    old: Side
    new: Side

    @property
    def updated(self) -> list[str]:
        """Return the packages whose version differs, as `name old → new`."""
        before, after = self.old.packages, self.new.packages
        return [f"{name} {before[name]} → {after[name]}" for name in sorted(before) if before[name] != after.get(name)]


def make_pair(name: str, tools: ToolTree) -> Pair:
    """Return a pair, its packages fetched and unpacked on first use; the key is what the archive offers today."""
    recipe = RECIPES[name]
    mirror = find_mirror()
    if not mirror.security_uri:
        raise EnvironmentFailure(
            "this machine's apt names no archive of security updates",
            mend="add Debian's security suite to apt's sources",
            reason="no-security-suite",
        )
    work = cached("bench-lists", {"recipe": 1, "suite": SUITE, "day": f"{datetime.now(UTC):%Y-%m-%d}"}, _lists)
    versions = {kind: (work / f"{kind}.digest").read_text() for kind in ("old", "new")}
    settings = {"recipe": 6, "name": name, "packages": recipe.packages, "versions": versions, "unused": _UNUSED,
                "initrd": [_INITRD_FILES, recipe.modules]}  # fmt: skip
    with_tools(tools)
    folder = cached("bench-pairs", settings, lambda partial, _: _make(recipe, mirror, partial))
    return Pair(recipe, Side(OLD, folder / "old"), Side(NEW, folder / "new"))


def _lists(folder: Path, final: Path) -> None:
    import hashlib

    mirror = find_mirror()
    for kind in ("old", "new"):
        store = _store(folder / kind, mirror, kind)
        store.refresh()
        lists = sorted((folder / kind / "state/lists").glob("*_Packages"))
        digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in lists))
        (folder / f"{kind}.digest").write_text(digest.hexdigest())
        run(["rm", "-rf", folder / kind])


def _store(folder: Path, mirror: Mirror, kind: str) -> PackageStore:
    return PackageStore(folder, sources(mirror if kind == "new" else Mirror(mirror.uri, ""), SUITE, keyring()))


def _make(recipe: Recipe, mirror: Mirror, folder: Path) -> None:
    kernel: list[str] = [] if recipe.kernel_moves else [_KERNEL]
    for kind in ("old", "new"):
        log.info("pair %s: %s packages", recipe.name, "older" if kind == "old" else "newer")
        out = folder / kind
        tree = out / "tree"
        tree.mkdir(parents=True)
        store = _store(out / "apt", mirror, kind)
        store.refresh()
        packages = store.download(recipe.packages)
        _write_versions(packages, out / "packages")
        unpack(packages, tree)
        if kernel and kind == "old":
            extra = _store(out / "apt-kernel", mirror, "old")
            extra.refresh()
            (out / "kernel-tree").mkdir()
            unpack([path for path in extra.download(kernel) if "linux-image" in path.name], out / "kernel-tree")
        _shape(recipe, out, tree, kind)
        run(["rm", "-rf", tree, out / "apt", out / "apt-kernel"], timeout_s=1800)
    run(["rm", "-rf", folder / "old/kernel-tree"])


def _write_versions(packages: Sequence[Path], target: Path) -> None:
    lines = []
    for package in packages:
        name = package.name.split("_", 1)[0]
        lines.append(f"{_unversioned(name)}\t{package_version(package)}\n")
    target.write_text("".join(sorted(lines)))


def _unversioned(name: str) -> str:
    """A kernel's package carries its version in its name, which would hide that it moved."""
    return "linux-image" if name.startswith("linux-image-6") else name


def _shape(recipe: Recipe, out: Path, tree: Path, kind: str) -> None:
    source = tree if recipe.kernel_moves else out.parent / "old/kernel-tree"
    modules = [str(path) for path in source.rglob("*.ko.xz")]
    if modules:
        run([find_tool("xz", package="xz-utils"), "--decompress", *modules], timeout_s=1800)
    (kernel,) = (source / "boot").glob("vmlinuz-*")
    run(["cp", kernel, out / "vmlinuz"])
    release = kernel.name.removeprefix("vmlinuz-")
    log.info("pair %s: initrd for %s", recipe.name, release)
    (out / "initrd.cpio").write_bytes(write_cpio(dict(_initrd(recipe, tree, source, release)), EPOCH))
    run([find_tool("zstd"), "-q", "-15", "-T0", "--rm", "-o", out / "initrd", out / "initrd.cpio"], timeout_s=1800)
    run(["rm", "-rf", *(tree / path for path in (*_UNUSED, "boot"))], timeout_s=1800)
    for name in ("var", "boot", "dev", "proc", "sys", "run", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    (tree / "usr/lib/os-release").write_text(_os_release(OLD if kind == "old" else NEW))
    run(
        [
            find_tool("tar"), "--create", "--file", out / "root.tar", "--sort=name", "--format=pax",
            "--numeric-owner", "--owner=0", "--group=0", f"--mtime=@{EPOCH}", "--clamp-mtime",
            "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "-C", tree, ".",
        ],
        timeout_s=1800,
    )  # fmt: skip


def _initrd(recipe: Recipe, tree: Path, kernel_tree: Path, release: str) -> Iterator[tuple[str, TreeFile]]:
    found = [(tree, path) for pattern in _INITRD_FILES for path in tree.glob(pattern)]
    modules = kernel_tree / f"usr/lib/modules/{release}"
    for name in recipe.modules:
        part = modules / "kernel" / name
        found += [(kernel_tree, path) for path in ([part] if part.is_file() else part.rglob("*.ko*"))]
    for base, path in sorted(found, key=lambda item: str(item[1].relative_to(item[0]))):
        name = str(path.relative_to(base))
        if path.is_symlink():
            yield name, TreeFile(link=str(path.readlink()))
        elif path.is_file():
            yield name, TreeFile(path.read_bytes(), path.stat().st_mode & 0o777)


def _os_release(version: str) -> str:
    return (
        f'ID="acl-bench"\nID_LIKE="debian"\nIMAGE_ID="acl-bench"\nIMAGE_VERSION="{version}"\nVERSION_ID="{version}"\n'
    )


def built_at(version: str) -> datetime:
    """Return the build time of a release of a pair: the newer one a month after the older."""
    return datetime.fromtimestamp(EPOCH, UTC) + timedelta(days=31 if version == NEW else 1)
