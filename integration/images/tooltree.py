"""The tool tree: QEMU, firmware and image tools of one Debian release, run without installing them.

Packages are fetched by apt's signed metadata and unpacked into the cache folder; no script of theirs runs and no root
is needed. `bin/` holds a wrapper per tool that starts it with the tree's own dynamic loader and libraries, so the same
QEMU and mkfs.erofs run on every host.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from integration.images.cache import cached
from integration.images.debian import (
    PackageStore,
    find_mirror,
    keyring,
    package_version,
    sources,
    unpack,
)
from updater.errors import EnvironmentFailure
from updater.run import run

log = logging.getLogger(__name__)

SUITE = "trixie"
# Suites that may carry a systemd-boot that survives a truncated UKI, the steadier one first.
LOADER_SUITES = ("forky", "sid")
LOADER_SINCE = 258

PACKAGES = (
    "btrfs-progs",
    "cryptsetup-bin",
    "debian-archive-keyring",
    "dosfstools",
    "e2fsprogs",
    "erofs-utils",
    "fdisk",
    "grub-common",
    "grub-pc-bin",
    "libc-bin",
    "mtools",
    "ovmf",
    "python3",
    "python3-pefile",
    "qemu-system-x86",
    "qemu-utils",
    "sbsigntool",
    "systemd-boot-efi",
    "systemd-ukify",
)

# Wrapper name -> (program in the tree, arguments that come first, environment); {tree} is replaced.
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_QEMU_DATA = ("-L", "{tree}/usr/share/qemu", "-L", "{tree}/usr/share/seabios", "-L", "{tree}/usr/lib/ipxe/qemu")
_E2FS = {"MKE2FS_CONFIG": "{tree}/etc/mke2fs.conf"}
_MTOOLS = {"GCONV_PATH": "{tree}/usr/lib/x86_64-linux-gnu/gconv", "MTOOLS_SKIP_CHECK": "1"}
_QEMU = {"QEMU_MODULE_DIR": "{tree}/usr/lib/x86_64-linux-gnu/qemu"}
_PYTHON = {"PYTHONHOME": "{tree}/usr", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
_TOOLS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, str]]] = {
    "qemu-system-x86_64": ("usr/bin/qemu-system-x86_64", _QEMU_DATA, _QEMU),
    "qemu-img": ("usr/bin/qemu-img", (), _QEMU),
    "qemu-nbd": ("usr/bin/qemu-nbd", (), _QEMU),
    "qemu-storage-daemon": ("usr/bin/qemu-storage-daemon", (), _QEMU),
    "mkfs.erofs": ("usr/bin/mkfs.erofs", (), {}),
    "fsck.erofs": ("usr/bin/fsck.erofs", (), {}),
    "dump.erofs": ("usr/bin/dump.erofs", (), {}),
    "mkfs.btrfs": ("usr/sbin/mkfs.btrfs", (), {}),
    "btrfs": ("usr/bin/btrfs", (), {}),
    "veritysetup": ("usr/sbin/veritysetup", (), {}),
    "sfdisk": ("usr/sbin/sfdisk", (), {}),
    "mkfs.vfat": ("usr/sbin/mkfs.fat", (), {}),
    "fsck.vfat": ("usr/sbin/fsck.fat", (), {}),
    "mke2fs": ("usr/sbin/mke2fs", (), _E2FS),
    "e2fsck": ("usr/sbin/e2fsck", (), {}),
    "debugfs": ("usr/sbin/debugfs", (), {}),
    "dumpe2fs": ("usr/sbin/dumpe2fs", (), {}),
    "grub-mkimage": ("usr/bin/grub-mkimage", (), {}),
    "grub-editenv": ("usr/bin/grub-editenv", (), {}),
    "grub-script-check": ("usr/bin/grub-script-check", (), {}),
    "sbsign": ("usr/bin/sbsign", (), {}),
    "sbverify": ("usr/bin/sbverify", (), {}),
    "python3.13": ("usr/bin/python3.13", ("-s",), _PYTHON),
    "ukify": ("usr/bin/python3.13", ("-s", "{tree}/usr/bin/ukify"), _PYTHON),
    **{
        name: ("usr/bin/mtools", ("-c", name), _MTOOLS)
        for name in ("mcopy", "mdir", "mmd", "mdel", "mren", "mtype", "mattrib", "minfo")
    },
}


@dataclass(frozen=True, slots=True)
class ToolTree:
    """The unpacked tree; `bin` goes in front of PATH."""

    root: Path

    @property
    def bin(self) -> Path:
        """Return the folder with a wrapper per tool."""
        return self.root / "bin"

    def tool(self, name: str) -> Path:
        """Return the wrapper of one tool; raise EnvironmentFailure for one that the tree does not hold."""
        path = self.bin / name
        if not path.exists():
            raise EnvironmentFailure(
                f"the tool tree holds no {name}", mend="add it to PACKAGES and _TOOLS", reason="tool-missing"
            )
        return path

    @property
    def firmware_code(self) -> Path:
        """Return OVMF's code (4 MiB build without Secure Boot)."""
        return self.root / "tree/usr/share/OVMF/OVMF_CODE_4M.fd"

    @property
    def secure_firmware_code(self) -> Path:
        """Return OVMF's code with Secure Boot, which wants a machine with system management mode."""
        return self.root / "tree/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"

    @property
    def firmware_variables(self) -> Path:
        """Return OVMF's empty variable store: copy it for each machine."""
        return self.root / "tree/usr/share/OVMF/OVMF_VARS_4M.fd"

    @property
    def stub(self) -> Path:
        """Return systemd-stub, which turns a kernel and an initrd into a UKI."""
        return self.root / "tree/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

    @property
    def addon_stub(self) -> Path:
        """Return the stub for UKI addons."""
        return self.root / "tree/usr/lib/systemd/boot/efi/addonx64.efi.stub"

    @property
    def grub(self) -> Path:
        """Return GRUB's modules and images for machines without UEFI."""
        return self.root / "tree/usr/lib/grub/i386-pc"

    @property
    def loader(self) -> Path:
        """Return systemd-boot, at least version 258."""
        return self.root / "loader/systemd-bootx64.efi"

    @property
    def loader_version(self) -> str:
        """Return the Debian version of the package that `loader` came from."""
        return (self.root / "loader/version").read_text().strip()


