"""The Debian part of the reference root: a tar, a kernel and an initrd, made once a recipe.

It stands in for a vendor's own packages (Azure Linux's RPMs are not to be had on every builder); nothing outside this
folder knows that it is Debian.
"""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from integration.images.cache import cached
from integration.images.debian import PackageStore, find_mirror, keyring, proxy_environment, sources
from updater.errors import EnvironmentFailure
from updater.run import find_tool, run

log = logging.getLogger(__name__)

SUITE = "trixie"
# 2026-01-01T00:00:00Z: the time of every file that nobody dated on purpose.
EPOCH = 1_767_225_600

# debootstrap resolves no alternatives (it would pull initramfs-tools, which conflicts with dracut): two stages.
FIRST_PACKAGES = ("systemd", "systemd-sysv", "udev", "dbus", "kmod", "python3-minimal", "ca-certificates")
SECOND_PACKAGES = (
    "linux-image-cloud-amd64",
    "containerd",
    "runc",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "procps",
    "python3",
    "systemd-cryptsetup",
    "systemd-resolved",
    "util-linux",
)
BUILD_PACKAGES = ("dracut", "dracut-core", "zstd", "cpio", "xz-utils")
UNUSED_PACKAGES = ("apt", "libapt-pkg7.0", "sqv", "perl-base", "debconf")
INITRD_MODULES = (
    "base systemd systemd-initrd systemd-veritysetup systemd-udevd systemd-modules-load systemd-sysctl "
    "systemd-journald dm rootfs-block udev-rules fs-lib"
)
INITRD_DRIVERS = (
    "virtio_blk virtio_pci virtio_scsi sd_mod nvme ahci hv_storvsc virtio_rng erofs dm_mod dm_verity overlay ext4 vfat "
    "nls_ascii nls_cp437 efivarfs efi_pstore i6300esb wdat_wdt softdog sha256_ssse3 btrfs"
)
# Loaded by every boot once the root is there.
EARLY_DRIVERS = "virtio_net button evdev br_netfilter nf_tables veth configfs"
INITRD_INSTALL = (
    "e2fsck systemctl journalctl modprobe mount umount mkdir cat sleep sync readlink sysctl sha256sum od dd"
)


@dataclass(frozen=True, slots=True)
class Base:
    """A built base: `base.tar`, `vmlinuz`, `initrd` and `kernel-version` in one folder."""

    folder: Path

    @property
    def tar(self) -> Path:
        """Return the root tree as a tar with numeric owners, sorted, times clamped."""
        return self.folder / "base.tar"

    @property
    def kernel(self) -> Path:
        """Return the kernel image."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Return the initrd without any overlay."""
        return self.folder / "initrd"

    @property
    def kernel_version(self) -> str:
        """Return the kernel's release, the folder name of its modules."""
        return (self.folder / "kernel-version").read_text().strip()


def base_tree() -> Base:
    """Return the base, built on first use; needs root or sudo once."""
    script = Path(__file__).with_name("base.sh")
    recipe = {
        "script": script.read_text(),
        "suite": SUITE,
        "packages": [FIRST_PACKAGES, SECOND_PACKAGES, BUILD_PACKAGES, UNUSED_PACKAGES],
        "dracut": [INITRD_MODULES, INITRD_DRIVERS, EARLY_DRIVERS, INITRD_INSTALL],
        "epoch": EPOCH,
    }
    return Base(cached("base", recipe, lambda folder, _: _make(folder, script)))


def _make(folder: Path, script: Path) -> None:
    work = folder / "work"
    work.mkdir()
    root = folder / "root"
    mirror = find_mirror()
    store = PackageStore(work / "apt", sources(mirror, SUITE, keyring()), install_into=root)
    settings = {
        "ROOT": root,
        "WORK": work,
        "OUT": folder,
        "OWNER": f"{os.getuid()}:{os.getgid()}",
        "SUITE": SUITE,
        "MIRROR": mirror.uri,
        "KEYRING": keyring(),
        "APT_CONFIG": store.config,
        "EPOCH": EPOCH,
        "FIRST_PACKAGES": ",".join(FIRST_PACKAGES),
        "SECOND_PACKAGES": " ".join(SECOND_PACKAGES),
        "BUILD_PACKAGES": " ".join(BUILD_PACKAGES),
        "UNUSED_PACKAGES": " ".join(UNUSED_PACKAGES),
        "INITRD_MODULES": INITRD_MODULES,
        "INITRD_DRIVERS": INITRD_DRIVERS,
        "INITRD_INSTALL": INITRD_INSTALL,
        "EARLY_DRIVERS": EARLY_DRIVERS,
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        **proxy_environment(),
    }
    given = work / "settings"
    given.write_text("".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items()))
    log.info("base tree: building Debian %s, its kernel and its initrd (a minute or two)", SUITE)
    try:
        run(
            [*as_root(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", script, given], timeout_s=3600
        )
    finally:
        run([*as_root(), "rm", "-rf", "--one-file-system", work, root])


def as_root() -> list[str]:
    """Return the words that make a command run as root here; raise EnvironmentFailure where nothing does."""
    if os.geteuid() == 0:
        return []
    try:
        return [find_tool("sudo"), "--"]
    except EnvironmentFailure as error:
        raise EnvironmentFailure(
            "building the reference root needs root: packages run their scripts in a chroot",
            mend="run the build as root once, or install sudo; the result is cached",
            reason="root-needed",
        ) from error
