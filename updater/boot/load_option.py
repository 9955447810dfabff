"""EFI load options as values: parsed from hostile bytes, built for a file on a GPT partition.

Pure: bytes in, values out; what cannot be read is None, since the firmware skips it too. Sources: UEFI 2.10, 3.1.3
(EFI_LOAD_OPTION), 10.3.1 (device path nodes), 10.3.5.1 (hard drive), 10.3.5.4 (file path), 3.1.2 (short forms).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from uuid import UUID

ACTIVE = 0x1
# A description that every firmware's menu can show; ours have some forty letters.
MAX_DESCRIPTION = 200

_MEDIA, _HARD_DRIVE, _FILE_PATH = 0x04, 0x01, 0x04
_END, _WHOLE_END = 0x7F, 0xFF
_GPT_FORMAT, _GUID_SIGNATURE = 0x02, 0x02
_NAME = re.compile(r"Boot([0-9A-F]{4})")


@dataclass(frozen=True, slots=True)
class EspPlace:
    """Where an ESP lies on its disk, as boot options name it; lengths in the disk's own sectors."""

    number: int
    first_sector: int
    sectors: int
    part_uuid: UUID


@dataclass(frozen=True, slots=True)
class LoadOption:
    """One boot option: what the firmware shows, where its file lies, what it hands over.

    `part_uuid` and `path` (with `/`, without the leading one) are None where the device path does not name a GPT
    partition or a file; `part_uuid` stands also in the short form, which leaves the disk away.
    """

    attributes: int
    description: str
    device_path: bytes
    optional: bytes = b""
    part_uuid: UUID | None = None
    path: str | None = None

    @property
    def is_active(self) -> bool:
        """Tell whether the firmware tries this option by itself."""
        return bool(self.attributes & ACTIVE)


def option_name(number: int) -> str:
    """Return the variable that holds a boot option: `Boot0003`."""
    return f"Boot{number:04X}"


def option_number(name: str) -> int | None:
    """Return the number in `Boot0003`, None for another variable's name."""
    found = _NAME.fullmatch(name)
    return int(found[1], 16) if found else None


def parse_order(raw: bytes | None) -> tuple[int, ...]:
    """Return the numbers in BootOrder (16 bits each, little endian); each counts once, half a number is dropped."""
    numbers = [number for (number,) in struct.iter_unpack("<H", (raw or b"")[: len(raw or b"") & ~1])]
    return tuple(dict.fromkeys(numbers))


def order_bytes(numbers: tuple[int, ...]) -> bytes:
    """Return BootOrder's value."""
    return struct.pack(f"<{len(numbers)}H", *numbers)


def parse_number(raw: bytes | None) -> int | None:
    """Return the number in BootNext or BootCurrent, None when there is none."""
    return int.from_bytes(raw, "little") if raw is not None and len(raw) == 2 else None


def parse_option(raw: bytes) -> LoadOption | None:
    """Read a boot option; None for bytes that are none."""
    if len(raw) < 6:
        return None
    attributes, path_bytes = struct.unpack_from("<LH", raw)
    end = next((at for at in range(6, len(raw) - 1, 2) if raw[at : at + 2] == b"\0\0"), None)
    if end is None or end + 2 + path_bytes > len(raw):
        return None
    device_path = raw[end + 2 : end + 2 + path_bytes]
    nodes = _nodes(device_path)
    if nodes is None:
        return None
    part_uuid, path = _place(nodes)
    return LoadOption(
        attributes=attributes,
        description=raw[6:end].decode("utf-16-le", "replace"),
        device_path=device_path,
        optional=raw[end + 2 + path_bytes :],
        part_uuid=part_uuid,
        path=path,
    )


def option_bytes(option: LoadOption) -> bytes:
    """Return the value of the variable that holds an option."""
    if len(option.description) > MAX_DESCRIPTION or "\0" in option.description:
        raise ValueError(f"no description of a boot option: {option.description!r}")
    text = (option.description + "\0").encode("utf-16-le")
    return struct.pack("<LH", option.attributes, len(option.device_path)) + text + option.device_path + option.optional


def file_option(place: EspPlace, path: str, description: str, *, active: bool = True) -> LoadOption:
    """Return an option for a file on an ESP, by the short form that firmware finds on any disk.

    It hands over nothing: systemd's stub takes optional data for a command line where Secure Boot is off.
    """
    hard_drive = struct.pack("<LQQ", place.number, place.first_sector, place.sectors) + place.part_uuid.bytes_le
    hard_drive += bytes([_GPT_FORMAT, _GUID_SIGNATURE])
    text = ("\\" + path.replace("/", "\\") + "\0").encode("utf-16-le")
    device_path = _node(_MEDIA, _HARD_DRIVE, hard_drive) + _node(_MEDIA, _FILE_PATH, text) + _node(_END, _WHOLE_END)
    return LoadOption(ACTIVE if active else 0, description, device_path, b"", place.part_uuid, path)


def _node(kind: int, subtype: int, content: bytes = b"") -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(content)) + content


def _nodes(device_path: bytes) -> list[tuple[int, int, bytes]] | None:
    """Split a device path into (type, subtype, content) up to its end; None when a length leads outside."""
    nodes: list[tuple[int, int, bytes]] = []
    at = 0
    while at + 4 <= len(device_path):
        kind, subtype, length = struct.unpack_from("<BBH", device_path, at)
        if length < 4 or at + length > len(device_path):
            return None
        if kind == _END and subtype == _WHOLE_END:
            return nodes
        nodes.append((kind, subtype, device_path[at + 4 : at + length]))
        at += length
    return None


def _place(nodes: list[tuple[int, int, bytes]]) -> tuple[UUID | None, str | None]:
    part_uuid = None
    path = ""
    for kind, subtype, content in nodes:
        if (kind, subtype) == (_MEDIA, _HARD_DRIVE) and len(content) == 38 and content[37] == _GUID_SIGNATURE:
            part_uuid = UUID(bytes_le=content[20:36])
        elif (kind, subtype) == (_MEDIA, _FILE_PATH):
            # A path may be parted over several nodes.
            path += "/" + content[: len(content) & ~1].decode("utf-16-le", "replace").split("\0", 1)[0]
    clean = re.sub(r"/+", "/", path.replace("\\", "/")).strip("/")
    return part_uuid, clean or None
