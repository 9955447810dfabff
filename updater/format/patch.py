"""Applying and encoding one operation of a recipe: zstd with a prefix, or bsdiff's triples."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from updater.errors import EnvironmentFailure
from updater.format.columns import malformed, require_digest
from updater.format.compression import pack, unpack
from updater.format.recipe import Codec, Operation

_HEADER = struct.Struct("<IIII")
_TRIPLE = struct.Struct("<IIi")
_LZMA_DICTIONARY_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 12
_UNCHANGED = bytes(_CHUNK_BYTES)


class Coder(IntEnum):
    """How one stream of a bsdiff operation is compressed."""

    PLAIN = 0
    ZSTD = 1
    BZIP2 = 2
    LZMA2 = 3


class Triple(NamedTuple):
    """Add `add` bytes of the diff stream to the source, insert `insert` bytes, then move on in the source by `seek`."""

    add: int
    insert: int
    seek: int


def apply(operation: Operation, payload: bytes | memoryview, source: bytes | memoryview, what: str) -> bytes:
    """Return the operation's output, proven.

    Raises Untrusted (`wrong-bytes`) before `payload` is unpacked when it is not what the recipe pins; InvalidDocument
    for a malformed one; EnvironmentFailure (`operation-failed`) when the output is wrong: the source blocks are not
    what they should be, or the decompressor errs.
    """
    name = f"{what}, operation {operation.number}"
    require_digest(payload, operation.length_bytes, operation.sha256, name)
    if operation.codec is Codec.ZSTD:
        output = unpack(payload, operation.output_bytes, name, prefix=source)
    else:
        output = _patched(bytes(payload), source, operation.output_bytes, name)
    if hashlib.sha256(output).digest() != operation.output_sha256:
        raise EnvironmentFailure(
            f"{name}: its output is not what the signed recipe says",
            mend="prove the running slot; the release can still be fetched in another way",
            reason="operation-failed",
        )
    return output


def encode_zstd(source: bytes, output: bytes, level: int) -> bytes:
    """Return the payload that makes `output` from `source` as zstd's prefix."""
    return pack(output, level, prefix=source)


def encode_triples(triples: Sequence[Triple], diff: bytes, insert: bytes, level: int) -> bytes:
    """Return the payload of a bsdiff operation; each of its streams goes in the smallest of its forms."""
    control = b"".join(_TRIPLE.pack(*triple) for triple in triples)
    forms = [_smallest(stream, level) for stream in (control, diff, insert)]
    coders = sum(coder << (8 * n) for n, (coder, _) in enumerate(forms))
    header = _HEADER.pack(len(triples), coders, len(forms[0][1]), len(forms[1][1]))
    return header + b"".join(raw for _, raw in forms)


def most_triples(output_bytes: int) -> int:
    """Return how many triples an operation may have: one for 64 bytes, which keeps their memory small."""
    return output_bytes // 64 + 64


def _patched(payload: bytes, source: bytes | memoryview, output_bytes: int, what: str) -> bytes:
    if len(payload) < _HEADER.size:
        raise malformed(what, "it has no header")
    count, coders, control_bytes, diff_bytes = _HEADER.unpack_from(payload)
    at = _HEADER.size
    if count > most_triples(output_bytes) or control_bytes + diff_bytes > len(payload) - at or coders >> 24:
        raise malformed(what, "its header makes no sense")
    control = _plain(payload[at : at + control_bytes], coders & 255, count * _TRIPLE.size, what)
    added = sum(add for add, _, _ in _TRIPLE.iter_unpack(control))
    if added + sum(insert for _, insert, _ in _TRIPLE.iter_unpack(control)) != output_bytes:
        raise malformed(what, f"its triples do not make {output_bytes} bytes")
    at += control_bytes
    diff = _plain(payload[at : at + diff_bytes], coders >> 8 & 255, added, what)
    insert = _plain(payload[at + diff_bytes :], coders >> 16 & 255, output_bytes - added, what)
    output = bytearray()
    source_at = diff_at = insert_at = 0
    for triple in map(Triple._make, _TRIPLE.iter_unpack(control)):
        if not 0 <= source_at <= len(source) - triple.add:
            raise malformed(what, "it reads beyond its source")
        for start in range(0, triple.add, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, triple.add - start)
            old = source[source_at + start : source_at + start + length]
            change = diff[diff_at + start : diff_at + start + length]
            # Most of a diff is zeros.
            output += old if change == _UNCHANGED[:length] else added_bytes(old, change)
        output += insert[insert_at : insert_at + triple.insert]
        source_at += triple.add + triple.seek
        diff_at += triple.add
        insert_at += triple.insert
    # They go before the output is copied.
    del control, diff, insert
    return bytes(output)


def added_bytes(first: bytes | memoryview, second: bytes | memoryview) -> bytes:
    """Return the sums modulo 256 of two equally long byte strings.

    Both are added as one long number each, the top bit of every byte apart, so that no sum carries into its
    neighbour: as fast as C for long strings, without a compiled module on the node.
    """
    length = len(first)
    low, top = _masks(length)
    one, two = int.from_bytes(first, "little"), int.from_bytes(second, "little")
    return (((one & low) + (two & low)) ^ ((one ^ two) & top)).to_bytes(length, "little")


@lru_cache(maxsize=4)
def _masks(length: int) -> tuple[int, int]:
    return int.from_bytes(b"\x7f" * length, "little"), int.from_bytes(b"\x80" * length, "little")


def _smallest(stream: bytes, level: int) -> tuple[Coder, bytes]:
    import bz2
    import lzma

    forms = [(Coder.PLAIN, stream)]
    if stream:
        forms += [
            (Coder.ZSTD, pack(stream, level)),
            (Coder.BZIP2, bz2.compress(stream)),
            (Coder.LZMA2, lzma.compress(stream, lzma.FORMAT_RAW, filters=_lzma_filters())),
        ]
    return min(forms, key=lambda form: len(form[1]))


def _plain(raw: bytes, coder: int, length: int, what: str) -> bytes:
    """Return a stream's content; raise InvalidDocument unless it has `length` bytes."""
    import bz2
    import lzma

    if coder == Coder.PLAIN:
        if len(raw) != length:
            raise malformed(what, f"a stream has not {length} bytes")
        return raw
    if coder == Coder.ZSTD:
        return unpack(raw, length, what)
    if coder not in (Coder.BZIP2, Coder.LZMA2):
        raise malformed(what, "a stream is compressed in an unknown way")
    unpacker = (
        bz2.BZ2Decompressor()
        if coder == Coder.BZIP2
        else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma_filters())
    )
    try:
        # One byte more than is due shows a stream that goes on.
        found = unpacker.decompress(raw, length + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise malformed(what, f"a stream cannot be unpacked: {error}") from error
    if len(found) != length:
        raise malformed(what, f"a stream does not unpack to {length} bytes")
    return found


def _lzma_filters() -> list[dict[str, int]]:
    import lzma

    return [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": _LZMA_DICTIONARY_BYTES, "lc": 0, "lp": 0, "pb": 0}]
