"""What a node remembers of its trust: power cuts, damage, mending, and what it can read offline."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.simulated import SimulatedDirectory
from tests.trust_site import START, Node, Site, served
from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.fetch import Fetcher
from updater.files import MountedDirectory
from updater.trust import Trust

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "one bit": lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
}


@pytest.fixture
def site(quick_path: Path) -> Site:
    made = Site(quick_path / "site")
    made.publish("1.0.0")
    made.promote("1.0.0")
    return made


@pytest.fixture
def node(site: Site, quick_path: Path) -> Node:
    return Node(quick_path / "state", site.roots, site.clock)


def state(node: Node) -> Path:
    assert isinstance(node.state, Path)
    return node.state


def find(node: Node, name: str) -> Path:
    """Return one of the node's files, wherever it lies."""
    (found,) = state(node).rglob(name) if name != "root.json" else [state(node) / "root.json"]
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "channels.json", "releases.json", "accepted.json"]
)
def test_damaged_cache_does_not_let_a_mirror_roll_back(site: Site, node: Node, name: str, damage: str) -> None:
    old = site.copy("old")
    for version in ("2.0.0", "3.0.0", "4.0.0", "5.0.0"):
        site.publish(version)
    node.trust(str(site.repo)).refresh()
    at = find(node, name)
    at.write_bytes(DAMAGES[damage](at.read_bytes()))
    with served(old) as url:
        trust = node.trust(url)
        before = node.files()
        with pytest.raises(Untrusted) as caught:
            trust.refresh()
        assert node.files() == before
    assert caught.value.reason == "metadata-rolled-back"
    with pytest.raises(Untrusted) as caught:
        node.trust(str(site.repo)).versions()
    assert caught.value.reason == "metadata-corrupt-cache"
    assert name in caught.value.message
    assert node.trust(str(site.repo)).status().damage
    # The right mirror mends it, and says so.
    mended = node.trust(str(site.repo)).refresh().mended
    assert len(mended) == 1
    assert name in mended[0]
    assert node.trust(str(site.repo)).refresh().mended == ()
    assert "5.0.0" in node.trust(str(site.repo)).versions()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_floors_are_mended_from_the_accepted_set(site: Site, node: Node, damage: str) -> None:
    old = site.copy("old")
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    at = find(node, "floors.json")
    whole = at.read_bytes()
    at.write_bytes(DAMAGES[damage](whole))
    with pytest.raises(Untrusted) as caught:
        node.trust(str(old)).refresh()
    assert caught.value.reason == "metadata-rolled-back"
    assert "floors.json" in node.trust(str(site.repo)).refresh().mended[0]
    assert at.read_bytes() == whole


def test_missing_floors_are_mended_from_the_accepted_set(site: Site, node: Node) -> None:
    node.trust(str(site.repo)).refresh()
    whole = find(node, "floors.json").read_bytes()
    find(node, "floors.json").unlink()
    assert "gone" in node.trust(str(site.repo)).refresh().mended[0]
    assert find(node, "floors.json").read_bytes() == whole


def test_a_missing_accepted_set_is_mended_above_the_floors(site: Site, node: Node) -> None:
    old = site.copy("old")
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    find(node, "accepted.json").unlink()
    with pytest.raises(Untrusted) as caught:
        node.trust(str(old)).refresh()
    assert caught.value.reason == "metadata-rolled-back"
    assert "no accepted metadata" in node.trust(str(site.repo)).status().damage
    assert "no accepted metadata" in node.trust(str(site.repo)).refresh().mended[0]


def test_with_cache_and_floors_both_damaged_the_node_refuses_until_told_to_start_over(site: Site, node: Node) -> None:
    old = site.copy("old")
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    for name in ("floors.json", "timestamp.json"):
        find(node, name).write_bytes(b"{")
    for mirror in (site.repo, old):
        before = node.files()
        with pytest.raises(Untrusted) as caught:
            node.trust(str(mirror)).refresh()
        assert caught.value.reason == "metadata-corrupt-cache"
        assert node.files() == before
    status = node.trust(str(site.repo)).status()
    assert "floors.json" in status.damage
    assert "timestamp.json" in status.damage
    trust = node.trust(str(site.repo))
    trust.start_over()
    assert node.files() == {}
    assert trust.refresh().versions["timestamp"] == 4


