"""UKIs for tests whose kernel and initrd are compressed as vendors compress theirs."""

from __future__ import annotations

import random

from tests.portable_executable import COMMAND_LINE, build_pe, os_release
from updater.format.through import even_pieces, pack_frame
from updater.format.transport import Packing
from updater.release.cpio import TreeFile, write_cpio

KERNEL = Packing(0, 1, 19, worker=False, checksum=True, sized=False)
INITRD = Packing(0, 1, 11, worker=False, checksum=True, sized=True)


def kernel(content: bytes, packing: Packing = KERNEL) -> bytes:
    """Return an x86 kernel image with a frame of `content`: the kernel's arch/x86/boot.rst."""
    payload = frame(content, packing) + len(content).to_bytes(4, "little")
    head = bytearray(5 * 512)
    head[0x1F1] = 4
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x250] = (256).to_bytes(4, "little") + len(payload).to_bytes(4, "little")
    return bytes(head) + bytes(256) + payload + b"loader" * 100


def initrd(content: bytes, packing: Packing = INITRD) -> bytes:
    """Return an early archive as it is, and a compressed one with `content`."""
    early = write_cpio({"kernel/x86/microcode": TreeFile(b"microcode" * 100)}, 0)
    return early + frame(write_cpio({"usr/lib/module": TreeFile(content)}, 0), packing)


def frame(content: bytes, packing: Packing) -> bytes:
    """Return the frame of `content`."""
    placed = Packing(0, len(content), packing.level, packing.worker, packing.checksum, packing.sized)
    return b"".join(pack_frame(even_pieces([content]), placed))


def uki(version: str, linux: bytes, initrds: bytes, command_line: str = COMMAND_LINE) -> bytes:
    """Return a UKI with these sections."""
    return build_pe(
        [
            (".text", b"\xc3" * 100),
            (".osrel", os_release(version)),
            (".cmdline", command_line.encode()),
            (".linux", linux),
            (".initrd", initrds),
        ]
    )


def code(seed: int, length: int = 400_000) -> bytes:
    """Return bytes that compress to about half, as programs do."""
    draw = random.Random(seed)
    return bytes(draw.choices(range(256), weights=[16 if byte < 16 else 1 for byte in range(256)], k=length))


def edited(content: bytes, seed: int) -> bytes:
    """Return the same with some bytes put in and some changed, as a security update does."""
    draw = random.Random(seed)
    changed = bytearray(content)
    for at in draw.sample(range(len(changed)), 40):
        changed[at] ^= 0x55
    middle = len(changed) // 2
    changed[middle:middle] = draw.randbytes(100)
    return bytes(changed)
