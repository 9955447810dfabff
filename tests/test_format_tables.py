"""Indexes, maps and recipes are signed, and still parsed as hostile bytes."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import InvalidDocument, Untrusted
from updater.format.blockmap import (
    BlockMap,
    Candidates,
    Placed,
    encode_candidates,
    encode_map,
    parse_candidates,
    parse_map,
)
from updater.format.compression import PIECE_BYTES, pack
from updater.format.frames import encode_frames, parse_frames
from updater.format.recipe import Codec, Copy, Operation, Recipe, Run, encode_recipe, parse_recipe
from updater.format.transport import Blob, Delta, Framed, Index, Reuse

FILE = Blob(300, "ab" * 32)
FRAMES = encode_frames(10_000, 4096, 20, 4096, [(100, [b"a" * 32]), (150, [b"b" * 32]), (50, [b"c" * 32])])
MAP = BlockMap(9, (Placed(0, 2, 1, 5), Placed(2, 4, 0, 0), Placed(6, 3, 2, 0)))
CANDIDATES = Candidates(5, bytes(range(25)))
OPERATION = Operation(0, Codec.ZSTD, 0, 60, b"p" * 32, b"o" * 32, (Run(3, 2),), (Run(1, 1),))
RECIPE = Recipe(
    7 * 4096 - 1,
    5 * 4096,
    (Copy(0, 2, 3), Copy(5, 1, 0)),
    (Run(2, 1),),
    (OPERATION, replace(OPERATION, number=1, offset=60, outputs=(Run(6, 1),), sources=())),
)


def index(raw: bytes, content: bytes | None = None) -> Index:
    return Index(len(raw), len(raw if content is None else content), hashlib.sha256(raw).hexdigest())


def framed(raw: bytes) -> Framed:
    return Framed(index(raw), FILE)


def reuse(table: bytes, candidates: bytes = b"-") -> Reuse:
    return Reuse(index(table), index(candidates), [framed(FRAMES), framed(FRAMES)])


def delta(raw: bytes, **changes: Any) -> Delta:
    return Delta(
        **{
            "source": "cd" * 32,
            "source_version": "1.0.0",
            "recipe": index(raw),
            "payload": Blob(120, "ef" * 32),
            "memory_bytes": RECIPE.memory_bytes,
            **changes,
        }
    )


def recipe_of(raw: bytes, **changes: Any) -> Recipe:
    return parse_recipe(raw, delta(raw, **changes), RECIPE.content_bytes, "recipe")


PARSERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "frames": (FRAMES, lambda raw: parse_frames(raw, framed(raw), "frames")),
    "map": (encode_map(MAP), lambda raw: parse_map(raw, reuse(raw), 9, (7, 3), "map")),
    "candidates": (
        encode_candidates(CANDIDATES),
        lambda raw: parse_candidates(raw, reuse(encode_map(MAP), raw), MAP, "candidates"),
    ),
    "recipe": (encode_recipe(RECIPE), recipe_of),
}


def test_frames_are_found_again() -> None:
    found = parse_frames(FRAMES, framed(FRAMES), "frames")
    assert (found.count, found.file_bytes, found.content_bytes) == (3, 300, 10_000)
    last = found.frame(2)
    assert (last.offset, last.length_bytes, last.content_offset, last.content_bytes) == (250, 50, 8192, 1808)
    assert last.chunks == ((250, 50, b"c" * 32),)
    assert [frame.number for frame in found.covering(4095, 2)] == [0, 1]
    assert [frame.number for frame in found.covering(4096, 4096)] == [1]
    assert not list(found.covering(5, 0))


def test_a_frame_of_several_chunks_is_found_again() -> None:
    lengths, chunk = (9000, 4096, 1), 4096
    digests = [[b"a" * 32, b"b" * 32, b"c" * 32], [b"d" * 32], [b"e" * 32]]
    raw = encode_frames(3 << 20, 1 << 20, 18, chunk, list(zip(lengths, digests, strict=True)))
    pin = Framed(index(raw), Blob(sum(lengths), "ab" * 32))
    found = parse_frames(raw, pin, "frames")
    assert [frame.chunks for frame in found.covering(0, 3 << 20)] == [
        ((0, 4096, b"a" * 32), (4096, 4096, b"b" * 32), (8192, 808, b"c" * 32)),
        ((9000, 4096, b"d" * 32),),
        ((13096, 1, b"e" * 32),),
    ]
    # What unpacking needs follows from the window alone, however long the frames are.
    assert found.memory_bytes == (1 << 18) + 2 * PIECE_BYTES
    with pytest.raises(InvalidDocument):
        parse_frames(raw[:-32], Framed(index(raw[:-32]), pin.file), "frames")
    with pytest.raises(InvalidDocument):
        parse_frames(raw + b"f" * 32, Framed(index(raw + b"f" * 32), pin.file), "frames")


def test_a_map_and_its_candidates_are_found_again() -> None:
    table, short = encode_map(MAP), encode_candidates(CANDIDATES)
    found = parse_map(table, reuse(table, short), 9, (7, 3), "map")
    assert found == MAP
    assert list(found.within(1, 6)) == [Placed(1, 1, 1, 6), Placed(2, 4, 0, 0), Placed(6, 1, 2, 0)]
    candidates = parse_candidates(short, reuse(table, short), found, "candidates")
    assert [block for block, _ in candidates.of(found.runs)] == [0, 1, 6, 7, 8]
    assert next(iter(candidates.of(found.runs))) == (0, bytes(range(5)))


def test_a_recipe_is_found_again() -> None:
    raw = encode_recipe(RECIPE)
    assert recipe_of(raw) == RECIPE


def test_a_packed_index_is_hashed_then_unpacked() -> None:
    content = encode_recipe(RECIPE)
    raw = pack(content, 19)
    pin = index(raw, content)
    assert parse_recipe(raw, delta(raw, recipe=pin), RECIPE.content_bytes, "recipe") == RECIPE
    short = Index(pin.length_bytes, pin.content_bytes - 1, pin.sha256)
    with pytest.raises(InvalidDocument):
        parse_recipe(raw, delta(raw, recipe=short), RECIPE.content_bytes, "recipe")


@pytest.mark.parametrize("kind", PARSERS)
def test_bytes_that_are_not_pinned_are_not_parsed(kind: str) -> None:
    good, parse = PARSERS[kind]
    parse(good)
    with pytest.raises(Untrusted) as caught:
        parse_frames(good + b"x", framed(good), kind)
    assert caught.value.reason == "wrong-bytes"


@pytest.mark.parametrize("kind", PARSERS)
def test_a_table_that_ends_early_or_late_is_refused(kind: str) -> None:
    good, parse = PARSERS[kind]
    for bad in (good[:-1], good[:20], b"", good + b"\0", b"ACLXXX\0\1" + good[8:], good[:7] + b"\2" + good[8:]):
        with pytest.raises(InvalidDocument) as caught:
            parse(bad)
        assert caught.value.mend


@given(kind=st.sampled_from(sorted(PARSERS)), at=st.integers(0, 400), value=st.integers(0, 0xFFFFFFFF))
def test_any_changed_number_is_parsed_or_refused(kind: str, at: int, value: int) -> None:
    good, parse = PARSERS[kind]
    at = min(at * 4, len(good) - 4)
    changed = good[:at] + struct.pack("<I", value) + good[at + 4 :]
    with contextlib.suppress(InvalidDocument):
        parse(changed)


@given(raw=st.binary(max_size=300), kind=st.sampled_from(sorted(PARSERS)))
def test_any_bytes_behind_the_magic_are_parsed_or_refused(raw: bytes, kind: str) -> None:
    good, parse = PARSERS[kind]
    with contextlib.suppress(InvalidDocument):
        parse(good[:8] + raw)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"copies": (Copy(0, 2, 3), Copy(1, 1, 0))}, "twice, or not at all"),
        ({"copies": (Copy(0, 2, 3),)}, "twice, or not at all"),
        ({"copies": (Copy(0, 2, 4), Copy(5, 1, 0))}, "beyond its source"),
        ({"copies": (Copy(5, 1, 0), Copy(0, 2, 3))}, "out of order"),
        ({"copies": (Copy(0, 2, 3), Copy(5, 1, 0), Copy(7, 0, 0))}, "beyond its source"),
        ({"zeros": (Run(2, 1), Run(7, 1))}, "makes 8 blocks of 7"),
        ({"content_bytes": 8 * 4096}, "does not make"),
        ({"operations": RECIPE.operations[::-1]}, "out of order"),
        ({"operations": RECIPE.operations[:1]}, "twice, or not at all|makes 6 blocks"),
        ({"operations": (replace(OPERATION, sources=(Run(5, 1),)), RECIPE.operations[1])}, "beyond its source"),
        ({"operations": (replace(OPERATION, length_bytes=0), RECIPE.operations[1])}, "has 0 bytes"),
        ({"operations": (replace(OPERATION, length_bytes=1 << 20), RECIPE.operations[1])}, "has 1048576 bytes"),
        ({"operations": (replace(OPERATION, outputs=()), RECIPE.operations[1])}, "makes nothing"),
    ],
)
def test_a_recipe_that_does_not_add_up_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidDocument, match=why):
        recipe_of(encode_recipe(replace(RECIPE, **change)))


def test_an_operation_that_is_too_large_is_refused() -> None:
    blocks = 5000
    large = replace(OPERATION, outputs=(Run(0, blocks),), sources=())
    raw = encode_recipe(Recipe(blocks * 4096, 4096, (), (), (large,)))
    pin = delta(raw, payload=Blob(60, "ef" * 32), memory_bytes=1 << 40)
    with pytest.raises(InvalidDocument, match="too large"):
        parse_recipe(raw, pin, blocks * 4096, "recipe")


def test_a_recipe_that_needs_more_memory_than_declared_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="more than the manifest declares"):
        recipe_of(encode_recipe(RECIPE), memory_bytes=RECIPE.memory_bytes - 1)


def test_a_recipe_whose_payload_has_another_length_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="payload's length"):
        recipe_of(encode_recipe(RECIPE), payload=Blob(121, "ef" * 32))
    with pytest.raises(InvalidDocument, match="payload's length"):
        recipe_of(encode_recipe(RECIPE), payload=None)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ((Placed(0, 9, 3, 0),), "malformed"),
        ((Placed(0, 9, 0, 1),), "malformed"),
        ((Placed(0, 9, 2, 0),), "leaves pack 1"),
        ((Placed(0, 0, 1, 0), Placed(0, 9, 0, 0)), "malformed"),
        ((Placed(0, 5, 1, 0),), "have 5 blocks"),
        ((Placed(0, 7, 1, 0), Placed(7, 7, 1, 0)), "have 14 blocks"),
    ],
)
def test_a_map_that_does_not_add_up_is_refused(runs: tuple[Placed, ...], why: str) -> None:
    raw = encode_map(BlockMap(9, runs))
    with pytest.raises(InvalidDocument, match=why):
        parse_map(raw, reuse(raw), 9, (7, 3), "map")


def test_a_map_of_another_image_is_refused() -> None:
    raw = encode_map(MAP)
    with pytest.raises(InvalidDocument, match="not the map of an image of 10 blocks"):
        parse_map(raw, reuse(raw), 10, (7, 3), "map")


@pytest.mark.parametrize(
    ("content", "frame", "window", "chunk", "lengths"),
    [
        (10_000, 4096, 20, 4096, [100, 150, 51]),
        (10_000, 4096, 20, 4096, [0, 250, 50]),
        (10_000, 4096, 26, 4096, [100, 150, 50]),
        (10_000, 1024, 20, 4096, [30] * 10),
        (1 << 30, 512 << 20, 20, 4096, [100, 200]),
        (10_000, 4096, 20, 64, [100, 150, 50]),
        (10_000, 4096, 20, 64 << 20, [100, 150, 50]),
    ],
)
def test_frames_that_do_not_add_up_are_refused(
    content: int, frame: int, window: int, chunk: int, lengths: list[int]
) -> None:
    raw = encode_frames(content, frame, window, chunk, [(length, [bytes(32)]) for length in lengths])
    with pytest.raises(InvalidDocument):
        parse_frames(raw, framed(raw), "frames")
