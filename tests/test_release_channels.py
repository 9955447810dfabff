"""Channels, withdrawals, renewals, and what a keeper sees of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust_site import Node, Site
from updater.errors import InvalidDocument, Refused
from updater.release import channels, renew
from updater.release.channels import Moved


@pytest.fixture
def site(quick_path: Path) -> Site:
    made = Site(quick_path / "site")
    made.publish("1.0.0", "1.1.0", "1.2.0")
    return made


def test_a_channel_moves_from_release_to_release(site: Site) -> None:
    assert channels.promote(site.open(), "1.0.0", "stable") == Moved("stable", None, "1.0.0")
    assert channels.promote(site.open(), "1.1.0", "stable") == Moved("stable", "1.0.0", "1.1.0")
    version = site.open().timestamp.signed.version
    assert channels.promote(site.open(), "1.1.0", "stable") == Moved("stable", "1.1.0", "1.1.0")
    assert site.open().timestamp.signed.version == version


@pytest.mark.parametrize("name", ["withdrawn", "", "../x", "A", "a/b"])
def test_a_channel_has_a_proper_name(site: Site, name: str) -> None:
    with pytest.raises(InvalidDocument):
        channels.promote(site.open(), "1.0.0", name)


def test_only_published_releases_are_promoted(site: Site) -> None:
    with pytest.raises(Refused) as caught:
        channels.promote(site.open(), "9.0.0", "stable")
    assert caught.value.reason == "release-unknown"
    assert "1.2.0" in caught.value.message


def test_a_withdrawn_release_leaves_every_channel(site: Site) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        site.promote(version, "stable")
    site.promote("1.2.0", "beta")
    site.promote("1.0.0", "edge")
    assert site.withdraw("1.2.0", "loses data") == [Moved("beta", "1.2.0", None), Moved("stable", "1.2.0", "1.1.0")]
    assert site.withdraw("1.1.0", "too", instead=None) == [Moved("stable", "1.1.0", "1.0.0")]
    assert site.withdraw("1.1.0", "again") == []
    trust = Node(site.folder / "state", site.roots, site.clock).trust(str(site.repo))
    trust.refresh()
    assert trust.channels() == ["edge", "stable"]
    assert [item.why for item in trust.withdrawn().releases] == ["loses data", "too"]
    with pytest.raises(Refused) as caught:
        site.promote("1.2.0", "stable")
    assert caught.value.reason == "release-withdrawn"
    assert "loses data" in caught.value.message


def test_a_withdrawal_names_what_is_offered_instead(site: Site) -> None:
    site.promote("1.0.0")
    assert site.withdraw("1.0.0", "old", instead="1.2.0") == [Moved("stable", "1.0.0", "1.2.0")]
    with pytest.raises(Refused) as caught:
        site.withdraw("1.1.0", "x", instead="1.0.0")
    assert caught.value.reason == "release-withdrawn"
    with pytest.raises(Refused):
        site.withdraw("1.1.0", "x", instead="1.1.0")
    assert [item.version for item in site.open().withdrawn().releases] == ["1.0.0"]


def test_a_reason_that_is_too_long_is_refused(site: Site) -> None:
    with pytest.raises(InvalidDocument):
        site.withdraw("1.0.0", "x" * 501)


def test_refreshing_needs_the_online_keys_only(site: Site) -> None:
    for name in ("root-1", "root-2", "root-3", "targets", "channels", "releases"):
        (site.keys / f"{name}.pem").unlink()
    site.later(days=2)
    assert renew.refresh(site.open()) == ["snapshot", "timestamp"]
    site.later(days=2)
    node = Node(site.folder / "state", site.roots, site.clock)
    assert node.trust(str(site.repo)).refresh().versions["timestamp"] == 3
    with pytest.raises(Refused) as caught:
        renew.refresh(site.open(), ["channels"])
    assert caught.value.reason == "key-missing"


def test_what_is_near_its_end_is_told(site: Site) -> None:
    site.later(days=70)
    states = {item.role: item.state for item in renew.expiries(site.open())}
    assert states == {
        "root": "good",
        "targets": "good",
        "channels": "near",
        "releases": "good",
        "snapshot": "expired",
        "timestamp": "expired",
    }
    site.refresh("channels")
    assert {item.state for item in renew.expiries(site.open())} == {"good"}


def test_a_root_can_be_renewed(site: Site) -> None:
    site.later(days=364)
    assert renew.refresh(site.open(), ["root", "targets", "releases", "channels"])[0] == "root"
    site.later(days=2)
    node = Node(site.folder / "state", site.roots, site.clock)
    assert node.trust(str(site.repo)).refresh().versions["root"] == 2


def test_an_unknown_role_is_refused(site: Site) -> None:
    with pytest.raises(Refused):
        renew.refresh(site.open(), ["mirror"])
