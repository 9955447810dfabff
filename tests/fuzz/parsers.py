"""Each parser of hostile input: how it is called, what it may raise, and inputs that it accepts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

import msgspec

from tests.documents import MANIFEST
from tests.portable_executable import build_pe, uki_sections
from updater import gpt
from updater.boot import grub_block, load_option
from updater.boot.entries import parse_entry, parse_loader_conf
from updater.config import parse_config
from updater.errors import UpdaterError
from updater.format import blockmap, frames, later, patch, recipe
from updater.format.compression import unpacked_stream
from updater.format.transport import Blob, Delta, Framed, Index, Reuse
from updater.layouts import parse_layout
from updater.manifest import Root, parse_manifest
from updater.mounts import parse_mountinfo
from updater.records import Journal, Ledger, Policy, decode_state
from updater.uki import parse as parse_uki
from updater.verity import parse_superblock, superblock

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


def _tables(magic: bytes) -> list[bytes]:
    """Return the tables of one kind among the vectors, unpacked."""
    found = []
    for raw in _files("tests/vectors/blobs/*")():
        with contextlib.suppress(UpdaterError):
            raw = b"".join(unpacked_stream([raw], _unpacked_bytes(raw), "a vector", window_log=27))
        if raw.startswith(magic):
            found.append(raw)
    return found


def _unpacked_bytes(raw: bytes) -> int:
    """Return what a zstd frame says of its content's length, 0 for anything else."""
    from updater.format.compression import zstd

    try:
        return int(zstd().get_frame_info(raw).decompressed_size or 0)
    except Exception:
        return 0


def _blob(length: int) -> Blob:
    return Blob(max(1, length), "ab" * 32)


def _frames(raw: bytes) -> object:
    packed, index = _packed(raw)
    # The length of the file that the manifest pins is the attacker's to choose as well.
    count = min(-(-_number(raw, 0) // max(1, _number(raw, 1))), max(0, len(raw) - 40) // 4)
    total = sum(struct.unpack_from(f"<{count}I", raw, 40)) if count else 1
    found = frames.parse_frames(packed, Framed(index, _blob(total)), "frames")
    return [found.frame(number) for number in range(min(found.count, 100))]


def _frames_seeds() -> list[bytes]:
    made = [(1000 + n, [hashlib.sha256(bytes([n])).digest()]) for n in range(2)]
    return [frames.encode_frames(_CONTENT_BYTES, 4096 * 32, 20, 4096, made), *_tables(frames.MAGIC)]


def _recipe(raw: bytes) -> object:
    packed, index = _packed(raw)
    document = json.loads((_VECTORS / "transport.json").read_text())
    delta = msgspec.convert(_first_delta(document), Delta)
    copies, zeros, count = (_number(raw, n) for n in (2, 3, 4))
    lengths_at = 64 + 12 * copies + 8 * zeros + 4 * count
    fits = lengths_at + 4 * count <= len(raw)
    length = sum(struct.unpack_from(f"<{count}I", raw, lengths_at)) if fits else 1
    pinned = msgspec.structs.replace(delta, recipe=index, payload=_blob(length), memory_bytes=1 << 30)
    found = recipe.parse_recipe(packed, pinned, _number(raw, 0), "recipe")
    return found.blocks, found.payload_bytes, found.memory_bytes


def _number(raw: bytes, which: int) -> int:
    """Return one of the 64-bit numbers at a table's head: what the manifest says of it is the attacker's as well."""
    return int.from_bytes(raw[8 + 8 * which : 16 + 8 * which], "little")


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
    reuse = Reuse(index, index, [Framed(index, _blob(1 << 20))] * 4)
    found = blockmap.parse_map(packed, reuse, _number(raw, 0), [], "map")
    return blockmap.encode_map(found)


def _candidates(raw: bytes) -> object:
    packed, index = _packed(raw)
    reuse = Reuse(index, index, [Framed(index, _blob(1 << 20))])
    blocks = (max(0, len(raw) - 16)) // max(1, _number(raw, 0) or 1)
    runs = blockmap.Runs(array("I", [1]), array("I", [0]), [blocks])
    return blockmap.parse_candidates(packed, reuse, blockmap.BlockMap(blocks, runs), "candidates")


_SOURCE = bytes(range(256)) * 64


def _patch(raw: bytes) -> object:
    """Apply an operation whose payload, with the right hash, is the attacker's."""
    for codec in recipe.Codec:
        blocks = (recipe.Run(0, 4),)
        digests = hashlib.sha256(raw).digest(), bytes(32)
        operation = recipe.Operation(0, codec, 0, len(raw), *digests, blocks, blocks)
        with contextlib.suppress(UpdaterError):
            patch.apply(operation, raw, _SOURCE, "delta")
    return None


def _patch_seeds() -> list[bytes]:
    new = _SOURCE[:5000] + b"new" * 2128 + _SOURCE[5000:10000]
    triples = [patch.Triple(5000, 6384, 0), patch.Triple(5000, 0, 0)]
    made = patch.encode_triples(triples, bytes(10000), b"new" * 2128, 3)
    return [patch.encode_zstd(_SOURCE, new[:16384], 3), made]


def _later(raw: bytes) -> object:
    return later.parse_later(raw, parse_manifest(json.dumps(MANIFEST).encode(), "manifest.json"), "deltas-2.0.0.json")


def _later_seeds() -> list[bytes]:
    transport = json.loads((_VECTORS / "transport.json").read_text())
    document = {
        "format": 1,
        "version": MANIFEST["version"],
        "root_hash": MANIFEST["root"]["root_hash"],
        "uki_sha256": MANIFEST["uki"]["sha256"],
        "root": transport["root"]["deltas"],
        "uki": transport["uki"]["deltas"],
    }
    return [json.dumps(document).encode()]


def _option(raw: bytes) -> object:
    return load_option.parse_option(raw), load_option.parse_order(raw), load_option.parse_number(raw)


def _option_seeds() -> list[bytes]:
    place = load_option.EspPlace(1, 2048, 4096, UUID(int=5))
    return [load_option.option_bytes(load_option.file_option(place, "\\EFI\\acl\\a.efi", "ACL a"))]


def _grub_seeds() -> list[bytes]:
    slot = grub_block.SlotState(tries=3, given=3, generation=1, version="1.0.0")
    return [grub_block.block_bytes(grub_block.Block(slot, slot))]


def _mounts(raw: bytes) -> object:
    return parse_mountinfo(raw.decode("utf-8", "surrogateescape"))


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
        "delta": Parser(_recipe, lambda: _tables(recipe.MAGIC)),
        "blockmap": Parser(_blockmap, lambda: _tables(blockmap.MAP_MAGIC)),
        "candidates": Parser(_candidates, lambda: _tables(blockmap.CANDIDATES_MAGIC)),
        "patch": Parser(_patch, _patch_seeds),
        "later": Parser(_later, _later_seeds),
        "option": Parser(_option, _option_seeds, 1 << 10),
        "grub-block": Parser(grub_block.parse_block, _grub_seeds, 1 << 12),
        "superblock": Parser(parse_superblock, lambda: [superblock(msgspec.convert(MANIFEST["root"], Root))], 1 << 12),
        "mounts": Parser(_mounts, lambda: [b"21 1 8:2 / / rw - ext4 /dev/sda2 rw\n"], 1 << 12),
        "entry": Parser(
            _entry, lambda: [b"title A\nversion 1\nsort-key acl-1\nlinux /EFI/acl/a.efi\n", b"timeout 0\n"]
        ),
        "uki": Parser(_uki, lambda: [build_pe(uki_sections())], 1 << 14),
    }
)
