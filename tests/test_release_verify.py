"""`acl-release verify`: every damage of a repository is found and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trust_site import Site, served
from updater.fetch import Fetcher
from updater.release.verify import Report, verify


@pytest.fixture
def site(quick_path: Path) -> Site:
    made = Site(quick_path / "site")
    made.publish("1.0.0", "2.0.0")
    made.promote("1.0.0")
    return made


def report(site: Site, address: str | None = None) -> Report:
    return verify(Fetcher([address or str(site.repo)], sleep=lambda seconds: None), site.roots, site.clock)


def test_a_good_repository_is_good_in_a_folder_and_over_http(site: Site) -> None:
    with served(site.repo) as url:
        for found in (report(site), report(site, url)):
            assert found.good
            assert found.releases == ["1.0.0", "2.0.0"]
            assert found.channels == {"stable": "1.0.0"}
            assert found.files == 6
            assert found.accepted is not None


@pytest.mark.parametrize("pattern", ["images/*/data", "images/*/tree", "blobs/*/*"])
@pytest.mark.parametrize("damage", ["bit", "short", "gone"])
def test_every_damaged_file_of_a_release_is_found(site: Site, pattern: str, damage: str) -> None:
    at = sorted(site.repo.glob(pattern))[0]
    raw = at.read_bytes()
    at.unlink()
    if damage != "gone":
        at.write_bytes(raw[:-1] + (bytes([raw[-1] ^ 1]) if damage == "bit" else b""))
    found = report(site)
    assert not found.good
    named = {finding.why for finding in found.findings}
    assert any(str(at.relative_to(site.repo)) in why for why in named)
    assert {finding.reason for finding in found.findings} <= {"content-mismatch", "not-found", "file-too-short"}


def test_a_damaged_manifest_is_found(site: Site) -> None:
    at = next((site.repo / "targets" / "manifests").glob("*.2.0.0.json"))
    at.write_bytes(b"{}")
    (finding,) = report(site).findings
    assert finding.what == "release 2.0.0"
    assert finding.reason == "target-mismatch"


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "1.targets.json", "2.channels.json"])
def test_damaged_metadata_is_found(site: Site, name: str) -> None:
    at = site.repo / "metadata" / name
    assert at.is_file()
    at.write_bytes(at.read_bytes()[:-20])
    found = report(site)
    assert [finding.what for finding in found.findings] == ["metadata"]


def test_expired_metadata_is_found(site: Site) -> None:
    site.later(days=4)
    assert [finding.reason for finding in report(site).findings] == ["metadata-expired"]


def test_a_channel_that_offers_what_is_withdrawn_or_unpublished_is_found(site: Site) -> None:
    from updater.manifest import Channel, Withdrawal, Withdrawn
    from updater.schema import encode_json

    repository = site.open()
    repository.put_target("channels/odd.json", encode_json(Channel(1, "odd", "9.9.9", "2026-11-20T05:00:00Z")))
    withdrawal = Withdrawal("1.0.0", "bad", "2026-11-20T05:00:00Z")
    repository.put_target("channels/withdrawn.json", encode_json(Withdrawn(1, [withdrawal])))
    repository.publish()
    assert {(finding.what, finding.reason) for finding in report(site).findings} == {
        ("channel odd", "release-unknown"),
        ("channel stable", "release-withdrawn"),
    }


def test_a_repository_that_is_copied_in_the_wrong_order_shows_it(site: Site) -> None:
    """A synchronization that copies the timestamp first is what docs/trust.md warns of."""
    mirror = site.copy("mirror")
    site.publish("3.0.0")
    shutil.copy(site.repo / "metadata" / "timestamp.json", mirror / "metadata" / "timestamp.json")
    found = report(site, str(mirror))
    assert [finding.reason for finding in found.findings] == ["not-found"]
