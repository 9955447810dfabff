"""Small PE files for tests: just enough of a UKI for firmware's rules and ours."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ROOT_HASH = "5" * 64
COMMAND_LINE = f"roothash={ROOT_HASH} systemd.verity_root_options=panic-on-corruption console=ttyS0"
FILE_ALIGNMENT = 512
SECTION_ALIGNMENT = 4096


def os_release(version: str = "2") -> bytes:
    return f'ID=acl-reference\nIMAGE_ID=acl-reference\nIMAGE_VERSION={version}\nNAME="ACL"\n'.encode()


def uki_sections(version: str = "2", command_line: str = COMMAND_LINE) -> list[tuple[str, bytes]]:
    return [
        (".text", b"\xc3" * 100),
        (".osrel", os_release(version)),
        (".cmdline", command_line.encode()),
        (".linux", b"kernel" * 300),
        (".initrd", b"initrd" * 500),
    ]


def build_pe(
    sections: Sequence[tuple[str, bytes]],
    *,
    machine: int = 0x8664,
    subsystem: int = 10,
    certificates: bytes = b"",
) -> bytes:
    """Return a 64-bit PE file of `sections`, entered at the first one."""
    headers = 64 + 4 + 20 + 240 + 40 * len(sections)
    header_bytes = -(-headers // FILE_ALIGNMENT) * FILE_ALIGNMENT
    table, body = b"", b""
    address, offset = SECTION_ALIGNMENT, header_bytes
    for name, content in sections:
        raw = content.ljust(-(-len(content) // FILE_ALIGNMENT) * FILE_ALIGNMENT, b"\0")
        flags = 0x60000020 if name == ".text" else 0x40000040
        table += struct.pack("<8sLLLLLLHHL", name.encode(), len(content), address, len(raw), offset, 0, 0, 0, 0, flags)
        body += raw
        offset += len(raw)
        address += -(-len(raw) // SECTION_ALIGNMENT) * SECTION_ALIGNMENT
    directories = [(0, 0)] * 16
    if certificates:
        directories[4] = (header_bytes + len(body), len(certificates))
    optional = struct.pack(
        "<HBBLLLLLQLLHHHHHHLLLLHHQQQQLL",
        0x20B, 0, 0, 0, 0, 0, SECTION_ALIGNMENT, SECTION_ALIGNMENT,
        0x14DF00000, SECTION_ALIGNMENT, FILE_ALIGNMENT, 0, 0, 0, 0, 0, 0,
        0, address, header_bytes, 0, subsystem, 0, 0, 0, 0, 0, 0, 16,
    )  # fmt: skip
    optional += b"".join(struct.pack("<LL", *entry) for entry in directories)
    coff = struct.pack("<HHLLLHH", machine, len(sections), 0, 0, 0, len(optional), 0x22)
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<L", 64)
    return (dos + b"PE\0\0" + coff + optional + table).ljust(header_bytes, b"\0") + body + certificates


def build_uki(version: str = "2", command_line: str = COMMAND_LINE) -> bytes:
    """Return a sound UKI of a release."""
    return build_pe(uki_sections(version, command_line))