def test_a_withheld_root_is_a_rollback(site: Site, node: Node) -> None:
    old = site.copy("old")
    site.rotate("root-1")
    site.refresh()
    node.trust(str(site.repo)).refresh()
    for name in ("accepted.json", "root.json"):
        find(node, name).write_bytes(b"")
    site.refresh()
    # The mirror has the new timestamp, and keeps the new root back.
    for at in (site.repo / "metadata").iterdir():
        if not at.name.endswith("root.json"):
            (old / "metadata" / at.name).write_bytes(at.read_bytes())
    with pytest.raises(Untrusted) as caught:
        node.trust(str(old)).refresh()
    assert caught.value.reason == "metadata-rolled-back"
    assert "root version 1" in caught.value.message
    assert node.trust(str(site.repo)).refresh().versions["root"] == 2


def test_power_may_fail_at_any_write_of_a_refresh(site: Site) -> None:
    """Whatever is left, the old set or the new one counts, and a rollback stays refused."""
    directory = SimulatedDirectory(ignore_case=False)
    node = Node(directory, site.roots, site.clock)
    very_old = site.copy("very-old")
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    start = directory.files
    site.publish("3.0.0")
    site.promote("3.0.0")
    site.rotate("root-2")

    refreshed = SimulatedDirectory(start, ignore_case=False)
    Node(refreshed, site.roots, site.clock).trust(str(site.repo)).refresh()
    left_behind = {tuple(sorted(instant.files.items())): instant.effect for instant in refreshed.instants}
    assert len(left_behind) > 20
    for files, effect in left_behind.items():
        after = Node(SimulatedDirectory(dict(files), ignore_case=False), site.roots, site.clock)
        if not after.trust(str(site.repo)).status().damage:
            versions = after.trust(str(site.repo)).versions()
            assert versions in (["1.0.0", "2.0.0"], ["1.0.0", "2.0.0", "3.0.0"]), effect
        with pytest.raises(Untrusted) as caught:
            after.trust(str(very_old)).refresh()
        assert caught.value.reason == "metadata-rolled-back", effect
        after.trust(str(site.repo)).refresh()
        assert after.trust(str(site.repo)).channel("stable").release == "3.0.0", effect


def test_a_full_state_partition_leaves_the_accepted_set(site: Site) -> None:
    directory = SimulatedDirectory(ignore_case=False)
    node = Node(directory, site.roots, site.clock)
    node.trust(str(site.repo)).refresh()
    site.publish("2.0.0")
    directory.capacity_bytes -= directory.free_bytes()
    with pytest.raises(EnvironmentFailure) as caught:
        node.trust(str(site.repo)).refresh()
    assert caught.value.reason == "no-space"
    assert node.trust(str(site.repo)).versions() == ["1.0.0"]
    directory.capacity_bytes += 1 << 20
    node.trust(str(site.repo)).refresh()
    assert node.trust(str(site.repo)).versions() == ["1.0.0", "2.0.0"]


def test_a_look_at_a_node_needs_no_right_to_write(site: Site) -> None:
    directory = SimulatedDirectory(ignore_case=False)
    node = Node(directory, site.roots, site.clock)
    node.trust(str(site.repo)).refresh()
    before = directory.files
    directory.capacity_bytes -= directory.free_bytes()
    assert node.trust(str(site.repo)).manifest("1.0.0")[0].version == "1.0.0"
    assert directory.files.keys() - before.keys() <= {f"targets/{name}" for name in directory.names("targets")}


class SwitchingDirectory(MountedDirectory):
    """A state folder in which another process refreshes between two reads."""

    def __init__(self, base: Path, refresh: Callable[[], object]) -> None:
        super().__init__(base)
        self.refresh: Callable[[], object] | None = refresh

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        content = super().read(path, limit_bytes=limit_bytes)
        if path == "accepted.json" and self.refresh is not None:
            refresh, self.refresh = self.refresh, None
            refresh()
        return content


def test_a_reader_meets_a_refresh_without_seeing_damage(site: Site, node: Node) -> None:
    node.trust(str(site.repo)).refresh()
    site.publish("2.0.0")
    directory = SwitchingDirectory(state(node), node.trust(str(site.repo)).refresh)
    reader = Node(directory, site.roots, site.clock).trust(str(site.repo))
    assert reader.versions() == ["1.0.0", "2.0.0"]


