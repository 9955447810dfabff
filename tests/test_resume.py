"""Real kills and power cuts in the middle of a transfer: what is fetched again is one operation or frame at most."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import Cut, MemoryBlocks
from tests.filling_process import begin_file, begin_image
from tests.metered_server import metered
from tests.transported import Cuts, Image, Repository, filled
from updater.fetch import Fetcher
from updater.fill.source_slot import SourceSlot
from updater.format.frames import parse_frames
from updater.format.recipe import parse_recipe
from updater.format.transport import Delta, FileTransport, Framed
from updater.kept import Kept
from updater.manifest import BLOCK_BYTES
from updater.mirrors import PIECE_BYTES
from updater.partition import FileBlocks
from updater.prefetch import REQUESTS_AHEAD
from updater.records import FileRecord
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, OperationSizes, make_delta
from updater.release.frames import Framing, cut, make_framed
from updater.verity import superblock
from updater.ways import Choice, Way

MIB = 1 << 20
BLOCKS = 24 * MIB // BLOCK_BYTES
WAYS = [Way.DELTA, Way.REUSE, Way.FULL]
IN_HAND = REQUESTS_AHEAD * PIECE_BYTES
"""What was read from the network and not yet written to any file when a kill comes."""


def _pair() -> tuple[bytes, bytes]:
    """Return an image and its successor, of which all but four MiB is new and cannot be compressed."""
    draw = random.Random(5)
    old, new = draw.randbytes(BLOCKS * BLOCK_BYTES), bytearray(draw.randbytes(BLOCKS * BLOCK_BYTES))
    new[3 * MIB : 5 * MIB] = old[3 * MIB : 5 * MIB]
    new[20 * MIB : 22 * MIB] = old[8 * MIB : 10 * MIB]
    return old, bytes(new)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    cuts = Cuts(Framing(MIB, 20, 1), Framing(MIB // 2, 19, 1), OperationSizes(128, 16))
    return Repository(tmp_path_factory.mktemp("repository"), pair=_pair(), cuts=cuts)


def longest(repository: Repository, way: Way) -> int:
    """Return the length of the longest operation or frame."""
    transport = repository.new.transport
    if way is Way.DELTA:
        return longest_operation(repository.folder, transport.deltas[0], len(repository.new.content))
    assert transport.frames is not None
    assert transport.reuse is not None
    return longest_frame(repository.folder, transport.frames if way is Way.FULL else transport.reuse.packs[-1])


def longest_frame(folder: Path, framed: Framed) -> int:
    index = parse_frames((folder / framed.index.path).read_bytes(), framed, "index")
    return max(index.frame(number).length_bytes for number in range(index.count))


def longest_operation(folder: Path, delta: Delta, length: int) -> int:
    recipe = parse_recipe((folder / delta.recipe.path).read_bytes(), delta, length, "recipe")
    return max(operation.length_bytes for operation in recipe.operations)


def laid_out(repository: Repository, folder: Path) -> None:
    """Write the running slot and an empty other one as plain files."""
    old = repository.old
    (folder / "a.data").write_bytes(old.content)
    (folder / "a.hashes").write_bytes(superblock(old.root) + old.tree)
    for name, length in (
        ("b.data", len(repository.new.content)),
        ("b.hashes", BLOCK_BYTES + len(repository.new.tree)),
    ):
        with (folder / name).open("wb") as file:
            file.truncate(length)


def holds(folder: Path, image: Image) -> bool:
    return filled(FileBlocks(folder / "b.data"), FileBlocks(folder / "b.hashes"), image)


@pytest.mark.parametrize("way", WAYS)
def test_real_kills_cost_one_operation_or_frame_each(repository: Repository, tmp_path: Path, way: Way) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        laid_out(repository, folder)
    with metered(repository.folder) as (address, meter):
        assert begin_image(repository, address, whole, way).wait(120) == 0
        clean, meter.served = meter.served, 0
        kills = 0
        for after in (clean // 9, clean // 2, clean // 5):
            process = begin_image(repository, address, killed, way)
            meter.kill(process.pid, after)
            assert process.wait(120) == -9
            kills += 1
        assert begin_image(repository, address, killed, way).wait(120) == 0
    assert holds(whole, repository.new)
    assert holds(killed, repository.new)
    assert not (killed / "kept").exists()
    again = meter.served - clean
    print(f"{way.value}: {clean} bytes, {again} of them again after {kills} kills")
    # The tree above the leaves comes with every start.
    tree = len(repository.new.tree)
    assert again <= kills * (longest(repository, way) + IN_HAND + tree)


@pytest.fixture(scope="module")
def boot_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FileRecord, FileTransport, bytes]:
    folder = tmp_path_factory.mktemp("boot-file")
    draw = random.Random(8)
    old = draw.randbytes(6 * MIB)
    new = draw.randbytes(6 * MIB + 77)
    blobs = BlobFolder(folder / "made")
    sides = Content.of(memoryview(old)), Content.of(memoryview(new))
    name = hashlib.sha256(old).hexdigest()
    quiet: Callable[[str, int, int], None] = lambda what, done, total: None  # noqa: E731
    delta = make_delta(*sides, name, "1.0.0", blobs, quiet, sizes=OperationSizes(128, 16))
    frames = make_framed(cut(memoryview(new), MIB), len(new), Framing(MIB, 20, 1), blobs, "frames", quiet)
    file = FileRecord("uki.efi", len(new), hashlib.sha256(new).hexdigest())
    (folder / "made" / file.sha256).write_bytes(new)
    for made in (folder / "made").iterdir():
        place = folder / "blobs" / made.name[:2]
        place.mkdir(parents=True, exist_ok=True)
        made.rename(place / made.name)
    return folder, file, FileTransport(frames, [delta]), old


@pytest.mark.parametrize("way", [Way.DELTA, Way.FULL, Way.PLAIN])
def test_a_boot_file_goes_on_where_a_kill_stopped_it(
    boot_file: tuple[Path, FileRecord, FileTransport, bytes], tmp_path: Path, way: Way
) -> None:
    folder, file, transport, old = boot_file
    (tmp_path / "held").write_bytes(old)
    held = hashlib.sha256(old).hexdigest()
    with metered(folder) as (address, meter):
        for after in (MIB, 3 * MIB):
            process = begin_file(address, tmp_path, way, file, transport, held)
            meter.kill(process.pid, after)
            assert process.wait(120) == -9
            # Whatever scratch file was begun is of no use to the next run.
            (tmp_path / "new").unlink(missing_ok=True)
        assert begin_file(address, tmp_path, way, file, transport, held).wait(120) == 0
    assert hashlib.sha256((tmp_path / "new").read_bytes()).hexdigest() == file.sha256
    assert transport.frames is not None
    clean = {
        Way.DELTA: lambda: _lengths(folder, transport.deltas[0].recipe.path, _payload(transport)),
        Way.FULL: lambda: _lengths(folder, transport.frames.index.path, transport.frames.file.path),
        Way.PLAIN: lambda: file.length_bytes,
    }[way]()
    print(f"{way.value}: {clean} bytes, {meter.served - clean} of them again after 2 kills")
    assert meter.served - clean <= 2 * IN_HAND


def _payload(transport: FileTransport) -> str:
    payload = transport.deltas[0].payload
    assert payload is not None
    return payload.path


def _lengths(folder: Path, *paths: str) -> int:
    return sum((folder / path).stat().st_size for path in paths)


class VolatileBlocks(MemoryBlocks):
    """A partition behind a cache that a power cut empties: only what was flushed stays."""

    def __init__(self, length_bytes: int, name: str, spend: Callable[[], None]) -> None:
        super().__init__(length_bytes, name)
        self.durable = bytes(self.content)
        self._spend = spend

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._spend()
        super().write(offset, data)

    def flush(self) -> None:
        self._spend()
        self.durable = bytes(self.content)

    def cut(self) -> None:
        self.content[:] = self.durable


class Mains:
    """Power that fails at one of the things that a transfer does to disks, for all of them at once."""

    def __init__(self, last: int) -> None:
        self.left = last
        self.spent = 0
        self.fetched = -1
        self.counted: Callable[[], int] = lambda: 0

    def spend(self) -> None:
        self.spent += 1
        if self.left <= 0:
            if self.fetched < 0:
                self.fetched = self.counted()
            raise Cut
        self.left -= 1


def _run(repository: Repository, address: str, way: Way, slot: list[VolatileBlocks], mains: Mains, kept: Path) -> int:
    """Fill the slot while power lasts; return the bytes that were fetched until then."""
    durable = kept.with_name("durable")

    def sync(handle: int) -> None:
        mains.spend()
        durable.mkdir(exist_ok=True)
        shutil.copyfile(f"/proc/self/fd/{handle}", durable / Path(f"/proc/self/fd/{handle}").readlink().name)

    fetcher: Fetcher = repository.fetcher(address)
    mains.counted = lambda: fetcher.counters.bytes_fetched
    fetcher.kept = Kept(kept, sync=sync)
    source = SourceSlot(*repository.running_blocks(), repository.old.root)
    filler = repository.filler(source, only=way, fetcher=fetcher)
    try:
        filler.work_out(slot[0], slot[1], thorough=True)
        filler.fill(slot[0], slot[1], Choice((way,), ""), on_barred=lambda way, error: None)
    except Cut:
        for blocks in slot:
            blocks.cut()
        shutil.rmtree(kept)
        if durable.exists():
            shutil.copytree(durable, kept)
        return mains.fetched
    finally:
        fetcher.close()
    return fetcher.counters.bytes_fetched


@pytest.mark.parametrize("way", WAYS)
def test_power_cuts_cost_one_operation_or_frame_each(repository: Repository, tmp_path: Path, way: Way) -> None:
    lengths = len(repository.new.content), BLOCK_BYTES + len(repository.new.tree)

    def slot(mains: Mains) -> list[VolatileBlocks]:
        return [VolatileBlocks(length, f"slot b {length}", mains.spend) for length in lengths]

    with metered(repository.folder) as (address, _):
        endless = Mains(1 << 60)
        clean = _run(repository, address, way, slot(endless), endless, tmp_path / "clean")
        worst = 0
        for share in (8, 50, 93):
            mains = Mains(endless.spent * share // 100)
            blocks = slot(mains)
            place = tmp_path / str(share)
            place.mkdir()
            first = _run(repository, address, way, blocks, mains, place / "kept")
            mains.left = 1 << 60
            again = first + _run(repository, address, way, blocks, mains, place / "kept") - clean
            assert filled(blocks[0], blocks[1], repository.new)
            worst = max(worst, again)
    print(f"{way.value}: {clean} bytes, at most {worst} of them again after a cut")
    assert worst <= longest(repository, way) + IN_HAND + len(repository.new.tree)
