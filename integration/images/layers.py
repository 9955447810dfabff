"""Root trees in layers: a base tar with files laid over it.

New and changed files follow the base's members, so that the unchanged part of the tree keeps its order, and with it
its blocks in the image.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from updater.release.cpio import TreeFile, parent_folders

Layer = Mapping[str, TreeFile]


def compose(base: Path, layers: Sequence[Layer], removed: frozenset[str], out: Path, *, mtime_s: int) -> None:
    """Write `base` without the `removed` paths (and what lies under them), then the layers, later ones winning."""
    files: dict[str, TreeFile] = {}
    for layer in layers:
        files.update(layer)
    present = _copy_base(base, files, removed, out)
    with out.open("r+b") as raw:
        raw.seek(0, io.SEEK_END)
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in parent_folders(files):
                if name not in present:
                    tar.addfile(_member(name, tarfile.DIRTYPE, 0o755, mtime_s))
            for name in sorted(files):
                file = files[name]
                member = _member(name, tarfile.SYMTYPE if file.link else tarfile.REGTYPE, file.mode, mtime_s)
                member.linkname = file.link
                member.size = 0 if file.link else len(file.content)
                tar.addfile(member, io.BytesIO(file.content))


def _copy_base(base: Path, files: Layer, removed: frozenset[str], out: Path) -> set[str]:
    present: set[str] = set()
    with tarfile.open(base, "r:") as tar, base.open("rb") as source, out.open("wb") as target:
        members = tar.getmembers()
        ends = [member.offset for member in members[1:]] + [tar.offset]
        for member, end in zip(members, ends, strict=True):
            name = member.name.removeprefix("./")
            if name in files or _is_under(name, removed):
                continue
            present.add(name)
            source.seek(member.offset)
            _copy(source, target, end - member.offset)
    return present


def _copy(source: io.BufferedReader, target: io.BufferedWriter, length: int) -> None:
    while length:
        chunk = source.read(min(length, 1 << 20))
        if not chunk:
            raise EOFError("the base tar ends within a member")
        target.write(chunk)
        length -= len(chunk)


def _is_under(name: str, folders: frozenset[str]) -> bool:
    parts = name.split("/")
    return any("/".join(parts[: depth + 1]) in folders for depth in range(len(parts)))


def _member(name: str, kind: bytes, mode: int, mtime_s: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o777 if kind == tarfile.SYMTYPE else mode
    member.mtime = mtime_s
    return member
