"""Initrds come unpacked archive by archive, as the kernel reads them."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import InvalidDocument
from updater.format.compression import pack
from updater.format.transport import FrameWithin
from updater.release.cpio import TreeFile, write_cpio
from updater.release.packings import packing_of
from updater.release.plain_initrd import plain_initrd, repacked_initrd, zstd_frames

EARLY = write_cpio({"kernel/x86/microcode/GenuineIntel.bin": TreeFile(b"microcode" * 99)}, 0)
MAIN = write_cpio({"init": TreeFile(b"#!/bin/sh\n" * 500, 0o755), "bin/sh": TreeFile(link="busybox")}, 0)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "zstd": lambda raw: pack(raw, 3),
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_each_compression_of_the_kernel_is_taken_off(packer: str) -> None:
    packed = PACKERS[packer](MAIN)
    assert plain_initrd(packed, "initrd") == MAIN
    assert plain_initrd(EARLY + packed, "initrd") == EARLY + MAIN
    assert plain_initrd(EARLY + packed + bytes(8) + packed, "initrd") == EARLY + MAIN + MAIN


def test_archives_inside_of_one_compressed_stream_stay_in_order() -> None:
    assert plain_initrd(pack(EARLY + MAIN, 3), "initrd") == EARLY + MAIN


def test_what_is_plain_stays_as_it_is() -> None:
    once = plain_initrd(EARLY + pack(MAIN, 3), "initrd")
    assert plain_initrd(once, "initrd") == once
    assert not len(once) % 512


@pytest.mark.parametrize("packer", PACKERS)
def test_a_repacked_initrd_holds_the_same_archives(packer: str) -> None:
    packed = PACKERS[packer](MAIN)
    zeros = bytes(8 + -len(EARLY + packed) % 4)
    for raw in (packed, EARLY + packed, EARLY + packed + zeros + EARLY + packed):
        again = repacked_initrd(raw, "initrd")
        assert plain_initrd(again, "initrd") == plain_initrd(raw, "initrd")
        assert repacked_initrd(again, "initrd") == again
        if packer != "zstd":
            assert again == raw


def test_what_was_repacked_any_node_can_pack_again() -> None:
    again = repacked_initrd(EARLY + pack(MAIN, 19), "initrd")
    (at,) = zstd_frames(again, "initrd")
    packing = packing_of(memoryview(again)[at:], FrameWithin(at, len(again) - at, len(MAIN)))
    assert packing is not None
    assert packing.checksum
    assert not packing.sized


@pytest.mark.parametrize("raw", [b"unknown", MAIN[:200], MAIN[:110], pack(MAIN, 3)[:-2], MAIN[:94] + b"z" + MAIN[95:]])
def test_a_broken_initrd_is_refused_with_a_mend(raw: bytes) -> None:
    with pytest.raises(InvalidDocument) as caught:
        plain_initrd(raw, "initrd.img")
    assert caught.value.source == "initrd.img"
    assert "--plain-initrd" in caught.value.mend


@given(at=st.integers(0, len(EARLY + MAIN) - 1), value=st.integers(0, 255))
def test_any_changed_byte_is_taken_or_refused(at: int, value: int) -> None:
    raw = bytearray(EARLY + MAIN)
    raw[at] = value
    try:
        assert len(plain_initrd(bytes(raw), "initrd")) <= len(raw) + 512
    except InvalidDocument:
        return
