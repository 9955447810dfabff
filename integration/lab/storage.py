"""The disks of a machine, as options of QEMU."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The object that says how fast a slow disk is.
THROTTLE = "slow"
_TRANSFERS = ("read", "write", "write-zeroes", "discard")


@dataclass(frozen=True, slots=True)
class SectorError:
    """A sector of 512 bytes that fails with an input/output error when it is read, or written."""

    sector: int
    access: str


def escaped(value: str) -> str:
    """Return a value for a QEMU option: a comma ends an option unless it stands twice."""
    return value.replace(",", ",,")


def below_disk(*, slow: int | None, bad_sectors: tuple[SectorError, ...]) -> str:
    """Return the name of the node on which the machine's disk stands."""
    if slow is not None:
        return "throttled"
    return "bad" if bad_sectors else "file"


def dead_node(length_bytes: int) -> list[dict[str, Any]]:
    """Return what `blockdev-add` needs for the node `dead`, which fails every request but a flush.

    QEMU flushes a node that it takes something away from, and would not let go of this one.
    """
    rules = [{"event": "none", "errno": errno.EIO, "iotype": access} for access in _TRANSFERS]
    return [
        {"driver": "null-co", "node-name": "nothing", "size": length_bytes},
        {"driver": "blkdebug", "node-name": "dead", "image": "nothing", "inject-error": rules},
    ]


def disk_on(below: str) -> dict[str, Any]:
    """Return what `blockdev-reopen` needs to put the machine's disk on another node."""
    lax = {"cache": {"no-flush": True}, "discard": "unmap", "detect-zeroes": "unmap"}
    return {"driver": "raw", "node-name": "disk", "file": below, **lax}


def disk_options(
    disk: Path, *, sector_bytes: int, slow: int | None, bad_sectors: tuple[SectorError, ...], twin: Path | None
) -> list[str]:
    """Return the options for the machine's disk, for what is wrong with it, and for its twin."""
    # Killing QEMU loses nothing that the guest's disk had acknowledged, whether the host flushed it or not.
    lax = "cache.no-flush=on,discard=unmap"
    options = ["-blockdev", f"driver=file,node-name=file,filename={escaped(str(disk))},{lax}"]
    if bad_sectors:
        rules = "".join(
            f",inject-error.{n}.event=none,inject-error.{n}.iotype={bad.access},inject-error.{n}.errno=5"
            f",inject-error.{n}.sector={bad.sector}"
            for n, bad in enumerate(bad_sectors)
        )
        options += ["-blockdev", f"driver=blkdebug,node-name=bad,image=file,{lax}{rules}"]
    if slow is not None:
        options += ["-object", f"throttle-group,id={THROTTLE},x-bps-total={slow}"]
        under = below_disk(slow=None, bad_sectors=bad_sectors)
        options += ["-blockdev", f"driver=throttle,node-name=throttled,throttle-group={THROTTLE},file={under},{lax}"]
    below = below_disk(slow=slow, bad_sectors=bad_sectors)
    sectors = "" if sector_bytes == 512 else f",logical_block_size={sector_bytes},physical_block_size={sector_bytes}"
    options += ["-blockdev", f"driver=raw,node-name=disk,file={below},{lax},detect-zeroes=unmap"]
    options += ["-device", f"virtio-blk-pci,drive=disk,bootindex=1{sectors}"]
    if twin is not None:
        options += ["-blockdev", f"driver=file,node-name=twin-file,filename={escaped(str(twin))},{lax}"]
        options += ["-blockdev", f"driver=raw,node-name=twin,file=twin-file,{lax}"]
        options += ["-device", f"virtio-blk-pci,drive=twin{sectors}"]
    return options
