"""The peers: each one's script, and the settings at which it is at its best.

A script (`scripts/*.sh`) has two functions: `make` makes what is served, once; `apply` is one update. They find these
variables: OLD and NEW are the two images, when something is made; OUT is the folder that is served; URL its address;
SEED the running slot, which holds OLD; SLOT the other one, to hold NEW; WORK a scratch folder that is emptied before
each update; NODE one that a node keeps; KEYS holds a certificate; BOOT_BYTES is the length of the newer kernel and
initrd as they are shipped, compressed. A script may leave WORK/wall_s (the seconds that
count) and WORK/bundle_bytes (what was read of a local bundle).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Contender:
    """One tool with one way of using it.

    `on_wire` says that its bytes are counted at the server; `largest_bytes` bounds the images for which it is tried in
    this machine's memory and in minutes.
    """

    name: str
    peer: str
    summary: str
    script: str
    settings: Mapping[str, str] = field(default_factory=dict)
    on_wire: bool = True
    largest_bytes: int = 1 << 40
    note: str = ""

    @property
    def file(self) -> str:
        """Return the script's file name."""
        return f"{self.script}.sh"


_RAUC_NOTE = (
    "local bundle of format plain: streaming needs nbd, verity bundles need device mapper, and this host has neither; "
    "its bytes are those read of the bundle's loop device, which are what streaming would have to fetch"
)


def _rauc(name: str, summary: str, squashfs: str, adaptive: str = "") -> Contender:
    settings = {"SQUASHFS": squashfs, "ADAPTIVE": adaptive}
    return Contender(name, "rauc", summary, "rauc", settings, on_wire=False, note=_RAUC_NOTE)


def _casync(name: str, kib: int) -> Contender:
    summary = f"casync, seeded with the running slot, chunks of {kib} KiB"
    return Contender(name, "casync", summary, "casync", {"CHUNK": str(kib << 10)})


def _desync(name: str, kib: int) -> Contender:
    summary = f"desync, seeded with the running slot, in place, chunks of {kib} KiB"
    chunks = f"{kib // 4}:{kib}:{kib * 4}"
    return Contender(name, "desync", summary, "desync", {"CHUNKS": chunks}, note="the node keeps its slot's index")


CONTENDERS = (
    Contender("dd", "coreutils", "the image copied by dd, direct and flushed: the yardstick", "dd", on_wire=False),
    Contender("zstd", "zstd", "the whole image, zstd -19 --long=27, through a pipe", "zstd"),
    Contender(
        "get", "curl", "one plain GET of as many bytes as the zstd image, kernel and initrd have, thrown away", "get"
    ),
    Contender("zstd-patch", "zstd", "zstd -19 --long=31 --patch-from", "zstd-patch"),
    Contender("xdelta3", "xdelta3", "xdelta3 -9 -S lzma over the whole image", "xdelta3"),
    Contender("hdiffpatch", "hdiffpatch", "HDiffPatch with zstd, both images in memory", "hdiffpatch"),
    Contender(
        "bsdiff",
        "bsdiff",
        "bsdiff over the whole image",
        "bsdiff",
        largest_bytes=200 << 20,
        note="making its patch takes 17 times the image in memory: on the small pair only",
    ),
    _casync("casync", 64),
    _casync("casync-16k", 16),
    _desync("desync", 64),
    _desync("desync-16k", 16),
    Contender(
        "zchunk",
        "zchunk",
        "zchunk, seeded with the older .zck",
        "zchunk",
        note="the node keeps the older .zck beside its slots",
    ),
    Contender("swupdate", "swupdate", "SWUpdate, raw handler, the same zstd, streamed into the slot", "swupdate"),
    _rauc("rauc", "RAUC, its default bundle (gzip)", ""),
    _rauc("rauc-lz4", "RAUC, lz4 bundle", "-comp lz4 -Xhc"),
    _rauc("rauc-zstd", "RAUC, zstd bundle (level 15, its default)", "-comp zstd"),
    _rauc(
        "rauc-adaptive",
        "RAUC, adaptive (block-hash-index), zstd in 64 KiB blocks",
        "-comp zstd -b 64k",
        "adaptive=block-hash-index",
    ),
)

BY_NAME = {contender.name: contender for contender in CONTENDERS}
