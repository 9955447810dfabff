"""Publishing: proven input, versions that never change, and interruptions that nobody sees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.releases import make_release
from tests.simulated import SimulatedDirectory
from tests.trust_site import Node, Site
from updater.errors import EnvironmentFailure, InvalidDocument, Refused
from updater.fetch import Fetcher
from updater.release import publish as publishing
from updater.release.repository import Repository, locked
from updater.release.verify import Report, verify


@pytest.fixture
def site(quick_path: Path) -> Site:
    made = Site(quick_path / "site")
    made.publish("1.0.0")
    made.promote("1.0.0")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(at.relative_to(folder)): at.read_bytes() for at in folder.rglob("*") if at.is_file()}


def proven(site: Site, repo: Path | None = None) -> Report:
    return verify(Fetcher([str(repo or site.repo)]), site.roots, site.clock)


def visible(site: Site) -> list[str]:
    trust = Node(SimulatedDirectory(ignore_case=False), site.roots, site.clock).trust(str(site.repo))
    trust.refresh()
    return trust.versions()


def test_publishing_the_same_again_changes_no_byte(site: Site) -> None:
    before = files(site.repo)
    done = publishing.publish(site.open(), [site.built("1.0.0")])
    assert done == [publishing.Published("1.0.0", False, 0)]
    assert files(site.repo) == before


def test_several_releases_become_visible_at_once(site: Site) -> None:
    before = site.open().timestamp.signed.version
    site.publish("2.0.0", "3.0.0")
    assert site.open().timestamp.signed.version == before + 1
    assert visible(site) == ["1.0.0", "2.0.0", "3.0.0"]
    assert proven(site).good


@pytest.mark.parametrize("version", ["1.0.0", "1.0", "1", "1.0.0.0"])
def test_the_same_version_with_other_bytes_is_refused(site: Site, version: str) -> None:
    before = files(site.repo)
    other = make_release(version, blocks=130, seed=5).write(site.folder / "other")
    with pytest.raises(Refused) as caught:
        publishing.publish(site.open(), [other])
    assert caught.value.reason == "version-exists"
    assert files(site.repo) == before


def test_the_same_version_twice_in_one_call_is_refused(site: Site) -> None:
    folders = [make_release("2.0.0", blocks=130, seed=seed).write(site.folder / f"other-{seed}") for seed in (1, 2)]
    with pytest.raises(Refused) as caught:
        publishing.publish(site.open(), folders)
    assert caught.value.reason == "version-exists"
    assert visible(site) == ["1.0.0"]


@pytest.mark.parametrize("file", ["root.img", "root.tree", "uki.efi"])
@pytest.mark.parametrize("damage", ["missing", "short", "first byte", "last byte", "folder"])
def test_a_file_that_is_not_what_its_manifest_says_is_refused(site: Site, file: str, damage: str) -> None:
    folder = site.built("2.0.0")
    at = folder / file
    raw = at.read_bytes()
    at.unlink()
    if damage == "short":
        at.write_bytes(raw[:-1])
    elif damage == "first byte":
        at.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "last byte":
        at.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "folder":
        at.mkdir()
    with pytest.raises(InvalidDocument) as caught:
        publishing.publish(site.open(), [folder])
    assert file in caught.value.source
    assert visible(site) == ["1.0.0"]
    assert proven(site).good
    # Mended, it goes through.
    if at.is_dir():
        at.rmdir()
    at.write_bytes(raw)
    assert publishing.publish(site.open(), [folder])[0].new
    assert proven(site).good


def test_a_tree_with_a_wrong_lower_block_is_refused(quick_path: Path) -> None:
    site = Site(quick_path / "site")
    release = make_release("1.0.0", blocks=300)
    folder = release.write(quick_path / "out")
    tree = release.tree
    # The first block alone hangs from the root hash; this one lies below it.
    (folder / "root.tree").write_bytes(tree[:5000] + bytes([tree[5000] ^ 1]) + tree[5001:])
    with pytest.raises(InvalidDocument):
        publishing.publish(site.open(), [folder])
    assert visible(site) == []


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(site: Site, raw: bytes) -> None:
    folder = site.built("2.0.0")
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(InvalidDocument):
        publishing.publish(site.open(), [folder])


def test_a_folder_without_a_build_is_refused(site: Site) -> None:
    with pytest.raises(Refused) as caught:
        publishing.publish(site.open(), [site.folder])
    assert caught.value.reason == "no-build"


def test_addons_and_the_sbom_are_published_as_blobs(site: Site) -> None:
    import hashlib

    folder = site.built("2.0.0")
    (folder / "addons").mkdir()
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    (folder / "addons" / "fips.addon.efi").write_bytes(b"MZ addon")
    (folder / "sbom.cdx.json").write_bytes(b"{}")
    document["addons"] = [
        {"name": "fips.addon.efi", "length_bytes": 8, "sha256": hashlib.sha256(b"MZ addon").hexdigest()}
    ]
    document["sbom"] = {"length_bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(document))
    publishing.publish(site.open(), [folder])
    for raw in (b"MZ addon", b"{}"):
        digest = hashlib.sha256(raw).hexdigest()
        assert (site.repo / "blobs" / digest[:2] / digest).read_bytes() == raw
    report = proven(site)
    assert report.good
    assert report.files == 3 + 5


def test_too_little_space_is_told_before_the_first_write(site: Site) -> None:
    directory = SimulatedDirectory(files(site.repo), ignore_case=False)
    directory.capacity_bytes -= directory.free_bytes() - 100_000
    before = directory.files
    with pytest.raises(EnvironmentFailure) as caught:
        publishing.publish(site.open(directory), [site.built("2.0.0")])
    assert caught.value.reason == "no-space"
    assert directory.files == before


def distinct(directory: SimulatedDirectory) -> dict[tuple[str, ...], tuple[str, Mapping[str, bytes]]]:
    """Return every different state that an interruption leaves; a server's file system renames atomically."""
    found = {}
    for instant in directory.instants:
        if not instant.effect.endswith("neither"):
            key = tuple(f"{path} {hash(content)}" for path, content in sorted(instant.files.items()))
            found[key] = (instant.effect, instant.files)
    return found


