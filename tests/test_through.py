"""Unpacked forms of files, and deltas of UKIs that go through them."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests import ukis
from updater.errors import InvalidDocument, UpdaterError
from updater.fetch import Fetcher, Retries
from updater.fill.boot_file import fetch_file
from updater.fill.boot_file_ways import Room, file_costs, pick_delta, scratch_bytes
from updater.format.compression import zstd
from updater.format.through import (
    library,
    memory_bytes,
    packed,
    packing_bytes,
    unpacked_length,
    unpacking_bytes,
    write_unpacked,
)
from updater.format.transport import Delta, FileTransport, FrameWithin, Packing, Through
from updater.prefetch import BYTES_AHEAD
from updater.records import FileRecord
from updater.release import uki_deltas
from updater.release.blobs import BlobFolder
from updater.release.delta import OperationSizes
from updater.release.packings import frames_within, packing_of
from updater.release.transport import quiet
from updater.release.uki_deltas import Ukis
from updater.ways import Choice, Way

ONE, TWO = ukis.code(1, 70_000), ukis.code(2, 200_000)
FIRST = Packing(7, len(ONE), 3, worker=False, checksum=True, sized=False)
SECOND = Packing(7 + len(ONE) + 9, len(TWO), 9, worker=True, checksum=False, sized=True)
FRAMES = ukis.frame(ONE, FIRST), ukis.frame(TWO, SECOND)
FILE = b"7 bytes" + FRAMES[0] + b"9 between" + FRAMES[1] + b"the end"
UNPACKED = b"7 bytes" + ONE + b"9 between" + TWO + b"the end"
WITHIN = [
    FrameWithin(7, len(FRAMES[0]), len(ONE)),
    FrameWithin(7 + len(FRAMES[0]) + 9, len(FRAMES[1]), len(TWO)),
]
THROUGH = Through(library(), len(UNPACKED), WITHIN, [FIRST, SECOND])


def unpack(source: Iterable[FrameWithin]) -> bytes:
    out = io.BytesIO()
    write_unpacked(io.BytesIO(FILE), len(FILE), source, out, "uki.efi")
    return out.getvalue()


def test_a_file_unpacks_and_packs_again_to_the_same_bytes() -> None:
    assert unpack(WITHIN) == UNPACKED
    assert unpacked_length(WITHIN, len(FILE), "uki.efi") == len(UNPACKED)
    assert b"".join(packed([UNPACKED], THROUGH, "uki.efi")) == FILE


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, len(UNPACKED)), max_size=12))
def test_where_the_bytes_are_cut_has_no_part_in_what_comes_out(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(UNPACKED)]
    pieces = [UNPACKED[low:high] for low, high in itertools.pairwise(edges) if low < high]
    assert b"".join(packed(pieces, THROUGH, "uki.efi")) == FILE


@pytest.mark.parametrize(
    "frames",
    [
        [WITHIN[1], WITHIN[0]],
        [replace(WITHIN[0], at_bytes=len(FILE) - 10)],
        [replace(WITHIN[0], length_bytes=len(FILE))],
        [replace(WITHIN[0], length_bytes=len(FRAMES[0]) + 10), WITHIN[1]],
    ],
)
def test_frames_that_overlap_or_leave_the_file_are_refused(frames: list[FrameWithin]) -> None:
    with pytest.raises(InvalidDocument):
        unpacked_length(frames, len(FILE), "uki.efi")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_frame_of_another_length_than_declared_is_refused(change: int) -> None:
    with pytest.raises(InvalidDocument):
        unpack([replace(WITHIN[0], content_bytes=len(ONE) + change)])


@pytest.mark.parametrize(
    "packings",
    [
        [SECOND, FIRST],
        [replace(FIRST, content_bytes=len(ONE) + 20), SECOND],
        [FIRST, replace(SECOND, content_bytes=len(TWO) + 100)],
    ],
)
def test_packings_that_overlap_or_leave_the_unpacked_form_are_refused(packings: list[Packing]) -> None:
    with pytest.raises(InvalidDocument):
        b"".join(packed([UNPACKED], replace(THROUGH, content=packings), "uki.efi"))


@pytest.mark.parametrize(
    "hostile",
    [
        {"library": "libzstd 1.5"},
        {"library": "libzstd 1.5.7\n"},
        {"content": []},
        {"content_bytes": 0},
        {"surprise": 1},
    ],
)
def test_a_malformed_detour_is_refused(hostile: dict[str, object]) -> None:
    good = msgspec.to_builtins(THROUGH)
    assert msgspec.convert(good, Through) == THROUGH
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | hostile, Through)


def test_memory_is_bounded_by_levels_and_lengths() -> None:
    large = Packing(0, 57_573_420, 22, worker=True, checksum=True, sized=False)
    assert packing_bytes(large) == (512 << 20) + (128 << 20) + 4 * 57_573_420 + (8 << 20)
    lean = Packing(0, 90 << 20, 11, worker=False, checksum=True, sized=False)
    assert packing_bytes(lean) == (8 << 20) + (16 << 20) + (4 << 20) + (8 << 20)
    assert unpacking_bytes(FrameWithin(0, 1, 512 << 20)) == (128 << 20) + (8 << 20)
    through = Through("libzstd 1.5.7", 1, [FrameWithin(0, 1, 90 << 20)], [lean])
    assert memory_bytes(through, 38 << 20) == max((36 << 20) + (38 << 20), 98 << 20)


# Deltas of UKIs.

KERNELS = ukis.code(3), ukis.edited(ukis.code(3), 4)
MODULES = ukis.code(5), ukis.edited(ukis.code(5), 6)
OLD = ukis.uki("1.0.0", ukis.kernel(KERNELS[0]), ukis.initrd(MODULES[0]))
NEW = ukis.uki("2.0.0", ukis.kernel(KERNELS[1]), ukis.initrd(MODULES[1]))
HELD = FileRecord("uki.efi", len(OLD), hashlib.sha256(OLD).hexdigest())
WANTED = FileRecord("uki.efi", len(NEW), hashlib.sha256(NEW).hexdigest())
SIZES = OperationSizes(32, 48)


class Published:
    """A folder that serves what leads from OLD to NEW."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        blobs = BlobFolder(folder / "made")
        (folder / "old.efi").write_bytes(OLD)
        (folder / "new.efi").write_bytes(NEW)
        self.deltas = Ukis(folder / "new.efi", blobs, SIZES, quiet).deltas(folder / "old.efi", HELD.sha256, "1.0.0")
        blobs.put([NEW])
        for made in (folder / "made").iterdir():
            place = folder / "blobs" / made.name[:2]
            place.mkdir(parents=True, exist_ok=True)
            made.rename(place / made.name)

    def fetch(self, path: Path, delta: Delta, barred: list[tuple[Way, str]]) -> Way:
        def on_barred(way: Way, error: UpdaterError) -> None:
            barred.append((way, error.reason))

        return fetch_file(
            Fetcher([str(self.folder)], retries=Retries(attempts=1)),
            WANTED,
            FileTransport(None, [delta]),
            Choice((Way.DELTA, Way.PLAIN), ""),
            path,
            delta=delta,
            held=lambda: [OLD[:5000], OLD[5000:]],
            on_barred=on_barred,
            progress=lambda done, total: None,
            what="uki.efi of release 2.0.0",
        )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("repository"))


