"""Each parser of hostile input: how it is called, what it may raise, and inputs that it accepts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from tests.documents import MANIFEST
from updater import gpt
from updater.boot.entries import parse_entry, parse_loader_conf
from updater.config import parse_config
from updater.errors import UpdaterError
from updater.format import blockmap, frames, recipe
from updater.format.transport import Blob, Delta, Framed, Index, Reuse
from updater.layouts import parse_layout
from updater.manifest import parse_manifest
from updater.records import Journal, Ledger, Policy, decode_state
from updater.uki import parse as parse_uki

_TOP = Path(__file__).resolve().parents[2]
_VECTORS = _TOP / "tests" / "vectors"
_DISK_BYTES = 1 << 20
_CONTENT_BYTES = 4096 * 64


@dataclass(frozen=True)
class Parser:
    """A parser under attack: only `UpdaterError` may leave it, whatever it is given."""

    parse: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    longest_bytes: int = 1 << 16


def survives(parser: Parser, data: bytes) -> None:
    """Parse; let every exception out but those that tell a user what is wrong."""
    with contextlib.suppress(UpdaterError):
        parser.parse(data)


def _files(*patterns: str) -> Callable[[], list[bytes]]:
    def read() -> list[bytes]:
        return [path.read_bytes() for pattern in patterns for path in sorted(_TOP.glob(pattern)) if path.is_file()]

    return read


def _health(raw: bytes) -> object:
    from rollback.checks import parse_health_file

    return parse_health_file(raw, "fuzz.yaml")


def _state(raw: bytes) -> object:
    """Take the body, and give it the envelope and checksum that a careful attacker would."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return decode_state(raw, Journal, "journal.json")
    found: list[object] = []
    for kind in (Journal, Ledger, Policy):
        checksum = hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()
        envelope = msgspec.json.encode({"sha256": checksum, "body": body})
        with contextlib.suppress(UpdaterError):
            found.append(decode_state(envelope, kind, "state"))
    return found


def _state_seeds() -> list[bytes]:
    return [json.dumps(msgspec.to_builtins(kind)).encode() for kind in (Journal(), Policy())] + [
        json.dumps({"serial": 1, "floor": 1, "proven": [], "quarantine": [], "seen": []}).encode()
    ]


def _table(raw: bytes) -> object:
    """Take headers and entries, and mend the checksums: without that nothing gets past the first one."""
    disk = bytearray(_DISK_BYTES)
    disk[512 : 512 + len(raw)] = raw[: _DISK_BYTES - 512]
    for lba in (1, _DISK_BYTES // 512 - 1):
        header = disk[lba * 512 : lba * 512 + 92]
        array_lba, count, size = struct.unpack_from("<QII", header, 72)
        length = count * size
        if length <= _DISK_BYTES and array_lba * 512 + length <= _DISK_BYTES:
            struct.pack_into("<I", header, 88, zlib.crc32(disk[array_lba * 512 : array_lba * 512 + length]))
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        disk[lba * 512 : lba * 512 + 92] = header

    def read(offset: int, length: int) -> bytes:
        return bytes(disk[offset : offset + length])

    table = gpt.parse(read, _DISK_BYTES)
    return table, table.primary_image(), table.backup_image()


def _table_seeds() -> list[bytes]:
    entries = bytearray(128 * 128)
    label = "root-a".encode("utf-16-le")
    struct.pack_into("<16s16sQQQ72s", entries, 0, b"t" * 16, b"u" * 16, 64, 127, 0, label)
    struct.pack_into("<16s16sQQQ72s", entries, 128, b"t" * 16, b"v" * 16, 128, 255, 1 << 60, label)
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 2047, 34, 2014, b"d" * 16, 2, 128, 128, 0
    )
    return [head.ljust(512, b"\0") + bytes(entries)]


def _packed(raw: bytes) -> tuple[bytes, Index]:
    return raw, Index(len(raw), len(raw), hashlib.sha256(raw).hexdigest())


def _blob(length: int) -> Blob:
    return Blob(max(1, length), "ab" * 32)


def _frames(raw: bytes) -> object:
    packed, index = _packed(raw)
    # The length of the file that the manifest pins is the attacker's to choose as well.
    total = 1
    if len(raw) >= 40:
        content, frame = struct.unpack_from("<QQ", raw, 8)
        count = min(-(-content // max(1, frame)), (len(raw) - 40) // 4)
        total = sum(struct.unpack_from(f"<{count}I", raw, 40))
    found = frames.parse_frames(packed, Framed(index, _blob(total)), "frames")
    return [found.frame(number) for number in range(min(found.count, 100))]


def _frames_seeds() -> list[bytes]:
    made = [(1000 + n, [hashlib.sha256(bytes([n])).digest()]) for n in range(2)]
    index = frames.encode_frames(_CONTENT_BYTES, 4096 * 32, 20, frames.LEAST_CHUNK_BYTES, made)
    return [index, *_files("tests/vectors/blobs/*")()]


def _recipe(raw: bytes) -> object:
    packed, index = _packed(raw)
    document = json.loads((_VECTORS / "transport.json").read_text())
    delta = msgspec.convert(_first_delta(document), Delta)
    return recipe.parse_recipe(packed, msgspec.structs.replace(delta, recipe=index), _CONTENT_BYTES, "recipe")


def _first_delta(document: object) -> Mapping[str, object]:
    """Return the first delta anywhere in a transport document."""
    if isinstance(document, dict):
        if "recipe" in document:
            return document
        document = list(document.values())
    for item in document if isinstance(document, list) else []:
        found = _first_delta(item)
        if found:
            return found
    return {}


def _blockmap(raw: bytes) -> object:
    packed, index = _packed(raw)
    reuse = Reuse(index, index, [Framed(index, _blob(1 << 20))])
    return blockmap.parse_map(packed, reuse, _CONTENT_BYTES // 4096, [256], "map")


def _uki(raw: bytes) -> object:
    return parse_uki(io.BytesIO(raw).getvalue(), "fuzz.efi")


def _entry(raw: bytes) -> object:
    return parse_entry(raw), parse_loader_conf(raw)


PARSERS: Mapping[str, Parser] = MappingProxyType(
    {
        "manifest": Parser(lambda raw: parse_manifest(raw, "manifest.json"), lambda: [json.dumps(MANIFEST).encode()]),
        "layout": Parser(lambda raw: parse_layout(raw, "layout.yaml"), _files("partition-layouts/*.yaml")),
        "config": Parser(
            lambda raw: parse_config([("config.yaml", raw)]),
            lambda: [b"channel: stable\nmirrors: [http://127.0.0.1]\nhealth: {deadline_s: 300}\n"],
        ),
        "health": Parser(_health, _files("rollback/health.d/*.yaml")),
        "state": Parser(_state, _state_seeds),
        "gpt": Parser(_table, _table_seeds, 1 << 15),
        "frames": Parser(_frames, _frames_seeds),
        "delta": Parser(_recipe, _files("tests/vectors/blobs/*")),
        "blockmap": Parser(_blockmap, _files("tests/vectors/blobs/*")),
        "entry": Parser(
            _entry, lambda: [b"title A\nversion 1\nsort-key acl-1\nlinux /EFI/acl/a.efi\n", b"timeout 0\n"]
        ),
        "uki": Parser(_uki, list),
    }
)
