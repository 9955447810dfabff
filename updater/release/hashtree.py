"""dm-verity hash trees for root images, made by veritysetup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from updater.manifest import BLOCK_BYTES
from updater.run import find_tool, run


@dataclass(frozen=True, slots=True)
class HashTree:
    """A tree's root hash (hex) and the length in bytes of its blocks, without the superblock."""

    root_hash: str
    length_bytes: int


def make_hash_tree(image: Path, tree: Path, *, salt: bytes, uuid: UUID) -> HashTree:
    """Write the hash blocks of `image` to `tree`, without the superblock; sha256, 4096-byte blocks, format 1."""
    whole = tree.with_name(f"{tree.name}.verity")
    answer = tree.with_name(f"{tree.name}.root-hash")
    whole.unlink(missing_ok=True)
    run(
        [
            find_tool("veritysetup", package="cryptsetup-bin"),
            "format",
            "--hash=sha256",
            f"--data-block-size={BLOCK_BYTES}",
            f"--hash-block-size={BLOCK_BYTES}",
            "--format=1",
            f"--salt={salt.hex()}",
            f"--uuid={uuid}",
            f"--root-hash-file={answer}",
            image,
            whole,
        ],
        timeout_s=1800,
    )
    root_hash = answer.read_text().strip()
    answer.unlink()
    with whole.open("rb") as source, tree.open("wb") as target:
        # The superblock fills the first block of the hash device; nodes build it anew from the manifest.
        source.seek(BLOCK_BYTES)
        while chunk := source.read(1 << 20):
            target.write(chunk)
    whole.unlink()
    return HashTree(root_hash, tree.stat().st_size)