def fetched(delta: Delta) -> int:
    return delta.recipe.length_bytes + (delta.payload.length_bytes if delta.payload else 0)


def test_kernel_and_initrd_are_found_with_the_packings_that_made_them() -> None:
    found = frames_within(memoryview(NEW), "uki.efi")
    assert [section for section, _ in found] == [".linux", ".initrd"]
    for (_, frame), content, used in zip(found, (KERNELS[1], None), (ukis.KERNEL, ukis.INITRD), strict=True):
        assert content is None or frame.content_bytes == len(content)
        packing = packing_of(memoryview(NEW)[frame.at_bytes : frame.at_bytes + frame.length_bytes], frame)
        assert packing is not None
        assert (packing.checksum, packing.sized) == (used.checksum, used.sized)


def test_a_frame_of_an_unknown_encoder_has_no_packing() -> None:
    packer = zstd().ZstdCompressor(level=9)
    # A block that ends where no encoder by itself ends one.
    strange = packer.compress(TWO[:1000], packer.FLUSH_BLOCK) + packer.compress(TWO[1000:]) + packer.flush()
    assert packing_of(memoryview(strange), FrameWithin(0, len(strange), len(TWO))) is None


def test_what_is_no_uki_has_no_frames() -> None:
    assert frames_within(memoryview(FRAMES[0]), "uki.efi") == []


def test_through_the_unpacked_form_a_uki_costs_what_really_changed(published: Published) -> None:
    lean, rich = published.deltas
    assert lean.through is not None
    assert rich.through is not None
    assert (len(lean.through.content), len(rich.through.content)) == (1, 2)
    # The kernel's frame is most of what the first one still holds.
    assert fetched(rich) < len(NEW) // 50 < fetched(lean)
    assert fetched(lean) < len(NEW) * 2 // 3
    assert lean.memory_bytes < rich.memory_bytes


