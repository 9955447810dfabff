"""Fetching a UKI by delta, frames or as it is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.transported import FRAMES, SIZES
from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted, UpdaterError
from updater.fetch import Fetcher, Retries
from updater.fill.boot_file import fetch_file
from updater.fill.boot_file_ways import file_costs, pick_delta
from updater.format.transport import FileTransport
from updater.records import FileRecord
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, make_delta
from updater.release.frames import cut, make_framed
from updater.ways import Choice, Way, choose_way

Barred = list[tuple[Way, str]]
OLD = random.Random(5).randbytes(300_001)
NEW = OLD[:100_000] + b"changed" + OLD[100_007:200_000] + random.Random(6).randbytes(500) + OLD[200_000:]

HELD = FileRecord("uki.efi", len(OLD), hashlib.sha256(OLD).hexdigest())


class Published:
    """A folder that serves NEW in each way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        blobs = BlobFolder(folder / "made")
        old, new = Content.of(memoryview(OLD)), Content.of(memoryview(NEW))
        delta = make_delta(old, new, hashlib.sha256(OLD).hexdigest(), "1.0.0", blobs, _quiet, sizes=SIZES)
        frames = make_framed(cut(new.raw, FRAMES.frame_bytes), len(NEW), FRAMES, blobs, "frames", _quiet)
        plain = blobs.put([NEW])
        self.transport = FileTransport(frames, [delta])
        self.file = FileRecord("uki.efi", plain.length_bytes, plain.sha256)
        for made in (folder / "made").iterdir():
            place = folder / "blobs" / made.name[:2]
            place.mkdir(parents=True, exist_ok=True)
            made.rename(place / made.name)

    def spoil(self, path: str) -> None:
        """Change a byte of a file."""
        content = bytearray((self.folder / path).read_bytes())
        content[len(content) // 2] ^= 1
        (self.folder / path).write_bytes(content)

    def fetch(
        self, path: Path, *order: Way, held: Iterable[bytes] = (OLD[:7777], OLD[7777:]), barred: Barred | None = None
    ) -> Way:
        """Fetch by the ways told, or by those that cost least."""
        picked = pick_delta(self.transport, HELD, self.file)

        def on_barred(way: Way, error: UpdaterError) -> None:
            assert barred is not None, f"{way} was barred: {error}"
            barred.append((way, error.reason))

        return fetch_file(
            Fetcher([str(self.folder)], retries=Retries(attempts=1)),
            self.file,
            self.transport,
            Choice(order, "") if order else choose_way(file_costs(self.file, self.transport, picked, {})),
            path,
            delta=picked.delta,
            held=lambda: held,
            on_barred=on_barred,
            progress=lambda done, total: None,
            what="uki.efi of release 2.0.0",
        )


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path / "repository")


@pytest.mark.parametrize("way", [Way.DELTA, Way.FULL, Way.PLAIN])
def test_each_way_makes_the_very_file(published: Published, tmp_path: Path, way: Way) -> None:
    assert published.fetch(tmp_path / "file", way) is way
    assert (tmp_path / "file").read_bytes() == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "repository"]


def test_the_delta_costs_least_and_is_taken(published: Published, tmp_path: Path) -> None:
    picked = pick_delta(published.transport, HELD, published.file)
    costs = {cost.way: cost for cost in file_costs(published.file, published.transport, picked, {})}
    assert costs[Way.DELTA].fetch_bytes < len(NEW) // 50
    assert published.fetch(tmp_path / "file") is Way.DELTA


def test_another_running_file_leaves_the_delta_out(published: Published) -> None:
    other = pick_delta(published.transport, FileRecord("uki.efi", 1, "00" * 32), published.file)
    delta, full, plain = file_costs(published.file, published.transport, other, {})
    assert delta.absent
    assert full.possible
    assert plain.possible
    picked = pick_delta(published.transport, HELD, published.file)
    barred = file_costs(published.file, published.transport, picked, {Way.DELTA: "corrupt"})
    assert barred[0].barred == "corrupt"


def test_an_old_file_that_rotted_bars_the_delta(published: Published, tmp_path: Path) -> None:
    barred = Barred()
    way = published.fetch(tmp_path / "file", Way.DELTA, Way.FULL, held=[OLD[:-1] + b"!"], barred=barred)
    assert (way, barred) == (Way.FULL, [(Way.DELTA, "source-damaged")])
    assert (tmp_path / "file").read_bytes() == NEW


def test_an_old_file_that_cannot_be_read_bars_the_delta(published: Published, tmp_path: Path) -> None:
    def unreadable() -> Iterable[bytes]:
        yield OLD[:100]
        raise EnvironmentFailure("cannot read EFI/acl/a.efi", reason="file-error")

    barred = Barred()
    assert published.fetch(tmp_path / "file", Way.DELTA, Way.PLAIN, held=unreadable(), barred=barred) is Way.PLAIN
    assert barred == [(Way.DELTA, "source-unreadable")]


def test_wrong_bytes_lead_to_the_next_way_and_bar_nothing(published: Published, tmp_path: Path) -> None:
    payload = published.transport.deltas[0].payload
    assert payload is not None
    assert published.transport.frames is not None
    published.spoil(payload.path)
    assert published.fetch(tmp_path / "file", Way.DELTA, Way.FULL, Way.PLAIN) is Way.FULL
    published.spoil(published.transport.frames.file.path)
    assert published.fetch(tmp_path / "file", Way.DELTA, Way.FULL, Way.PLAIN) is Way.PLAIN
    published.spoil(f"blobs/{published.file.sha256[:2]}/{published.file.sha256}")
    with pytest.raises(Untrusted) as caught:
        published.fetch(tmp_path / "file", Way.DELTA, Way.FULL, Way.PLAIN)
    assert caught.value.reason == "blob-mismatch"


def test_a_file_that_is_nowhere_is_a_network_failure(published: Published, tmp_path: Path) -> None:
    (published.folder / f"blobs/{published.file.sha256[:2]}/{published.file.sha256}").unlink()
    with pytest.raises(NetworkFailure) as caught:
        published.fetch(tmp_path / "file", Way.PLAIN)
    assert caught.value.reason == "not-found"


def _quiet(what: str, done_bytes: int, total_bytes: int) -> None:
    """Say nothing."""
