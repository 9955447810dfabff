"""A /usr image as btrfs, which is what Azure Container Linux ships."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import UUID

from integration.images.base import as_root
from integration.images.tooltree import ToolTree
from updater.release.usr_tree import write_usr_tree
from updater.run import run

_ROOM_BYTES = 768 << 20
_SCRIPT = 'tar --extract --numeric-owner --xattrs --file="$1" --directory="$2" && shift 2 && exec "$@"'


def as_btrfs(tree: Path, tools: ToolTree, uuid: UUID) -> Path:
    """Turn a root tree's tar into a btrfs image of its /usr, beside it; remove the tar and return the image.

    mkfs.btrfs takes a folder and keeps its owners, so this step needs root or sudo, as the base tree does. The image
    differs from build to build: the ids of its trees are random.
    """
    image = tree.with_name("usr.btrfs")
    usr = tree.with_name("usr.tar")
    write_usr_tree(tree, usr)
    with image.open("wb") as file:
        file.truncate(_ROOM_BYTES)
    folder = Path(tempfile.mkdtemp(dir=tree.parent))
    try:
        make: list[str | Path] = [
            tools.tool("mkfs.btrfs"),
            "--quiet",
            f"--uuid={uuid}",
            "--data=single",
            "--metadata=single",
        ]
        words = ["sh", "-c", _SCRIPT, "sh", usr, folder, *make, "--shrink", f"--rootdir={folder}", image]
        run([*as_root(), *words], timeout_s=600)
    finally:
        run([*as_root(), "rm", "-rf", "--one-file-system", folder])
        usr.unlink()
        tree.unlink()
    return image