@pytest.mark.parametrize("number", [0, 1])
def test_a_node_makes_the_very_file(published: Published, tmp_path: Path, number: int) -> None:
    barred: list[tuple[Way, str]] = []
    assert published.fetch(tmp_path / "file", published.deltas[number], barred) is Way.DELTA
    assert (tmp_path / "file").read_bytes() == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert barred == []


def _other_level(delta: Delta) -> Delta:
    assert delta.through is not None
    first, *others = delta.through.content
    return replace(delta, through=replace(delta.through, content=[replace(first, level=3), *others]))


def _other_frames(delta: Delta) -> Delta:
    assert delta.through is not None
    return replace(delta, through=replace(delta.through, source=delta.through.source[:1]))


def _less_memory(delta: Delta) -> Delta:
    return replace(delta, memory_bytes=delta.memory_bytes - 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_other_level, "file-mismatch"), (_other_frames, "invalid-document"), (_less_memory, "invalid-document")],
)
def test_a_detour_that_makes_something_else_is_barred_and_the_next_way_taken(
    published: Published, tmp_path: Path, change: Callable[[Delta], Delta], reason: str
) -> None:
    barred: list[tuple[Way, str]] = []
    assert published.fetch(tmp_path / "file", change(published.deltas[1]), barred) is Way.PLAIN
    assert barred == [(Way.DELTA, reason)]
    assert (tmp_path / "file").read_bytes() == NEW


def test_the_delta_that_fetches_least_is_taken_where_it_fits(published: Published) -> None:
    transport = FileTransport(None, published.deltas)
    lean, rich = published.deltas
    assert pick_delta(transport, HELD, WANTED).delta == rich
    assert pick_delta(transport, HELD, WANTED, Room(rich.memory_bytes + BYTES_AHEAD)).delta == rich
    assert pick_delta(transport, HELD, WANTED, Room(rich.memory_bytes + BYTES_AHEAD - 1)).delta == lean
    assert pick_delta(transport, HELD, WANTED, Room(1)).delta == lean
    most = scratch_bytes(rich, HELD, WANTED)
    assert pick_delta(transport, HELD, WANTED, Room(scratch_bytes=most)).delta == rich
    assert pick_delta(transport, HELD, WANTED, Room(scratch_bytes=most - 1)).delta == lean
    none = pick_delta(transport, HELD, WANTED, Room(scratch_bytes=len(NEW)))
    assert none.delta is None
    assert "state partition" in none.absent


def test_a_node_with_another_library_says_which_one_it_lacks(published: Published) -> None:
    others = []
    for delta in published.deltas:
        assert delta.through is not None
        others.append(replace(delta, through=replace(delta.through, library="libzstd 1.4.0")))
    picked = pick_delta(FileTransport(None, others), HELD, WANTED)
    cost = file_costs(WANTED, FileTransport(None, others), picked, {})[0]
    assert not cost.possible
    assert cost.absent == f"the delta needs libzstd 1.4.0, and here is {library()}"
    plain = replace(published.deltas[0], through=None)
    assert pick_delta(FileTransport(None, [*others, plain]), HELD, WANTED).delta == plain


def test_a_kernel_that_did_not_change_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old.efi").write_bytes(OLD)
    same = ukis.uki("2.0.0", ukis.kernel(KERNELS[0]), ukis.initrd(MODULES[1]))
    (tmp_path / "new.efi").write_bytes(same)
    made = Ukis(tmp_path / "new.efi", BlobFolder(tmp_path / "made"), SIZES, quiet)
    (delta,) = made.deltas(tmp_path / "old.efi", HELD.sha256, "1.0.0")
    assert delta.through is not None
    assert len(delta.through.source) == len(delta.through.content) == 1
    assert fetched(delta) < 4000


@pytest.mark.parametrize(("content_mib", "level", "lean"), [(72, 11, True), (300, 11, False), (55, 22, False)])
def test_a_large_initrd_that_packs_in_little_memory_is_for_any_node(content_mib: int, level: int, lean: bool) -> None:
    frame = FrameWithin(0, content_mib << 18, content_mib << 20)
    packing = Packing(0, content_mib << 20, level, False, True, False)
    assert uki_deltas._Part(".initrd", frame, b"", packing).lean is lean
    assert not uki_deltas._Part(".initrd", frame, b"").lean
