"""Keys that change: rotation seen by nodes, roots that images bring, and resets signed by the root."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.trust_site import Node, Site
from updater.errors import Untrusted
from updater.files import MountedDirectory
from updater.release import rotate
from updater.release.keys import KeyRing
from updater.release.repository import Repository
from updater.trust import EpochReset
from updater.trust.roots import RESET_FIELD

KEYS = ["root-1", "targets", "channels", "releases", "snapshot", "timestamp"]


@pytest.fixture
def site(quick_path: Path) -> Site:
    made = Site(quick_path / "site")
    made.publish("1.0.0")
    made.promote("1.0.0")
    return made


@pytest.fixture
def node(site: Site, quick_path: Path) -> Node:
    return Node(quick_path / "state", site.roots, site.clock)


class WatchedDirectory(MountedDirectory):
    """A repository whose every change is seen by somebody at once."""

    def __init__(self, base: Path, watch: Callable[[str], None]) -> None:
        super().__init__(base)
        self.watch = watch

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        super().write_new(path, chunks)
        self.watch(path)

    def replace(self, path: str, content: bytes) -> None:
        super().replace(path, content)
        self.watch(path)


@pytest.mark.parametrize("name", KEYS)
def test_nodes_follow_a_rotation_at_every_instant_of_it(site: Site, node: Node, quick_path: Path, name: str) -> None:
    node.trust(str(site.repo)).refresh()
    seen: list[str] = []

    def watch(path: str) -> None:
        seen.append(path)
        # A node that checks often, one that was away since the first root, and one that is new.
        node.trust(str(site.repo)).refresh()
        away = quick_path / f"away-{len(seen)}"
        shutil.copytree(quick_path / "away", away)
        for folder in (away, quick_path / f"fresh-{len(seen)}"):
            Node(folder, site.roots, site.clock).trust(str(site.repo)).refresh()

    Node(quick_path / "away", site.roots, site.clock).trust(str(site.repo)).refresh()
    done = rotate.rotate(site.open(WatchedDirectory(site.repo, watch)), name, "ed25519", None)
    assert len(seen) >= 1
    assert done.new_keyid != done.old_keyid
    site.refresh("targets", "channels", "releases", "root")
    trust = node.trust(str(site.repo))
    trust.refresh()
    assert trust.channel("stable").release == "1.0.0"


@pytest.mark.parametrize("name", KEYS[1:])
def test_a_revoked_key_signs_nothing_any_more(site: Site, node: Node, quick_path: Path, name: str) -> None:
    thief = quick_path / "stolen"
    thief.mkdir()
    for stolen in (name, "snapshot", "timestamp"):
        for at in site.keys.glob(f"{stolen}.p*"):
            shutil.copy(at, thief)
    before = site.copy("before")
    site.rotate(name)
    node.trust(str(site.repo)).refresh()
    # The thief goes on from the revision before the rotation.
    repository = Repository(MountedDirectory(before), KeyRing([thief]), site.clock)
    for _ in range(5):
        repository.change(name)
        repository.publish()
    with pytest.raises(Untrusted) as caught:
        node.trust(str(before)).refresh()
    assert caught.value.reason in ("metadata-unsigned", "metadata-rolled-back")


def test_a_thief_of_the_online_keys_cannot_lock_nodes_out_for_ever(site: Site, node: Node) -> None:
    forged = site.copy("forged")
    stolen = Repository(MountedDirectory(forged), site.ring, site.clock)
    stolen.timestamp.signed.version = 1_000_000
    stolen.snapshot.signed.version = 1_000_000
    stolen.change("snapshot")
    stolen.publish()
    assert node.trust(str(forged)).refresh().versions["timestamp"] == 1_000_001
    site.publish("2.0.0")
    with pytest.raises(Untrusted) as caught:
        node.trust(str(site.repo)).refresh()
    assert caught.value.reason == "metadata-rolled-back"
    site.rotate("timestamp")
    site.rotate("snapshot")
    trust = node.trust(str(site.repo))
    assert trust.refresh().versions["timestamp"] < 100
    assert trust.versions() == ["1.0.0", "2.0.0"]
    # And with a damaged cache on top, the floors alone come to the same judgement.
    assert isinstance(node.state, Path)
    (node.state / "accepted.json").write_bytes(b"")
    assert node.trust(str(site.repo)).refresh().mended


def test_an_old_client_walks_all_roots(site: Site, node: Node) -> None:
    node.trust(str(site.repo)).refresh()
    for _ in range(4):
        site.rotate("root-1")
        site.rotate("root-2")
        site.rotate("timestamp")
    accepted = node.trust(str(site.repo)).refresh()
    assert accepted.versions["root"] == 17


def chain(site: Site) -> list[Path]:
    return sorted((site.repo / "metadata").glob("*.root.json"))


def test_the_newest_root_of_a_factory_image_is_reached_by_its_chain(site: Site, node: Node) -> None:
    site.rotate("root-1")
    site.rotate("timestamp")
    node.roots = chain(site)
    for at in chain(site):
        site.folder.joinpath(at.name).write_bytes(at.read_bytes())
    # The mirror has only its current files: the image's chain suffices.
    for number in (1, 2, 3):
        (site.repo / "metadata" / f"{number}.root.json").unlink()
    node.roots = [site.folder / at.name for at in [Path(f"{number}.root.json") for number in (1, 2, 3, 4)]]
    assert node.trust(str(site.repo)).refresh().versions["root"] == 4


def test_a_gap_in_the_roots_of_an_image_is_refused(site: Site, node: Node) -> None:
    site.rotate("root-1")
    site.rotate("root-2")
    node.roots = [at for at in chain(site) if not at.name.startswith("2.")]
    with pytest.raises(Untrusted) as caught:
        node.trust(str(site.repo)).refresh()
    assert caught.value.reason == "root-chain-broken"


def test_the_roots_of_an_image_on_trial_count_for_nothing(site: Site, node: Node, quick_path: Path) -> None:
    node.trust(str(site.repo)).refresh()
    other = Site(quick_path / "other")
    node.roots = other.roots
    with pytest.raises(Untrusted):
        node.trust(str(other.repo)).refresh()
    assert node.trust(str(site.repo)).refresh().versions["root"] == 1


def test_a_committed_image_brings_a_newer_root_by_its_chain(site: Site, node: Node) -> None:
    frozen = site.copy("frozen")
    node.trust(str(site.repo)).refresh()
    site.rotate("timestamp")
    assert node.trust(str(site.repo)).adopt_root(chain(site)) == 3
    assert node.trust(str(site.repo)).adopt_root(chain(site)) == 3
    assert node.trust(str(site.repo)).status().root_version == 3
    # The old set is still readable, and the old key's word is no longer taken.
    assert node.trust(str(frozen)).channel("stable").release == "1.0.0"
    with pytest.raises(Untrusted) as caught:
        node.trust(str(frozen)).refresh()
    assert caught.value.reason == "metadata-unsigned"
    assert node.trust(str(site.repo)).refresh().versions["root"] == 3


def test_an_image_cannot_bring_the_root_of_somebody_else(site: Site, node: Node, quick_path: Path) -> None:
    node.trust(str(site.repo)).refresh()
    other = Site(quick_path / "other")
    other.rotate("root-1")
    other.rotate("root-2")
    before = node.files()
    with pytest.raises(Untrusted) as caught:
        node.trust(str(site.repo)).adopt_root(chain(other))
    assert caught.value.reason == "root-chain-broken"
    assert node.files() == before


def test_an_image_with_older_roots_takes_nothing_back(site: Site, node: Node, quick_path: Path) -> None:
    first = quick_path / "1.root.json"
    first.write_bytes(site.raw("1.root.json"))
    site.rotate("root-1")
    node.trust(str(site.repo)).refresh()
    assert node.trust(str(site.repo)).adopt_root([first]) == 2
    assert node.trust(str(site.repo)).adopt_root([]) == 2


def test_a_reset_of_the_epoch_is_told_with_its_root_version(site: Site, node: Node) -> None:
    trust = node.trust(str(site.repo))
    assert trust.refresh().epoch_reset is None
    assert rotate.reset_epoch(site.open(), 3) == 2
    assert node.trust(str(site.repo)).refresh().epoch_reset == EpochReset(3, 2)
    # A later root repeats it, for nodes that were away, and changes neither value.
    site.rotate("root-1")
    assert node.trust(str(site.repo)).refresh().epoch_reset == EpochReset(3, 2)
    accepted = node.trust(str(site.repo)).accepted()
    assert accepted is not None
    assert accepted.epoch_reset == EpochReset(3, 2)
    assert rotate.reset_epoch(site.open(), 0) == 4
    assert node.trust(str(site.repo)).refresh().epoch_reset == EpochReset(0, 4)


@pytest.mark.parametrize(
    "field",
    [
        7,
        [],
        {},
        {"floor": -1, "root_version": 2},
        {"floor": 1, "root_version": 3},
        {"floor": True, "root_version": 2},
        {"floor": "1", "root_version": 2},
        {"floor": 1},
    ],
)
def test_a_reset_that_cannot_be_read_is_refused(site: Site, node: Node, field: object) -> None:
    node.trust(str(site.repo)).refresh()
    before = node.files()
    repository = site.open()
    repository.root.signed.unrecognized_fields[RESET_FIELD] = field
    repository.publish_root()
    with pytest.raises(Untrusted) as caught:
        node.trust(str(site.repo)).refresh()
    assert caught.value.reason == "metadata-invalid"
    assert node.files() == before


def test_ecdsa_keys_serve_as_well(quick_path: Path) -> None:
    site = Site(quick_path / "site", scheme="ecdsa", root_keys=1)
    site.publish("1.0.0")
    site.promote("1.0.0")
    trust = Node(quick_path / "state", site.roots, site.clock).trust(str(site.repo))
    trust.refresh()
    assert trust.channel("stable").release == "1.0.0"
