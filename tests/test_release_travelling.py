"""Publishing what a release travels in: once, in order, and such that a stranger can prove it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.framed_images import Reader, new_image, old_image
from tests.releases import Release, make_release
from tests.trust_site import Site
from updater.errors import EnvironmentFailure, InvalidDocument, Refused
from updater.fetch import Fetcher
from updater.files import MountedDirectory
from updater.format.pins import pins
from updater.format.transport import Transport
from updater.manifest import BLOCK_BYTES, Manifest, parse_manifest
from updater.release import publish as publishing
from updater.release.frames import Framing
from updater.release.transport import Ways
from updater.release.verify import verify

WAYS = Ways(deltas=2, framing=Framing(32 * BLOCK_BYTES, 17, 3))
IMAGES = [old_image()]
for _seed in (5, 6, 7):
    IMAGES.append(new_image(IMAGES[-1], _seed))
RELEASES = [make_release(f"{number}.0.0", image=image) for number, image in enumerate(IMAGES, 1)]


@pytest.fixture
def site(quick_path: Path) -> Site:
    return Site(quick_path / "site")


def publish(site: Site, *releases: Release, ways: Ways | None = WAYS) -> list[publishing.Published]:
    folders = [release.write(site.folder / "out" / release.version) for release in releases]
    return publishing.publish(site.open(), folders, ways)


def published(site: Site, version: str) -> Manifest:
    raw = site.open().target(f"manifests/{version}.json")
    assert raw is not None
    return parse_manifest(raw, version)


def transport(site: Site, version: str) -> Transport:
    found = published(site, version).transport
    assert found is not None
    return found


def reader(site: Site, folder: Path) -> Reader:
    """Return a reader of the repository's blobs, side by side."""
    folder.mkdir()
    for blob in (site.repo / "blobs").glob("*/*"):
        shutil.copyfile(blob, folder / blob.name)
    return Reader(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(at.relative_to(folder)): at.read_bytes() for at in folder.rglob("*") if at.is_file()}


def good(site: Site) -> bool:
    return verify(Fetcher([str(site.repo)]), site.roots, site.clock).good


