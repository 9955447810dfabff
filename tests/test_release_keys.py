"""Keys on disk: who can read them, how they are replaced, what happens when one is away."""

from __future__ import annotations

import logging
import shutil
import stat
from pathlib import Path

import pytest

from tests.simulated import Power, PowerCut, SimulatedDirectory
from tests.trust_site import START, Node, Site
from updater.errors import InvalidDocument, Refused
from updater.release import create, renew, rotate
from updater.release.keys import PASSPHRASE_VARIABLE, KeyRing, new_names, role_of
from updater.release.repository import Repository
from updater.release.settings import DEFAULT_LIFETIMES_S, Settings, lifetimes, parse_duration


@pytest.fixture
def ring(quick_path: Path) -> KeyRing:
    return KeyRing([quick_path / "keys"])


def test_private_keys_are_for_their_owner_only(ring: KeyRing) -> None:
    ring.create("root-1", "ed25519", None)
    assert stat.S_IMODE((ring.home / "root-1.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(ring.home.stat().st_mode) == 0o700


def test_a_key_is_never_overwritten(ring: KeyRing) -> None:
    ring.create("targets", "ed25519", None)
    before = (ring.home / "targets.pem").read_bytes()
    with pytest.raises(Refused) as caught:
        ring.create("targets", "ed25519", None)
    assert caught.value.reason == "key-exists"
    assert (ring.home / "targets.pem").read_bytes() == before


def test_a_key_that_others_can_read_is_told(ring: KeyRing, caplog: pytest.LogCaptureFixture) -> None:
    keyid = ring.create("targets", "ed25519", None).keyid
    (ring.home / "targets.pem").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert ring.signer(keyid) is not None
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("scheme", ["ed25519", "ecdsa"])
def test_an_encrypted_key_needs_its_passphrase(ring: KeyRing, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keyid = ring.create("targets", scheme, b"open sesame").keyid
    assert b"ENCRYPTED" in (ring.home / "targets.pem").read_bytes()
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open sesame")
    signer = KeyRing([ring.home]).signer(keyid)
    assert signer is not None
    signer.public_key.verify_signature(signer.sign(b"x"), b"x")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    with pytest.raises(Refused) as caught:
        KeyRing([ring.home]).signer(keyid)
    assert caught.value.reason == "key-unreadable"
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(Refused) as caught:
        KeyRing([ring.home]).signer(keyid)
    assert caught.value.reason == "passphrase-missing"


def test_keys_may_lie_in_several_folders(quick_path: Path) -> None:
    online, stick = KeyRing([quick_path / "online"]), KeyRing([quick_path / "stick"])
    for name in new_names(1):
        (stick if name in ("root-1", "targets") else online).create(name, "ed25519", None)
    both = KeyRing([online.home, stick.home])
    create.create(quick_path / "repo", both, Settings(dict(DEFAULT_LIFETIMES_S)), None, lambda: START)
    assert both.names() == ["channels", "releases", "root-1", "snapshot", "targets", "timestamp"]


def test_a_new_key_lies_where_the_old_one_lay(quick_path: Path) -> None:
    site = Site(quick_path / "site")
    stick = quick_path / "stick"
    stick.mkdir()
    for at in site.keys.glob("root-*"):
        at.rename(stick / at.name)
    site.ring = KeyRing([site.keys, stick])
    site.rotate("root-2")
    assert (stick / "root-2.pem").is_file()
    assert not list(site.keys.glob("*root*"))


@pytest.mark.parametrize("name", ["", "mirror", "root-0", "root-100", "root-1.next.next", "../root", "root-1.pem"])
def test_a_key_serves_a_role(name: str) -> None:
    with pytest.raises(InvalidDocument):
        role_of(name)


def test_a_repository_needs_a_key_for_each_role(quick_path: Path, ring: KeyRing) -> None:
    ring.create("root-1", "ed25519", None)
    with pytest.raises(Refused) as caught:
        create.create(quick_path / "repo", ring, Settings(dict(DEFAULT_LIFETIMES_S)), None, lambda: START)
    assert caught.value.reason == "key-missing"
    assert not list((quick_path / "repo").iterdir())


def test_a_threshold_that_cannot_be_reached_is_refused(quick_path: Path, ring: KeyRing) -> None:
    for name in new_names(2):
        ring.create(name, "ed25519", None)
    with pytest.raises(Refused) as caught:
        create.create(quick_path / "repo", ring, Settings(dict(DEFAULT_LIFETIMES_S)), 3, lambda: START)
    assert caught.value.reason == "threshold-unreachable"


def test_a_repository_is_never_made_over_another(quick_path: Path) -> None:
    site = Site(quick_path / "site")
    before = site.raw("timestamp.json")
    with pytest.raises(Refused) as caught:
        create.create(site.repo, site.ring, Settings(dict(DEFAULT_LIFETIMES_S)), None, site.clock)
    assert caught.value.reason == "repository-exists"
    assert site.raw("timestamp.json") == before


def test_a_lost_root_key_is_replaced_with_the_others(quick_path: Path) -> None:
    site = Site(quick_path / "site")
    # root-1's private half is lost: two of three still suffice.
    (site.keys / "root-1.pem").unlink()
    done = site.rotate("root-1")
    assert done.root_version == 2
    assert (site.keys / "root-1.pem").is_file()
    node = Node(quick_path / "state", site.roots, site.clock)
    assert node.trust(str(site.repo)).refresh().versions["root"] == 2


@pytest.mark.parametrize("name", ["root-3", "targets", "channels", "releases", "snapshot", "timestamp"])
def test_a_key_that_is_lost_with_its_public_half_is_replaced(quick_path: Path, name: str) -> None:
    site = Site(quick_path / "site")
    for suffix in ("pem", "pub"):
        (site.keys / f"{name}.{suffix}").unlink()
    site.rotate(name)
    site.refresh("targets", "channels", "releases")
    node = Node(quick_path / "state", site.roots, site.clock)
    node.trust(str(site.repo)).refresh()


def test_below_the_threshold_no_root_is_made(quick_path: Path) -> None:
    site = Site(quick_path / "site")
    away = {name: (site.keys / f"{name}.pem").read_bytes() for name in ("root-1", "root-2")}
    for name in away:
        (site.keys / f"{name}.pem").unlink()
    with pytest.raises(Refused) as caught:
        site.rotate("timestamp")
    assert caught.value.reason == "key-missing"
    assert "missing: root-1, root-2" in caught.value.message
    assert not (site.repo / "metadata" / "2.root.json").exists()
    # With the keys back, the same command goes on with the key that it had made.
    made = (site.keys / "timestamp.next.pem").read_bytes()
    for name, raw in away.items():
        (site.keys / f"{name}.pem").write_bytes(raw)
        (site.keys / f"{name}.pem").chmod(0o600)
    site.rotate("timestamp")
    assert (site.keys / "timestamp.pem").read_bytes() == made


def test_an_unknown_key_is_not_rotated(quick_path: Path) -> None:
    site = Site(quick_path / "site", root_keys=1)
    for name in ("root", "root-7"):
        with pytest.raises(Refused) as caught:
            site.rotate(name)
        assert caught.value.reason == "key-missing"
        assert "root-1" in caught.value.mend


class Cut(BaseException):
    """The machine died."""


class DyingRing(KeyRing):
    """A ring of keys whose machine dies before its nth rename."""

    def __init__(self, folder: Path, dies_before: int) -> None:
        super().__init__([folder])
        self.left = dies_before

    def _rename(self, old: str, new: str) -> None:
        if (self.home / old).exists():
            self.left -= 1
            if self.left == 0:
                raise Cut
        super()._rename(old, new)


@pytest.mark.parametrize("name", ["timestamp", "releases", "root-2"])
@pytest.mark.parametrize("dies_before", [1, 2, 3, 4])
def test_a_rotation_interrupted_at_any_rename_goes_on(quick_path: Path, name: str, dies_before: int) -> None:
    site = Site(quick_path / "site")
    site.ring = DyingRing(site.keys, dies_before)
    with pytest.raises(Cut):
        site.rotate(name)
    site.ring = KeyRing([site.keys])
    site.rotate(name)
    assert not list(site.keys.glob("*.next.*"))
    assert len(list(site.keys.glob("retired-*"))) == 2
    site.refresh("root", "targets", "channels", "releases")
    Node(quick_path / "state", site.roots, site.clock).trust(str(site.repo)).refresh()


@pytest.mark.parametrize("name", ["root-1", "targets", "channels", "releases", "snapshot", "timestamp"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_rotation_interrupted_at_any_write_goes_on(quick_path: Path, name: str, lost: bool) -> None:
    site = Site(quick_path / "site")
    if lost:
        for suffix in ("pem", "pub"):
            (site.keys / f"{name}.{suffix}").unlink()
    files = {str(at.relative_to(site.repo)): at.read_bytes() for at in site.repo.rglob("*") if at.is_file()}
    for cut_after in range(40):
        keys = quick_path / f"keys-{cut_after}"
        shutil.copytree(site.keys, keys)
        directory = SimulatedDirectory(files, power=Power(cut_after), ignore_case=False)
        try:
            rotate.rotate(Repository(directory, KeyRing([keys]), site.clock), name, "ed25519", None)
        except PowerCut:
            left = SimulatedDirectory(directory.files, ignore_case=False)
            rotate.rotate(Repository(left, KeyRing([keys]), site.clock), name, "ed25519", None)
        else:
            assert cut_after > 1
            return
        repo = quick_path / f"repo-{cut_after}"
        for path, content in left.files.items():
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            (repo / path).write_bytes(content)
        Node(quick_path / f"state-{cut_after}", site.roots, site.clock).trust(str(repo)).refresh()
        assert len(list(keys.glob("retired-*"))) == (0 if lost else 2)
        assert not list(keys.glob("*.next.*"))
        renewed = Repository(left, KeyRing([keys]), site.clock)
        assert len(renewed.keys_of(role_of(name))[1]) == (3 if name == "root-1" else 1)
        renew.refresh(renewed, ["root", "targets", "channels", "releases"])
    raise AssertionError("a rotation has fewer writes than that")


def test_lifetimes_are_set_role_by_role() -> None:
    assert lifetimes(["timestamp=90s", "root=10d"]) == {**DEFAULT_LIFETIMES_S, "timestamp": 90, "root": 864_000}
    for text in ("timestamp", "timestamp=", "timestamp=0d", "mirror=1d", "timestamp=1w", "timestamp=-1d"):
        with pytest.raises(InvalidDocument):
            lifetimes([text])
    assert parse_duration("12h") == 43_200


def test_reset_of_the_epoch_needs_the_root_keys(quick_path: Path) -> None:
    site = Site(quick_path / "site")
    for name in ("root-1", "root-2"):
        (site.keys / f"{name}.pem").unlink()
    with pytest.raises(Refused):
        rotate.reset_epoch(site.open(), 1)