def lay_out(files: Mapping[str, bytes], folder: Path) -> Path:
    for path, content in files.items():
        at = folder / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content)
    return folder


def test_a_publish_interrupted_anywhere_is_invisible_and_can_be_finished(site: Site, quick_path: Path) -> None:
    state = SimulatedDirectory(ignore_case=False)
    Node(state, site.roots, site.clock).trust(str(site.repo)).refresh()
    accepted = state.files
    directory = SimulatedDirectory(files(site.repo), ignore_case=False)
    build = site.built("2.0.0")
    publishing.publish(site.open(directory), [build])
    states = distinct(directory)
    assert len(states) > 15
    finished = 0
    for number, (effect, left) in enumerate(states.values()):
        repo = lay_out(left, quick_path / str(number))
        node = Node(SimulatedDirectory(accepted, ignore_case=False), site.roots, site.clock).trust(str(repo))
        node.refresh()
        if node.versions() == ["1.0.0", "2.0.0"]:
            finished += 1
        else:
            assert node.versions() == ["1.0.0"], effect
        assert proven(site, repo).good, effect
        again = SimulatedDirectory(left, ignore_case=False)
        publishing.publish(Repository(again, site.ring, site.clock), [build])
        repo = lay_out(again.files, quick_path / f"{number}-again")
        report = proven(site, repo)
        assert report.good, (effect, report.findings)
        assert report.releases == ["1.0.0", "2.0.0"]
    assert finished == 1


def test_a_missing_key_stops_before_metadata_is_written(site: Site) -> None:
    (site.keys / "snapshot.pem").unlink()
    before = files(site.repo / "metadata")
    with pytest.raises(Refused) as caught:
        site.publish("2.0.0")
    assert caught.value.reason == "key-missing"
    assert "missing: snapshot" in caught.value.message
    assert files(site.repo / "metadata") == before


def test_publishing_needs_no_offline_key(site: Site) -> None:
    for name in ("root-1", "root-2", "root-3", "targets", "channels"):
        (site.keys / f"{name}.pem").unlink()
    site.publish("2.0.0")
    assert visible(site) == ["1.0.0", "2.0.0"]


def test_two_publishers_at_once_are_refused(site: Site) -> None:
    with locked(site.repo), pytest.raises(Refused) as caught, locked(site.repo):
        pass
    assert caught.value.reason == "repository-busy"