def test_each_way_makes_the_image_and_the_uki_of_each_release(site: Site, quick_path: Path) -> None:
    for release in RELEASES:
        publish(site, release)
    found = reader(site, quick_path / "blobs")
    old = {release.manifest.root.root_hash: release.image for release in RELEASES}
    old |= {release.manifest.uki.sha256: release.uki for release in RELEASES}
    for release in RELEASES:
        made = transport(site, release.version)
        assert made.root.frames is not None
        assert made.root.reuse is not None
        assert made.uki.frames is not None
        assert found.framed(made.root.frames) == release.image
        assert found.framed(made.uki.frames) == release.uki
        assert found.reused(made.root.reuse, len(release.image) // BLOCK_BYTES) == release.image
        for delta in made.root.deltas:
            assert found.patched(delta, old[delta.source], len(release.image)) == release.image
        for delta in made.uki.deltas:
            assert found.patched(delta, old[delta.source], len(release.uki)) == release.uki
    assert good(site)


def test_deltas_come_from_the_newest_releases_before_it(site: Site) -> None:
    publish(site, *RELEASES)
    assert [delta.source_version for delta in transport(site, "4.0.0").root.deltas] == ["3.0.0", "2.0.0"]
    assert [delta.source_version for delta in transport(site, "4.0.0").uki.deltas] == ["3.0.0", "2.0.0"]
    assert [delta.source_version for delta in transport(site, "2.0.0").root.deltas] == ["1.0.0"]
    assert transport(site, "1.0.0").root.deltas == []


def test_an_older_release_published_later_gets_no_delta_from_a_newer_one(site: Site) -> None:
    publish(site, RELEASES[3])
    publish(site, RELEASES[1])
    assert transport(site, "2.0.0").root.deltas == []


def test_a_withdrawn_release_gives_no_delta(site: Site) -> None:
    publish(site, *RELEASES[:2])
    site.withdraw("2.0.0", "broken")
    publish(site, RELEASES[2])
    assert [delta.source_version for delta in transport(site, "3.0.0").root.deltas] == ["1.0.0"]


def test_the_same_image_again_needs_no_delta_and_no_new_pack(site: Site) -> None:
    publish(site, RELEASES[0])
    publish(site, make_release("1.0.1", image=RELEASES[0].image))
    again = transport(site, "1.0.1")
    assert again.root.deltas == []
    assert again.root.reuse == transport(site, "1.0.0").root.reuse


def test_publishing_the_same_again_changes_no_byte(site: Site) -> None:
    publish(site, *RELEASES[:2])
    before = files(site.repo)
    for ways in (WAYS, None, Ways(frames=False)):
        assert publish(site, *RELEASES[:2], ways=ways) == [
            publishing.Published("1.0.0", False, 0),
            publishing.Published("2.0.0", False, 0),
        ]
    assert files(site.repo) == before


def test_a_version_with_another_image_is_refused_whatever_it_travels_in(site: Site) -> None:
    publish(site, RELEASES[0])
    with pytest.raises(Refused) as caught:
        publish(site, make_release("1.0.0", image=IMAGES[1]))
    assert caught.value.reason == "version-exists"


def test_a_plain_release_stays_plain_and_serves_as_a_source(site: Site) -> None:
    publish(site, RELEASES[0], ways=None)
    assert published(site, "1.0.0").transport is None
    publish(site, RELEASES[1])
    assert published(site, "1.0.0").transport is None
    assert [delta.source_version for delta in transport(site, "2.0.0").root.deltas] == ["1.0.0"]


@pytest.mark.parametrize(
    ("ways", "parts"),
    [
        (Ways(reuse=False, deltas=0, framing=WAYS.framing), {"frames"}),
        (Ways(frames=False, deltas=0), {"reuse"}),
        (Ways(frames=False, reuse=False), {"deltas"}),
    ],
)
def test_only_what_is_asked_for_is_made(site: Site, ways: Ways, parts: set[str]) -> None:
    publish(site, *RELEASES[:2], ways=ways)
    root = transport(site, "2.0.0").root
    assert {name for name in ("frames", "reuse", "deltas") if getattr(root, name)} == parts


class Breaking(MountedDirectory):
    """A folder whose disk fails at the n-th file that is written."""

    def __init__(self, base: Path, writes: int) -> None:
        super().__init__(base)
        self.left = writes

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        self.left -= 1
        if self.left < 0:
            raise EnvironmentFailure("the disk is gone", reason="io-error")
        super().write_new(path, chunks)


@pytest.mark.parametrize("writes", [0, 2, 4, 8, 12])
def test_an_interrupted_run_shows_nothing_and_goes_on(site: Site, writes: int) -> None:
    publish(site, RELEASES[0])
    folder = RELEASES[1].write(site.folder / "out" / "2.0.0")
    with pytest.raises(EnvironmentFailure):
        publishing.publish(site.open(Breaking(site.repo, writes)), [folder], WAYS)
    assert site.open().versions() == ["1.0.0"]
    assert good(site)
    made = {at: at.stat().st_mtime_ns for at in (folder / "transport").glob("*")}
    assert publish(site, RELEASES[1])[0].new
    assert {at: at.stat().st_mtime_ns for at in (folder / "transport").glob("*")} | made == {
        at: at.stat().st_mtime_ns for at in (folder / "transport").glob("*")
    }
    assert good(site)


def test_a_damaged_blob_is_found_and_mended(site: Site) -> None:
    publish(site, RELEASES[0])
    for digest in pins(transport(site, "1.0.0")):
        at = site.repo / "blobs" / digest[:2] / digest
        content = at.read_bytes()
        at.write_bytes(content[:-1] + b"\xff" if content[-1] != 255 else content[:-1] + b"\0")
        assert not good(site)
        assert publish(site, RELEASES[0])[0].bytes_written == len(content)
        assert at.read_bytes() == content
    assert good(site)


def test_a_blob_that_was_changed_in_the_build_is_refused(site: Site) -> None:
    publish(site, RELEASES[0])
    digest = next(iter(pins(transport(site, "1.0.0"))))
    for folder in (site.repo / "blobs" / digest[:2], site.folder / "out" / "1.0.0" / "transport"):
        (folder / digest).write_bytes(b"other")
    with pytest.raises(InvalidDocument):
        publish(site, RELEASES[0])
