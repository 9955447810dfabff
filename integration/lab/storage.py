"""The disks of a machine, as options of QEMU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SectorError:
    """A sector of 512 bytes that fails with an input/output error when it is read, or written."""

    sector: int
    access: str


def escaped(value: str) -> str:
    """Return a value for a QEMU option: a comma ends an option unless it stands twice."""
    return value.replace(",", ",,")


def disk_options(
    disk: Path, *, sector_bytes: int, slow: int | None, bad_sectors: tuple[SectorError, ...], twin: Path | None
) -> list[str]:
    """Return the options for the machine's disk, for what is wrong with it, and for its twin."""
    # Killing QEMU loses nothing that the guest's disk had acknowledged, whether the host flushed it or not.
    lax = "cache.no-flush=on,discard=unmap"
    options = ["-blockdev", f"driver=file,node-name=file,filename={escaped(str(disk))},{lax}"]
    below = "file"
    if bad_sectors:
        rules = "".join(
            f",inject-error.{n}.event=none,inject-error.{n}.iotype={bad.access},inject-error.{n}.errno=5"
            f",inject-error.{n}.sector={bad.sector}"
            for n, bad in enumerate(bad_sectors)
        )
        options += ["-blockdev", f"driver=blkdebug,node-name=bad,image={below},{lax}{rules}"]
        below = "bad"
    if slow is not None:
        options += ["-object", f"throttle-group,id=slow,x-bps-total={slow}"]
        options += ["-blockdev", f"driver=throttle,node-name=throttled,throttle-group=slow,file={below},{lax}"]
        below = "throttled"
    sectors = "" if sector_bytes == 512 else f",logical_block_size={sector_bytes},physical_block_size={sector_bytes}"
    options += ["-blockdev", f"driver=raw,node-name=disk,file={below},{lax},detect-zeroes=unmap"]
    options += ["-device", f"virtio-blk-pci,drive=disk,bootindex=1{sectors}"]
    if twin is not None:
        options += ["-blockdev", f"driver=file,node-name=twin-file,filename={escaped(str(twin))},{lax}"]
        options += ["-blockdev", f"driver=raw,node-name=twin,file=twin-file,{lax}"]
        options += ["-device", f"virtio-blk-pci,drive=twin{sectors}"]
    return options
