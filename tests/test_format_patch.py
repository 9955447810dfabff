"""Frames and operations: hashed before they are unpacked, stopped at their declared length, proven at the end."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import EnvironmentFailure, InvalidDocument, Untrusted
from updater.format.compression import pack, unpack, unpacked
from updater.format.frames import Chunk, Frame
from updater.format.patch import Triple, added_bytes, apply, encode_triples, encode_zstd
from updater.format.recipe import Codec, Operation, Run

SOURCE = random.Random(1).randbytes(3 * 4096)
OUTPUT = SOURCE[5000:9000] + b"new bytes" + SOURCE[100:4283]


def operation(codec: Codec, payload: bytes, output: bytes = OUTPUT) -> Operation:
    digests = hashlib.sha256(payload).digest(), hashlib.sha256(output).digest()
    return Operation(7, codec, 0, len(payload), *digests, (Run(0, len(output) // 4096),), (Run(0, 3),))


def triples() -> bytes:
    rows = [Triple(4000, 9, 100 - 9000), Triple(4183, 0, 0)]
    return encode_triples([Triple(0, 0, 5000), *rows], bytes(8183), b"new bytes", 19)


@pytest.fixture(params=[Codec.ZSTD, Codec.BSDIFF])
def made(request: pytest.FixtureRequest) -> tuple[Operation, bytes]:
    payload = encode_zstd(SOURCE, OUTPUT, 19) if request.param is Codec.ZSTD else triples()
    return operation(request.param, payload), payload


def test_an_operation_makes_its_output(made: tuple[Operation, bytes]) -> None:
    step, payload = made
    assert len(payload) < 200
    assert apply(step, payload, SOURCE, "delta") == OUTPUT


def test_a_payload_that_is_not_pinned_is_not_unpacked(made: tuple[Operation, bytes]) -> None:
    step, payload = made
    for wrong in (payload[:-1], payload + b"x", b"", bytes(len(payload))):
        with pytest.raises(Untrusted) as caught:
            apply(step, wrong, SOURCE, "delta")
        assert caught.value.reason == "wrong-bytes"


def test_a_rotten_source_does_not_poison_the_output(made: tuple[Operation, bytes]) -> None:
    step, payload = made
    rotten = bytearray(SOURCE)
    rotten[6000] ^= 1
    with pytest.raises((EnvironmentFailure, InvalidDocument)) as caught:
        apply(step, payload, bytes(rotten), "delta")
    if isinstance(caught.value, EnvironmentFailure):
        assert caught.value.reason == "operation-failed"
        assert "operation 7" in str(caught.value)


@pytest.mark.parametrize("codec", list(Codec))
@given(raw=st.binary(max_size=200), at=st.integers(0, 500), value=st.integers(0, 255))
def test_a_malformed_payload_is_refused_however_well_it_is_signed(
    codec: Codec, raw: bytes, at: int, value: int
) -> None:
    good = encode_zstd(SOURCE, OUTPUT, 3) if codec is Codec.ZSTD else triples()
    at = min(at, len(good) - 1)
    for payload in (raw, good[:at] + bytes([value]) + good[at + 1 :]):
        try:
            assert apply(operation(codec, payload), payload, SOURCE, "delta") == OUTPUT
        except (InvalidDocument, EnvironmentFailure):
            continue


@pytest.mark.parametrize(
    "rows",
    [
        [Triple(4096 * 4, 0, 0)],
        [Triple(0, 0, -1), Triple(1, 8191, 0)],
        [Triple(0, 0, 1 << 30), Triple(1, 8191, 0)],
        [Triple(8193, 0, 0)],
        [],
    ],
)
def test_triples_that_leave_the_source_or_the_output_are_refused(rows: list[Triple]) -> None:
    payload = encode_triples(rows, bytes(sum(row.add for row in rows)), bytes(sum(row.insert for row in rows)), 3)
    with pytest.raises(InvalidDocument):
        apply(operation(Codec.BSDIFF, payload, bytes(8192)), payload, SOURCE, "delta")


@pytest.mark.parametrize("stream", [b"", b"abc", bytes(100_000), random.Random(2).randbytes(9000), b"ab1c" * 9000])
def test_every_stream_comes_back(stream: bytes) -> None:
    output = stream.ljust(-(-max(1, len(stream)) // 4096) * 4096, b"\0")
    payload = encode_triples([Triple(0, len(output), 0)], b"", output, 19)
    assert apply(operation(Codec.BSDIFF, payload, output), payload, SOURCE, "delta") == output


@given(st.binary(max_size=300).flatmap(lambda a: st.tuples(st.just(a), st.binary(min_size=len(a), max_size=len(a)))))
def test_bytes_are_added_without_carries(pair: tuple[bytes, bytes]) -> None:
    first, second = pair
    assert added_bytes(first, second) == bytes((a + b) & 255 for a, b in zip(first, second, strict=True))


def test_a_bomb_stops_at_its_declared_length() -> None:
    bomb = pack(bytes(1 << 28), 3)
    assert len(bomb) < 50_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDocument, match=r"more than 4096 bytes|too much memory"):
            unpack(bomb, 4096, "bomb")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_window_larger_than_declared_is_refused() -> None:
    content = random.Random(3).randbytes(1 << 20) * 3
    raw = pack(content, 3, window_log=22)
    with pytest.raises(InvalidDocument, match="memory"):
        b"".join(unpacked(raw, len(content), "frame", window_log=16))


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_frame_of_another_length_is_refused(change: int) -> None:
    raw = pack(bytes(5000), 3)
    with pytest.raises(InvalidDocument):
        unpack(raw, 5000 + change, "frame")


def test_a_frame_that_is_cut_or_followed_by_more_is_refused() -> None:
    raw = pack(SOURCE, 3)
    for wrong in (raw[:-1], raw[:5], b"", raw + b"\0", raw + raw):
        with pytest.raises(InvalidDocument):
            unpack(wrong, len(SOURCE), "frame")


def frame_of(raw: bytes, chunk_bytes: int, content_bytes: int) -> Frame:
    chunks = (raw[at : at + chunk_bytes] for at in range(0, len(raw), chunk_bytes))
    proofs = tuple(
        Chunk(number * chunk_bytes, len(chunk), hashlib.sha256(chunk).digest()) for number, chunk in enumerate(chunks)
    )
    return Frame(3, 0, len(raw), 0, content_bytes, 20, proofs)


@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 20])
def test_each_chunk_of_a_frame_is_hashed_before_it_is_unpacked(chunk_bytes: int) -> None:
    raw = pack(SOURCE, 3, window_log=20)
    frame = frame_of(raw, chunk_bytes, len(SOURCE))
    assert b"".join(frame.unpack(frame.prove(raw, "image"), "image")) == SOURCE
    handed_over: list[bytes] = []

    def noted() -> Iterator[memoryview]:
        for chunk in frame.prove(raw[:-1] + b"x", "image"):
            handed_over.append(bytes(chunk))
            yield chunk

    with pytest.raises(Untrusted, match="image, frame 3"):
        b"".join(frame.unpack(noted(), "image"))
    assert b"".join(handed_over) == raw[: (len(raw) - 1) // chunk_bytes * chunk_bytes]
    with pytest.raises(InvalidDocument):
        b"".join(replace(frame, content_bytes=len(SOURCE) - 1).unpack(frame.prove(raw, "image"), "image"))


def test_a_frame_that_comes_in_chunks_ends_where_its_last_chunk_ends() -> None:
    raw = pack(SOURCE, 3, window_log=20)
    frame = frame_of(raw, 1000, len(SOURCE))
    pieces = [raw[at : at + 1000] for at in range(0, len(raw), 1000)]
    assert b"".join(frame.unpack(pieces, "image")) == SOURCE
    for wrong in ([], pieces[:-1], [*pieces, b"\0"], [*pieces[:-1], pieces[-1] + b"\0"], [*pieces, pieces[0]]):
        with pytest.raises(InvalidDocument):
            b"".join(frame.unpack(wrong, "image"))
