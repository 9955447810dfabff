"""The part of a root tree that swaps where only /usr does: usr/ itself, and the defaults of /etc inside it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

ETC_DEFAULTS = "share/acl/etc"


def write_usr_tree(tree: Path, out: Path, *, etc_defaults: str = ETC_DEFAULTS) -> None:
    """Write a tar of what `tree` (a folder or a tar) has in usr/, and of its etc/ as the folder `etc_defaults`.

    Everything else is left out: it belongs to the root that both slots share.
    """
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as target:
        if tree.is_dir():
            _add_folder(tree, target, etc_defaults)
            return
        with tarfile.open(tree) as source:
            _copy_members(source, target, lambda name: place_in_usr(name, etc_defaults))


def place_in_usr(name: str, etc_defaults: str = ETC_DEFAULTS) -> str | None:
    """Return where a path of the root lies in the image, None for one that does not go there."""
    top, _, rest = name.removeprefix("./").strip("/").partition("/")
    if top == "usr":
        return rest or "."
    if top == "etc":
        return f"{etc_defaults}/{rest}" if rest else etc_defaults
    return None


def as_root_tree(folder: Path, *, etc_defaults: str = ETC_DEFAULTS) -> Path:
    """Turn a folder that holds a /usr image's files into the root tree that a node sees; return that tree."""
    root = folder.with_name(f"{folder.name}.root")
    root.mkdir()
    folder.rename(root / "usr")
    defaults = root / "usr" / etc_defaults
    if defaults.is_dir():
        shutil.move(defaults, root / "etc")
    return root


def _add_folder(tree: Path, target: tarfile.TarFile, etc_defaults: str) -> None:
    for path in sorted(tree.rglob("*")):
        name = place_in_usr(path.relative_to(tree).as_posix(), etc_defaults)
        if name is not None:
            target.add(path, name, recursive=False)


def _copy_members(source: tarfile.TarFile, target: tarfile.TarFile, place: Callable[[str], str | None]) -> None:
    for member in source:
        name = place(member.name)
        if name is None:
            continue
        link = place(member.linkname) if member.islnk() else member.linkname
        if link is None:
            # A second name of a file outside usr/ and etc/: here it becomes the only one.
            content = source.extractfile(member)
            member = source.getmember(member.linkname).replace(name=name, deep=True)
        else:
            content = source.extractfile(member) if member.isreg() else None
            member = member.replace(name=name, linkname=link, deep=True)
        # What a pax header says of a name counts more than the name itself.
        member.pax_headers = {
            key: value for key, value in member.pax_headers.items() if key not in ("path", "linkpath", "size")
        }
        target.addfile(member, content)