def test_an_offline_node_reads_what_it_accepted_last(site: Site, node: Node) -> None:
    site.publish("2.0.0")
    with served(site.repo) as url:
        trust = node.trust(url)
        trust.refresh()
        trust.manifest("1.0.0")
    offline = node.trust(url)
    assert offline.channel("stable").release == "1.0.0"
    assert offline.withdrawn().releases == []
    assert offline.versions() == ["1.0.0", "2.0.0"]
    assert offline.manifest("1.0.0")[0].version == "1.0.0"
    with pytest.raises(NetworkFailure):
        offline.manifest("2.0.0")
    accepted = offline.accepted()
    assert accepted is not None
    assert accepted.mirror == f"{url}/"
    with pytest.raises(NetworkFailure):
        offline.refresh()


def test_an_offline_node_knows_that_what_it_accepted_has_expired(site: Site, node: Node) -> None:
    trust = node.trust(str(site.repo))
    assert trust.status().accepted is None
    trust.refresh()
    assert not trust.status().expired
    site.later(days=3)
    status = node.trust(str(site.repo)).status()
    assert status.expired
    assert status.accepted is not None
    assert status.accepted.expires == START + timedelta(days=3)
    assert node.trust(str(site.repo)).channel("stable").release == "1.0.0"


def test_nothing_is_readable_before_the_first_refresh(site: Site, node: Node) -> None:
    trust = node.trust(str(site.repo))
    assert trust.accepted() is None
    with pytest.raises(Untrusted) as caught:
        trust.channel("stable")
    assert caught.value.reason == "nothing-accepted"
    assert trust.status().root_version == 1


def test_a_damaged_cached_document_is_fetched_again(site: Site, node: Node) -> None:
    trust = node.trust(str(site.repo))
    trust.refresh()
    trust.manifest("1.0.0")
    for at in (state(node) / "targets").iterdir():
        at.write_bytes(at.read_bytes()[:-1] + b"?")
    assert node.trust(str(site.repo)).manifest("1.0.0")[0].version == "1.0.0"
    assert node.trust(str(site.repo)).channel("stable").release == "1.0.0"


def test_a_refresh_without_news_asks_twice_and_keeps_the_files(site: Site, node: Node) -> None:
    with served(site.repo) as url:
        node.trust(url).refresh()
        before = node.files()
        fetcher = Fetcher([url])
        trust = Trust(state(node), fetcher, bootstrap_roots=[], now=site.clock, time_floor=START)
        trust.refresh()
        assert fetcher.counters.requests == 2
    assert node.files() == before


def test_documents_that_are_no_longer_named_are_dropped(site: Site, node: Node) -> None:
    node.trust(str(site.repo)).refresh()
    old = set((state(node) / "targets").iterdir())
    site.publish("2.0.0")
    site.promote("2.0.0")
    node.trust(str(site.repo)).refresh()
    new = set((state(node) / "targets").iterdir())
    assert len(new) == len(old) == 2
    assert new != old
    assert len(list((state(node) / "sets").iterdir())) == 1


def test_fields_of_a_newer_release_survive_in_the_floors(site: Site, node: Node) -> None:
    import msgspec

    from updater.records import Kept, encode_state
    from updater.trust.floors import Floors

    node.trust(str(site.repo)).refresh()
    at = find(node, "floors.json")
    body = msgspec.json.decode(at.read_bytes())["body"]
    body["of_the_future"] = 7
    at.write_bytes(encode_state(Kept(msgspec.convert(body, Floors), body)))
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    assert msgspec.json.decode(at.read_bytes())["body"]["of_the_future"] == 7


def test_a_clock_that_is_a_little_ahead_costs_nothing(site: Site, node: Node) -> None:
    ahead = Node(node.state, site.roots, lambda: site.now + timedelta(days=2))
    assert ahead.trust(str(site.repo)).refresh().time_floor == START + timedelta(days=2)
    site.later(hours=1)
    site.refresh()
    assert node.trust(str(site.repo)).refresh().versions["timestamp"] == 4
