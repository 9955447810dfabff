"""A root tree with all that an image must bring, small enough to break in every way."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from updater.release.cpio import TreeFile
from updater.release.unit_layer import unit_layer

VERSION = "202606.29.0"
_SYSTEMD = "usr/lib/systemd/system"


def sound_tree() -> dict[str, TreeFile]:
    """Return a tree that passes every check."""
    return {
        **unit_layer(),
        "etc/os-release": TreeFile(link="../usr/lib/os-release"),
        "usr/lib/os-release": TreeFile(
            f'ID=acl\nID_LIKE="azurelinux"\nIMAGE_ID=acl\nIMAGE_VERSION="{VERSION}"\n'.encode()
        ),
        "sbin": TreeFile(link="usr/sbin"),
        "usr/sbin/init": TreeFile(link="/usr/lib/systemd/systemd"),
        "usr/lib/systemd/systemd": TreeFile(b"\x7fELF", 0o755),
        "usr/bin/acl-updater": TreeFile(b"#!/usr/bin/python3\n", 0o755),
        f"{_SYSTEMD}/default.target": TreeFile(link="multi-user.target"),
        f"{_SYSTEMD}/multi-user.target": TreeFile(b"[Unit]\nDescription=Multi-User System\n"),
        f"{_SYSTEMD}/boot-complete.target": TreeFile(b"[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n"),
        f"{_SYSTEMD}/emergency.service": TreeFile(b"[Service]\nExecStart=/bin/sulogin\n"),
        f"{_SYSTEMD}/rescue.service": TreeFile(b"[Service]\nExecStart=/bin/sulogin\n"),
        "usr/lib/modules/6.12.1/kernel/drivers/watchdog/softdog.ko.xz": TreeFile(b"x"),
        "usr/lib/modules/6.12.1/kernel/drivers/watchdog/i6300esb.ko": TreeFile(b"x"),
    }


def as_folder(files: dict[str, TreeFile], folder: Path) -> Path:
    """Write the tree into a folder."""
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            path.symlink_to(file.link)
        else:
            path.write_bytes(file.content)
            path.chmod(file.mode)
    return folder


def as_tar(files: dict[str, TreeFile], path: Path, *, prefix: str = "./") -> Path:
    """Write the tree as a tar whose names begin with `prefix`."""
    with tarfile.open(path, "w") as tar:
        for name, file in files.items():
            member = tarfile.TarInfo(f"{prefix}{name}")
            member.mode = file.mode
            if file.link:
                member.type, member.linkname = tarfile.SYMTYPE, file.link
            else:
                member.size = len(file.content)
            tar.addfile(member, io.BytesIO(file.content))
    return path
