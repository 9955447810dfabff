"""The search for what two byte strings have in common: whatever it finds makes the output, byte for byte."""

from __future__ import annotations

import hashlib
import random

import hdiffpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import EnvironmentFailure
from updater.format.patch import apply, encode_triples
from updater.format.recipe import Codec, Operation, Run
from updater.manifest import BLOCK_BYTES
from updater.release.search import covers, triples

RANDOM = random.Random(9).randbytes(5 * BLOCK_BYTES)


def made(source: bytes, output: bytes) -> bytes:
    """Return what a node makes of the triples; both in whole blocks."""
    payload = encode_triples(*triples(source, output), 3)
    digests = (hashlib.sha256(payload).digest(), hashlib.sha256(output).digest())
    runs = (Run(0, len(output) // BLOCK_BYTES),), (Run(0, len(source) // BLOCK_BYTES),)
    return apply(Operation(0, Codec.BSDIFF, 0, len(payload), *digests, *runs), payload, source, "test")


@given(
    pieces=st.lists(
        st.one_of(
            st.tuples(st.integers(0, len(RANDOM)), st.integers(0, 3000)).map(lambda at: RANDOM[at[0] : at[0] + at[1]]),
            st.binary(max_size=200),
            st.integers(0, 255).map(lambda byte: bytes([byte]) * 500),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_output_comes_out_of_any_source(pieces: list[bytes]) -> None:
    output = b"".join(pieces).ljust(4 * BLOCK_BYTES, b"\0")[: 4 * BLOCK_BYTES]
    assert made(RANDOM, output) == output


@pytest.mark.parametrize(
    "output",
    [RANDOM, RANDOM[::-1], bytes(BLOCK_BYTES), RANDOM[-BLOCK_BYTES:] + RANDOM[:BLOCK_BYTES]],
    ids=["the same", "nothing in common", "zeros", "backwards"],
)
def test_seeks_lead_anywhere_and_back(output: bytes) -> None:
    assert made(RANDOM, output) == output


def test_what_did_not_change_takes_one_triple() -> None:
    rows, diff, insert = triples(RANDOM, RANDOM)
    assert [tuple(row) for row in rows] == [(len(RANDOM), 0, 0)]
    assert (set(diff), insert) == ({0}, b"")


def test_covers_lie_in_order_inside_both_sides() -> None:
    output = RANDOM[9000:15000] + b"new" + RANDOM[:7000]
    at = 0
    for cover in covers(RANDOM, output):
        assert cover.new >= at
        assert 0 <= cover.old <= cover.old + cover.length <= len(RANDOM)
        at = cover.new + cover.length
    assert at <= len(output)


def test_another_format_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdiffpatch, "diff", lambda *_, **__: b"HDIFF99&\0")
    with pytest.raises(EnvironmentFailure) as caught:
        covers(RANDOM, RANDOM)
    assert caught.value.reason == "tool-unknown"
