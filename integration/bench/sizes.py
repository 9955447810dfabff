"""Releases of any size, with the content of a real one: for cost against image size."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

from integration.bench.pairs import NEW, OLD, Side
from integration.bench.player import Match
from integration.bench.site import build_side
from integration.images.tooltree import ToolTree
from updater.release.build import BuiltRelease

_PIECE = 16 << 20
_SMALL_MIB = 8
# What is compared is the node's work; the highest level would take a quarter of an hour for the largest.
_PUBLISHING = ("--level", "3")


def size_name(mib: int) -> str:
    """Return what tables call the release of a size."""
    return f"{mib}MiB"


def make_match(mib: int, image: Path, parts: Side, folder: Path, served: Path, tools: ToolTree) -> Match:
    """Return a pair whose newer release has `mib` MiB of an image's content, again and again but never the same.

    The older one is small. Kernel and initrd are those of `parts`.
    """
    releases: list[BuiltRelease] = []
    for version, length in ((OLD, _SMALL_MIB), (NEW, mib)):
        work = folder / f"parts-{version}"
        work.mkdir(parents=True, exist_ok=True)
        side = Side(version, work)
        for source, target in ((parts.kernel, side.kernel), (parts.initrd, side.initrd)):
            target.unlink(missing_ok=True)
            target.symlink_to(source)
        write_tree(side.root, image, length << 20, version)
        out = folder / version
        shutil.rmtree(out, ignore_errors=True)
        releases.append(build_side(side, out, tools))
        side.root.unlink()
    name = size_name(mib)
    return Match(name, releases[0], releases[1], folder, served / name, parts.boot_bytes, _PUBLISHING)


def write_tree(target: Path, image: Path, length: int, version: str) -> None:
    """Write a tar whose files hold `length` bytes; each round through the image adds one to every byte.

    So a compressor finds as much in each round as in the first, and nothing in one of what was in another.
    """
    with tarfile.open(target, "w") as tar:
        release = f'ID="acl-bench"\nIMAGE_ID="acl-bench"\nIMAGE_VERSION="{version}"\n'.encode()
        _add(tar, "usr/lib/os-release", release)
        written = turn = 0
        while written < length:
            turned = bytes((value + turn) % 256 for value in range(256))
            with image.open("rb") as source:
                while written < length and (piece := source.read(min(_PIECE, length - written))):
                    _add(tar, f"content/{written:016d}", piece.translate(turned))
                    written += len(piece)
            turn += 1


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
