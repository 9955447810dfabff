"""`acl-release build` as a pair of functions for the command line."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from updater.errors import ExitCode, InvalidDocument
from updater.release.build import BuildInputs, BuiltRelease, build_release
from updater.release.root_tree import RootTree, open_root_tree
from updater.release.uki import SecureBoot
from updater.release.usr_tree import ETC_DEFAULTS
from updater.schema import encode_json

_KERNELS = (r"usr/lib/modules/([^/]+)/vmlinuz", r"boot/vmlinuz-([^/]+)")
_INITRDS = ("usr/lib/modules/{}/initrd", "boot/initramfs-{}.img", "boot/initrd.img-{}")


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `acl-release build`."""
    parser.add_argument("version", help="the release's version, such as 202606.29.0; IMAGE_VERSION must equal it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", type=Path, metavar="TREE", help="root tree: a folder or a tar")
    source.add_argument(
        "--root-image", type=Path, metavar="FILE", help="ready image (erofs, btrfs, ext4), taken as it is"
    )
    parser.add_argument("--image-id", required=True, metavar="NAME", help="the image's name, as in IMAGE_ID=")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="kernel (default: the tree's only one)")
    parser.add_argument("--kernel-version", default="", metavar="TEXT", help="what `uname -r` says")
    parser.add_argument(
        "--initrd",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="initrd (default: the tree's for that kernel); given again, later ones override earlier ones",
    )
    initrd = parser.add_mutually_exclusive_group()
    initrd.add_argument(
        "--repack-initrd",
        action="store_true",
        help="compress zstd initrds as nodes can do it again: a fraction of them in the next delta",
    )
    initrd.add_argument(
        "--plain-initrd",
        action="store_true",
        help="unpack the initrd into the UKI: the same for nodes with any library, and much larger on the ESP",
    )
    parser.add_argument("--append", action="append", default=[], metavar="WORD", help="add to the command line")
    parser.add_argument("--panic-seconds", type=int, default=10, metavar="N", help="panic= (default: %(default)s)")
    parser.add_argument("--layout", action="append", default=[], metavar="NAME", help="layout (default: dps-root)")
    parser.add_argument(
        "--slot-addons",
        action="store_true",
        help="carry the verity parameters in an addon per slot, not in the UKI (layouts with fixed PARTUUIDs)",
    )
    parser.add_argument(
        "--etc-defaults",
        default=ETC_DEFAULTS,
        metavar="PATH",
        help="where only /usr swaps: folder in it that is the lower layer of /etc (default: %(default)s)",
    )
    parser.add_argument("--security-epoch", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--built", metavar="TIME", help="time of the build (default: SOURCE_DATE_EPOCH, else now)")
    parser.add_argument("--secure-boot-key", type=Path, metavar="PEM", help="sign the UKI with this key")
    parser.add_argument("--secure-boot-certificate", type=Path, metavar="PEM", help="the key's certificate")
    parser.add_argument("--addon-stub", type=Path, metavar="FILE", help="stub for addons (default: the system's)")
    parser.add_argument("--stub", type=Path, metavar="FILE", help="systemd-stub (default: the system's)")
    parser.add_argument("--tools", type=Path, metavar="DIR", help="look for mkfs.erofs, veritysetup, ukify here first")
    parser.add_argument("--unchecked", action="store_true", help="build even what would strand a node (for tests)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="folder; the release goes to DIR/VERSION"
    )


def run_build(args: argparse.Namespace) -> int:
    """Build the release that the arguments describe, say what came out, return the exit code."""
    if args.tools is not None:
        os.environ["PATH"] = f"{args.tools.resolve()}:{os.environ.get('PATH', '')}"
    if (args.secure_boot_key is None) != (args.secure_boot_certificate is None):
        raise InvalidDocument("command line", "--secure-boot-key", "it goes with its certificate", "give both or none")
    with _kernel_parts(args) as (kernel, kernel_version, initrds):
        built = build_release(
            BuildInputs(
                version=args.version,
                image_id=args.image_id,
                built=_build_time(args.built),
                root=args.root_image or args.root,
                root_is_image=args.root_image is not None,
                kernel=kernel,
                kernel_version=kernel_version,
                initrds=initrds,
                out=args.out / args.version,
                layouts=args.layout or ["dps-root"],
                security_epoch=args.security_epoch,
                panic_s=args.panic_seconds,
                command_line=args.append,
                stub=args.stub,
                addon_stub=args.addon_stub,
                signing=SecureBoot(args.secure_boot_key, args.secure_boot_certificate)
                if args.secure_boot_key
                else None,
                plain_initrd=args.plain_initrd,
                slot_addons=args.slot_addons,
                etc_defaults=args.etc_defaults.strip("/"),
                repacked_initrd=args.repack_initrd,
                checked=not args.unchecked,
            )
        )
    _tell(built, as_json=getattr(args, "json", False))
    return ExitCode.DONE


def _tell(built: BuiltRelease, *, as_json: bool) -> None:
    root = built.manifest.root
    report = {
        "version": built.manifest.version,
        "folder": str(built.folder),
        "root_hash": root.root_hash,
        "root_length_bytes": root.length_bytes,
        "uki_length_bytes": built.manifest.uki.length_bytes,
    }
    if as_json:
        sys.stdout.write(encode_json(report).decode())
        return
    print(f"{built.manifest.version}: {built.folder}")
    print(f"  root image  {root.length_bytes / 2**20:.1f} MiB, root hash {root.root_hash}")
    print(f"  UKI         {built.manifest.uki.length_bytes / 2**20:.1f} MiB")


def _build_time(text: str | None) -> datetime:
    if text is None:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
        return now.replace(microsecond=0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidDocument(
            "command line", "--built", f"{text!r} is no time", "write it as 2026-11-20T05:00:00Z"
        ) from error
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).replace(microsecond=0)


@contextmanager
def _kernel_parts(args: argparse.Namespace) -> Iterator[tuple[Path, str, list[Path]]]:
    if args.kernel is not None and args.initrd:
        yield args.kernel, args.kernel_version, args.initrd
        return
    if args.root is None:
        raise InvalidDocument(
            "command line", "--root-image", "a ready image gives no kernel", "give --kernel and --initrd"
        )
    with open_root_tree(args.root) as tree, tempfile.TemporaryDirectory() as folder:
        version, kernel_name, initrd_name = find_kernel(tree)
        kernel, initrds = args.kernel, args.initrd
        if kernel is None:
            kernel = Path(folder) / "vmlinuz"
            kernel.write_bytes(tree.content(kernel_name) or b"")
        if not initrds:
            if not initrd_name:
                raise InvalidDocument(
                    str(args.root), "boot", f"there is no initrd for kernel {version}", "give --initrd"
                )
            initrds = [Path(folder) / "initrd"]
            initrds[0].write_bytes(tree.content(initrd_name) or b"")
        yield kernel, args.kernel_version or version, initrds


def find_kernel(tree: RootTree) -> tuple[str, str, str]:
    """Return (version, kernel's path, initrd's path or "") of the tree's only kernel; raise InvalidDocument."""
    names = tree.names()
    found = {
        match[1]: name for pattern in reversed(_KERNELS) for name in names if (match := re.fullmatch(pattern, name))
    }
    if len(found) != 1:
        listed = ", ".join(sorted(found)) or "none"
        raise InvalidDocument("root tree", "boot", f"it holds not one kernel but {listed}", "give --kernel")
    ((version, kernel),) = found.items()
    known = set(names)
    initrd = next((name for form in _INITRDS if (name := form.format(version)) in known), "")
    return version, kernel, initrd
