"""GRUB for machines without UEFI, written into a disk image by itself: no root, no loop device, no grub-install.

Source: GRUB's own installer (util/setup.c). The first sector of the disk is boot.img, which loads the one sector at
the LBA in its bytes 0x5c to 0x63: diskboot.img, the first of the core image. That loads the rest of it by the list at
its end: LBA, sectors, segment.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from integration.images.tooltree import ToolTree
from updater.boot.grub_block import factory_block
from updater.boot.grub_env import BLOCKS, CONFIG, SCRIPT, grub_uki_path, shipped_script, start_path
from updater.boot.grub_start import start_text
from updater.errors import EnvironmentFailure
from updater.run import run
from updater.slots import Slot

SECTOR = 512
# All that the script uses, so that no module lies in a file.
MODULES = (
    "biosdisk",
    "boot",
    "configfile",
    "echo",
    "fat",
    "linux",
    "loadenv",
    "loopback",
    "normal",
    "part_gpt",
    "reboot",
    "regexp",
    "serial",
    "sleep",
    "smbios",
    "terminal",
    "test",
    "true",
)
# The reference machine's own part. Parameters come in as systemd-stub takes them where there is UEFI: SMBIOS type 11,
# whose byte 4 is the number of its strings, and so names the last one.
_CONFIG = rb"""serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
smbios --type 11 --get-string 4 --set acl_string
regexp --set 1:acl_parameters '^io\.systemd\.stub\.kernel-cmdline-extra=(.*)$' "$acl_string"
source $prefix/acl.cfg
"""
_KERNEL_SECTOR_AT = 0x5C
_DRIVE_CHECK_AT = 0x66
_CODE_BYTES = 0x1B8
_BLOCKLIST = struct.Struct("<QHH")
_LOAD_SEGMENT = 0x820


def core_image(tools: ToolTree, boot_number: int) -> bytes:
    """Return GRUB's core image, which reads /grub/grub.cfg from partition `boot_number` of the disk it came from."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "core.img"
        prefix = f"(,gpt{boot_number})/grub"
        run([tools.tool("grub-mkimage"), "-O", "i386-pc", "-d", tools.grub, "-p", prefix, "-o", made, *MODULES])
        return made.read_bytes()


def install(disk: Path, tools: ToolTree, *, core_lba: int, core_sectors: int, boot_number: int) -> None:
    """Write GRUB into the first sector and the BIOS boot partition at `core_lba`; the partition table stays."""
    core = bytearray(core_image(tools, boot_number))
    sectors = -(-len(core) // SECTOR)
    if sectors > core_sectors:
        raise EnvironmentFailure(
            f"GRUB's core image has {sectors} sectors, the BIOS boot partition {core_sectors}",
            mend="give the layout a larger one",
            reason="grub-too-large",
        )
    at = SECTOR - _BLOCKLIST.size
    _, length, segment = _BLOCKLIST.unpack_from(core, at)
    if (length, segment) != (sectors - 1, _LOAD_SEGMENT):
        raise EnvironmentFailure(
            f"GRUB's core image begins with a list of {length} sectors at segment {segment:#x}, which is not known",
            mend="compare integration/images/grub.py with this GRUB's installer",
            reason="grub-unknown",
        )
    _BLOCKLIST.pack_into(core, at, core_lba + 1, length, segment)
    first = bytearray((tools.grub / "boot.img").read_bytes()[:_CODE_BYTES])
    struct.pack_into("<Q", first, _KERNEL_SECTOR_AT, core_lba)
    # Some BIOSes name the wrong drive: for a hard disk the installer takes the jump over the mend out.
    first[_DRIVE_CHECK_AT : _DRIVE_CHECK_AT + 2] = b"\x90\x90"
    with disk.open("r+b") as file:
        file.write(first)
        file.seek(core_lba * SECTOR)
        file.write(core)


def loader_files(uki: Path, addons: Mapping[str, Path], version: str) -> dict[str, bytes]:
    """Return what lies on the boot partition of a new disk besides the release `version` in slot a."""
    words = [(name, partial(_whole, path)) for name, path in addons.items()]
    return {
        CONFIG: _CONFIG,
        SCRIPT: shipped_script(),
        **dict.fromkeys(BLOCKS, factory_block(version)),
        start_path(Slot.A): start_text(Slot.A, grub_uki_path(Slot.A), partial(_whole, uki), words),
    }


def _whole(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()
