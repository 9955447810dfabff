"""The words on a kernel's command line that say which slot's bytes the initrd proves, and by which root hash.

Source: systemd-veritysetup-generator(8). The words of a UKI and of all its addons count together, in the stub's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from updater.errors import InvalidDocument
from updater.layouts import Layout
from updater.slots import Slot

# In whatever slot they lie: udev rules in the initrd, which `acl-release build` puts there, link the partitions whose
# hash tree has the root hash on the command line.
SOUGHT = {"data": "/dev/disk/by-root-hash/usr", "hash": "/dev/disk/by-root-hash/usr-hash"}
_REBUILD = "build the release anew with `acl-release build`"


class _Root(Protocol):
    @property
    def root_hash(self) -> str: ...


class Identity(Protocol):
    """What a command line must say about its release: a manifest or a release's record."""

    @property
    def root(self) -> _Root: ...


def check_verity_words(given: Sequence[str], source: str, *, release: Identity, layout: Layout, slot: Slot) -> None:
    """Refuse a command line that would not boot `release` from `slot`, or not fall back from it.

    It must carry the root hash once, panic on a corrupt block, and where the layout's PARTUUIDs are fixed name the
    slot's partitions by them, or have the initrd seek them by the root hash. `source` names the files that the words
    come from. Raises InvalidDocument.
    """
    _check_root_hash(given, source, release.root.root_hash, layout)
    options = f"systemd.verity_{layout.swaps}_options"
    found = values(given, options)
    # The last one wins, and which is the last depends on the order of addons: each must do.
    if not found or not all("panic-on-corruption" in value.split(",") for value in found):
        raise InvalidDocument(
            source,
            ".cmdline",
            f"{options}= lacks panic-on-corruption: a damaged slot would not fall back",
            _REBUILD,
        )
    data = layout.partition("data", slot)
    inline = data.hash_offset_bytes is not None
    tree = data if inline else layout.partition("hash", slot)
    for role, partition in (("data", data), ("hash", tree)):
        key = f"systemd.verity_{layout.swaps}_{role}"
        named = [_partuuid(value) for value in values(given, key)]
        if partition.fixed_partuuid is None and not named:
            continue
        if named == [SOUGHT[role]] and layout.swaps == "usr" and not inline:
            continue
        if named != [str(partition.fixed_partuuid)]:
            raise InvalidDocument(
                source,
                ".cmdline",
                f"{key}= is {', '.join(named) or 'missing'}; slot {slot} of the layout {layout.name} is "
                f"{partition.label}, PARTUUID {partition.fixed_partuuid or 'as the root hash says'}",
                f"name {partition.label} in the addon of slot {slot}"
                if partition.fixed_partuuid
                else f"leave {key}= away: the root hash finds the partition",
            )
    if inline and not all(f"hash-offset={data.hash_offset_bytes}" in value.split(",") for value in found):
        raise InvalidDocument(
            source,
            ".cmdline",
            f"{options}= lacks hash-offset={data.hash_offset_bytes}, where {data.label} keeps its hash tree",
            "add it",
        )


def values(given: Sequence[str], key: str) -> list[str]:
    """Return the values of a kernel parameter, in order."""
    return [word.removeprefix(f"{key}=") for word in given if word.startswith(f"{key}=")]


def _check_root_hash(given: Sequence[str], source: str, root_hash: str, layout: Layout) -> None:
    key, other = ("usrhash", "roothash") if layout.swaps == "usr" else ("roothash", "usrhash")
    hashes = values(given, key)
    if hashes != [root_hash]:
        raise InvalidDocument(
            source,
            ".cmdline",
            f"{key}= is {', '.join(hashes) or 'missing'} instead of {root_hash}",
            "build UKI, addons and image together",
        )
    if values(given, other):
        raise InvalidDocument(
            source,
            ".cmdline",
            f"{other}= has no place in the layout {layout.name}, which swaps {layout.swaps}",
            _REBUILD,
        )


def _partuuid(value: str) -> str:
    for prefix in ("PARTUUID=", "/dev/disk/by-partuuid/"):
        if value.startswith(prefix):
            return value.removeprefix(prefix).lower()
    return value