def tool_tree() -> ToolTree:
    """Return the tool tree, fetched and unpacked on first use."""
    recipe = {
        "recipe": 1,
        "suite": SUITE,
        "packages": PACKAGES,
        "loader": [LOADER_SUITES, LOADER_SINCE],
        "tools": {name: [program, args, dict(env)] for name, (program, args, env) in _TOOLS.items()},
    }
    return ToolTree(cached("tools", recipe, _make))


def _make(folder: Path, final: Path) -> None:
    log.info("tool tree: fetching QEMU, firmware and image tools (Debian %s)", SUITE)
    mirror = find_mirror()
    tree = folder / "tree"
    tree.mkdir()
    apt = PackageStore(folder / "apt", sources(mirror, SUITE, keyring()))
    apt.refresh()
    packages = apt.download(PACKAGES)
    log.info("tool tree: unpacking %d packages", len(packages))
    unpack(packages, tree)
    (folder / "packages").write_text("".join(f"{package.name}\n" for package in packages))
    run(["rm", "-rf", folder / "apt", *(tree / "usr/share" / name for name in ("doc", "man", "locale", "info"))])
    _fetch_loader(folder, tree)
    _write_wrappers(folder, final)


def _fetch_loader(folder: Path, tree: Path) -> None:
    seen: list[str] = []
    for suite in LOADER_SUITES:
        apt = PackageStore(folder / f"apt-{suite}", sources(find_mirror(), suite, keyring(tree)))
        apt.refresh()
        package = apt.download(["systemd-boot-efi"], with_dependencies=False)[0]
        version = package_version(package)
        seen.append(f"{suite} has {version}")
        if major_version(version) >= LOADER_SINCE:
            unpacked = folder / "loader-tree"
            unpacked.mkdir()
            unpack([package], unpacked)
            (folder / "loader").mkdir()
            (unpacked / "usr/lib/systemd/boot/efi/systemd-bootx64.efi").rename(folder / "loader/systemd-bootx64.efi")
            (folder / "loader/version").write_text(f"{version}\n")
            run(["rm", "-rf", unpacked, folder / f"apt-{suite}"])
            log.info("tool tree: systemd-boot %s from %s", version, suite)
            return
        run(["rm", "-rf", folder / f"apt-{suite}"])
    raise EnvironmentFailure(
        f"no Debian suite has systemd-boot {LOADER_SINCE} or newer ({'; '.join(seen)})",
        mend="a truncated UKI would lose the node with an older one: point apt at a mirror with a newer suite",
        reason="loader-too-old",
    )


def major_version(version: str) -> int:
    """Return the major number of a Debian version such as `1:262~rc1-2`."""
    found = re.match(r"(?:\d+:)?(\d+)", version)
    return int(found.group(1)) if found else 0


def _write_wrappers(folder: Path, final: Path) -> None:
    tree = str(final / "tree")
    (folder / "bin").mkdir()
    for name, (program, arguments, environment) in _TOOLS.items():
        if not (folder / "tree" / program).exists():
            raise EnvironmentFailure(
                f"the unpacked packages hold no /{program} for {name}", mend="mend the tool tree's recipe"
            )
        settings = "".join(f"export {key}='{value.format(tree=tree)}'\n" for key, value in environment.items())
        words = " ".join(f"'{word.format(tree=tree)}'" for word in arguments)
        wrapper = folder / "bin" / name
        wrapper.write_text(
            f"#!/bin/sh\n{settings}"
            f"exec '{tree}/{_LIBRARIES}/ld-linux-x86-64.so.2' --inhibit-cache --library-path '{tree}/{_LIBRARIES}' "
            f"'{tree}/{program}' {words} \"$@\"\n"
        )
        wrapper.chmod(0o755)
