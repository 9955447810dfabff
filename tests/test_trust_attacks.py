"""Attacks on the repository, named; each asserts what the node says and what is left on its disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Targets, Timestamp

from tests.hostile_server import Handler, hostile
from tests.releases import make_release
from tests.trust_site import START, Node, Site, served
from updater.errors import InvalidDocument, NetworkFailure, Untrusted
from updater.manifest import Channel
from updater.release.keys import KeyRing
from updater.release.repository import Repository
from updater.schema import encode_json


@pytest.fixture
def site(quick_path: Path) -> Site:
    """Return a publisher whose channel stable offers 1.0.0."""
    made = Site(quick_path / "site")
    made.publish("1.0.0")
    made.promote("1.0.0")
    return made


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with served(site.repo) as address:
        yield address


@pytest.fixture
def node(site: Site, quick_path: Path) -> Node:
    return Node(quick_path / "state", site.roots, site.clock)


def refused(node: Node, *mirrors: str) -> Untrusted:
    """Refresh, assert that it is refused and that not one byte of the node's state has changed."""
    before = node.files()
    with pytest.raises(Untrusted) as caught:
        node.trust(*mirrors).refresh()
    assert node.files() == before
    assert caught.value.mend
    return caught.value


def rewrite(folder: Path, role: str, ring: KeyRing, signer_names: list[str], **changes: object) -> None:
    """Change the newest metadata of a role in place, signed by the keys named: what a thief of those keys can do."""
    name = "timestamp.json" if role == "timestamp" else newest(folder, role)
    at = folder / "metadata" / name
    document: Metadata[Timestamp] = Metadata[Timestamp].from_bytes(at.read_bytes())
    for key, value in changes.items():
        setattr(document.signed, key, value)
    document.signatures.clear()
    for signer_name in signer_names:
        signer = ring.signer(ring.public(signer_name).keyid)
        assert signer is not None
        document.sign(signer, append=True)
    at.write_bytes(document.to_bytes())


def newest(folder: Path, role: str) -> str:
    return max(
        (path.name for path in (folder / "metadata").glob(f"*.{role}.json")), key=lambda name: int(name.split(".")[0])
    )


def test_a_good_repository_is_accepted_and_read(site: Site, url: str, node: Node) -> None:
    trust = node.trust(url)
    accepted = trust.refresh()
    assert accepted.mirror == f"{url}/"
    assert accepted.versions == {
        "root": 1,
        "timestamp": 3,
        "snapshot": 3,
        "targets": 1,
        "channels": 2,
        "releases": 2,
    }
    assert accepted.expires == START + timedelta(days=3)
    assert accepted.time_floor == START
    assert trust.channel("stable").release == "1.0.0"
    assert trust.channels() == ["stable"]
    assert trust.withdrawn().releases == []
    assert trust.versions() == ["1.0.0"]
    manifest, raw = trust.manifest("1.0.0")
    assert manifest.version == "1.0.0"
    assert raw == (site.folder / "out" / "1.0.0" / "manifest.json").read_bytes()


def test_no_key_no_update(url: str, node: Node) -> None:
    node.roots = []
    assert refused(node, url).reason == "no-trusted-root"
    assert node.files() == {}


def test_roots_of_another_publisher_prove_nothing(url: str, node: Node, quick_path: Path) -> None:
    node.roots = Site(quick_path / "other").roots
    error = refused(node, url)
    assert error.reason == "metadata-unsigned"
    assert url in error.message


def test_a_root_that_does_not_sign_itself_is_no_root(site: Site, url: str, node: Node, quick_path: Path) -> None:
    forged = json.loads(site.raw("1.root.json"))
    forged["signed"]["expires"] = "2999-01-01T00:00:00Z"
    node.roots = [quick_path / "1.root.json"]
    node.roots[0].write_text(json.dumps(forged))
    assert refused(node, url).reason == "no-trusted-root"


def test_a_frozen_mirror_is_named_with_versions_and_expiry(site: Site, node: Node) -> None:
    with served(site.copy("frozen")) as frozen:
        node.trust(frozen).refresh()
        site.later(days=4)
        site.refresh()
        error = refused(node, frozen)
    assert error.reason == "metadata-expired"
    assert error.message == (
        f"timestamp version 3 from {frozen}/ expired at 2026-11-23T05:00:00Z, and it is 2026-11-24T05:00:00Z here:"
        " it was not renewed, or is frozen by this mirror"
    )


def test_a_frozen_mirror_does_not_hinder_where_another_is_fresh(site: Site, url: str, node: Node) -> None:
    with served(site.copy("frozen")) as frozen:
        site.later(days=4)
        site.refresh()
        assert node.trust(frozen, url).refresh().mirror == f"{url}/"


@pytest.mark.parametrize(
    ("role", "days"),
    [("timestamp", 3), ("snapshot", 7), ("channels", 90), ("releases", 365), ("targets", 365), ("root", 365)],
)
def test_expired_metadata_is_refused_role_by_role(site: Site, url: str, node: Node, role: str, days: int) -> None:
    node.trust(url).refresh()
    repository = site.open()
    site.later(days=days)
    # Every role is renewed but one.
    others = {"root", "targets", "channels", "releases", "snapshot", "timestamp"} - {role}
    repository.settings = repository.settings.__class__(dict.fromkeys(repository.settings.lifetimes_s, 400 * 86_400))
    if role in ("timestamp", "snapshot"):
        repository.settings.lifetimes_s[role] = 1
        site.now -= timedelta(seconds=1)
    if "root" in others:
        repository.publish_root()
    repository.change(*(others - {"root", "snapshot", "timestamp"}))
    repository.publish()
    if role in ("timestamp", "snapshot"):
        site.now += timedelta(seconds=1)
    error = refused(node, url)
    assert error.reason == "metadata-expired"
    assert error.message.startswith(f"{role} version ")


def test_a_rolled_back_timestamp_is_refused(site: Site, url: str, node: Node) -> None:
    with served(site.copy("old")) as old:
        site.publish("2.0.0")
        node.trust(url).refresh()
        error = refused(node, old)
        assert node.trust(old).accepted() is not None
    assert error.reason == "metadata-rolled-back"
    assert error.message == (
        f"{old}/ offers timestamp version 3, but this node has already accepted version 4: it was rolled back"
    )


def test_a_rolled_back_snapshot_is_refused_though_the_timestamp_is_newer(site: Site, node: Node) -> None:
    old = site.copy("old")
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    # A thief of the timestamp key points a newer timestamp at the older snapshot.
    raw = (old / "metadata" / "3.snapshot.json").read_bytes()
    rewrite(old, "timestamp", site.ring, ["timestamp"], version=9, snapshot_meta=MetaFile(3, len(raw)))
    with served(old) as url:
        error = refused(node, url)
    assert error.reason == "metadata-rolled-back"
    assert "snapshot version 3" in error.message


def test_rolled_back_targets_are_refused_though_the_snapshot_is_newer(site: Site, node: Node) -> None:
    old = site.copy("old")
    site.publish("2.0.0")
    node.trust(str(site.repo)).refresh()
    # A thief of both online keys forgets the newest release.
    rewrite(old, "snapshot", site.ring, ["snapshot"], version=9)
    (old / "metadata" / "3.snapshot.json").rename(old / "metadata" / "9.snapshot.json")
    rewrite(old, "timestamp", site.ring, ["timestamp"], version=9, snapshot_meta=MetaFile(9))
    with served(old) as url:
        error = refused(node, url)
    assert error.reason == "metadata-rolled-back"
    assert "releases version 2" in error.message


def test_a_snapshot_that_leaves_a_role_out_is_refused(site: Site, url: str, node: Node) -> None:
    node.trust(url).refresh()
    repository = site.open()
    del repository.snapshot.signed.meta["channels.json"]
    repository.change("snapshot")
    repository.publish()
    assert refused(node, url).reason == "metadata-mixed"


@pytest.mark.parametrize("role", ["snapshot", "targets", "releases", "channels"])
def test_metadata_of_two_revisions_is_refused(site: Site, url: str, node: Node, role: str) -> None:
    site.publish("2.0.0")
    site.promote("2.0.0")
    site.refresh("targets")
    folder = site.repo / "metadata"
    last = newest(site.repo, role)
    before = f"{int(last.split('.')[0]) - 1}.{role}.json"
    shutil.copy(folder / before, folder / last)
    error = refused(node, url)
    assert error.reason == "metadata-mixed"
    assert node.files() == {}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "channels", "releases", "targets"])
def test_a_wrong_key_is_refused(site: Site, url: str, node: Node, quick_path: Path, role: str) -> None:
    thief = KeyRing([quick_path / "thief"])
    thief.create(role, "ed25519", None)
    rewrite_all(site.open(), role, thief.signer(thief.public(role).keyid))
    assert refused(node, url).reason == "metadata-unsigned"


def rewrite_all(repository: Repository, role: str, signer: object) -> None:
    """Publish a revision in which one role is signed by another key, and everything else is in order."""
    real = repository.ring.signer
    wanted = set(repository.keys_of(role)[0].keyids)
    before = repository.keys_of(role)[1]

    class Stolen(KeyRing):
        def signer(self, keyid: str):  # type: ignore[no-untyped-def]
            return _Renamed(signer, before[keyid]) if keyid in wanted else real(keyid)

    repository.ring = Stolen([repository.ring.home])
    repository.change(role)
    repository.publish()


class _Renamed:
    """A signer that claims to be another key."""

    def __init__(self, inner: object, public: object) -> None:
        self.inner = inner
        self.public_key = public

    def sign(self, payload: bytes):  # type: ignore[no-untyped-def]
        signature = self.inner.sign(payload)  # type: ignore[attr-defined]
        signature.keyid = self.public_key.keyid  # type: ignore[attr-defined]
        return signature


def test_a_root_below_its_threshold_is_refused(site: Site, url: str, node: Node) -> None:
    node.trust(url).refresh()
    site.refresh("root")
    at = site.repo / "metadata" / "2.root.json"
    root = json.loads(at.read_bytes())
    root["signatures"] = root["signatures"][:1]
    at.write_text(json.dumps(root))
    error = refused(node, url)
    assert error.reason == "metadata-unsigned"
    assert "1/2" in error.message


def test_one_signature_given_twice_counts_once(site: Site, url: str, node: Node) -> None:
    node.trust(url).refresh()
    site.refresh("root")
    at = site.repo / "metadata" / "2.root.json"
    root = json.loads(at.read_bytes())
    root["signatures"] = root["signatures"][:1] * 2
    at.write_text(json.dumps(root))
    assert refused(node, url).reason in ("metadata-unsigned", "metadata-invalid")


def channel_document(version: str) -> bytes:
    return encode_json(Channel(1, "stable", version, "2026-11-20T05:00:00Z"))


def test_a_builder_cannot_sign_a_channel(site: Site, url: str, node: Node) -> None:
    from tuf.api.metadata import TargetFile

    site.publish("6.6.6")
    repository = site.open()
    raw = channel_document("6.6.6")
    info = TargetFile.from_data("channels/stable.json", raw, ["sha256"])
    (site.repo / "targets" / info.get_prefixed_paths()[0]).write_bytes(raw)
    evil = TargetFile.from_data("channels/evil.json", raw.replace(b"stable", b"evil"), ["sha256"])
    (site.repo / "targets" / evil.get_prefixed_paths()[0]).write_bytes(raw.replace(b"stable", b"evil"))
    # All that a thief of the builders' key can do: his own role names channels.
    repository.targets["releases"].signed.targets["channels/stable.json"] = info
    repository.targets["releases"].signed.targets["channels/evil.json"] = evil
    repository.change("releases")
    repository.publish()
    trust = node.trust(url)
    trust.refresh()
    assert trust.channel("stable").release == "1.0.0"
    assert trust.channels() == ["stable"]
    with pytest.raises(Untrusted) as caught:
        trust.channel("evil")
    assert caught.value.reason == "target-missing"


def test_a_builder_cannot_delegate_channels_to_himself(site: Site, url: str, node: Node) -> None:
    from tuf.api.metadata import TargetFile

    repository = site.open()
    key = site.ring.public("releases")
    role = DelegatedRole("mine", [key.keyid], 1, True, ["channels/*", "manifests/*"])
    repository.targets["releases"].signed.delegations = Delegations({key.keyid: key}, {"mine": role})
    raw = channel_document("6.6.6")
    info = TargetFile.from_data("channels/evil.json", raw, ["sha256"])
    mine = Metadata(Targets(expires=site.now + timedelta(days=9), targets={"channels/evil.json": info}))
    signer = site.ring.signer(key.keyid)
    assert signer is not None
    mine.sign(signer)
    content = mine.to_bytes()
    (site.repo / "metadata" / "1.mine.json").write_bytes(content)
    repository.snapshot.signed.meta["mine.json"] = MetaFile(1)
    repository.change("releases")
    repository.publish()
    trust = node.trust(url)
    trust.refresh()
    with pytest.raises(Untrusted) as caught:
        trust.channel("evil")
    assert caught.value.reason == "target-missing"
    assert trust.channel("stable").release == "1.0.0"


def test_a_builder_who_signs_the_channels_role_is_refused(site: Site, url: str, node: Node) -> None:
    repository = site.open()
    signer = site.ring.signer(site.ring.public("releases").keyid)
    rewrite_all(repository, "channels", signer)
    error = refused(node, url)
    assert error.reason == "metadata-unsigned"
    assert "channels" in error.message


def test_withdrawn_releases_are_told_with_the_reason(site: Site, url: str, node: Node) -> None:
    site.publish("2.0.0")
    site.promote("2.0.0")
    node.trust(url).refresh()
    site.withdraw("2.0.0", "breaks DNS")
    trust = node.trust(url)
    trust.refresh()
    assert [(item.version, item.why) for item in trust.withdrawn().releases] == [("2.0.0", "breaks DNS")]
    assert trust.channel("stable").release == "1.0.0"
    assert trust.manifest("2.0.0")[0].version == "2.0.0"


def republished(site: Site, path: str, raw: bytes) -> None:
    """Publish other bytes under a path, as a thief of that role's key can."""
    repository = site.open()
    repository.put_target(path, raw)
    repository.publish()


def test_the_same_version_with_other_bytes_is_refused_for_ever(site: Site, url: str, node: Node) -> None:
    site.publish("2.0.0")
    node.trust(url).refresh()
    republished(site, "manifests/1.0.0.json", make_release("1.0.0", seed=666).raw)
    for _ in range(2):
        trust = node.trust(url)
        trust.refresh()
        with pytest.raises(Untrusted) as caught:
            trust.manifest("1.0.0")
        assert caught.value.reason == "version-changed"
        assert "1.0.0" in caught.value.message
        site.refresh()
    assert trust.manifest("2.0.0")[0].version == "2.0.0"


def test_a_manifest_of_another_version_is_refused(site: Site, url: str, node: Node) -> None:
    republished(site, "manifests/3.0.0.json", make_release("1.0.0").raw)
    trust = node.trust(url)
    trust.refresh()
    with pytest.raises(Untrusted) as caught:
        trust.manifest("3.0.0")
    assert caught.value.reason == "version-mismatch"


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\xfe", b"[" * 5000, b"null"])
def test_a_signed_manifest_is_still_hostile_input(site: Site, url: str, node: Node, raw: bytes) -> None:
    republished(site, "manifests/3.0.0.json", raw)
    trust = node.trust(url)
    trust.refresh()
    with pytest.raises(Untrusted) as caught:
        trust.manifest("3.0.0")
    assert caught.value.reason == "manifest-invalid"


def test_a_channel_document_of_another_channel_is_refused(site: Site, url: str, node: Node) -> None:
    republished(site, "channels/beta.json", channel_document("1.0.0"))
    republished(site, "channels/broken.json", b"{")
    trust = node.trust(url)
    trust.refresh()
    for name, reason in (("beta", "channel-mismatch"), ("broken", "target-invalid")):
        with pytest.raises(Untrusted) as caught:
            trust.channel(name)
        assert caught.value.reason == reason


def test_a_missing_list_of_withdrawn_releases_is_refused(site: Site, url: str, node: Node) -> None:
    repository = site.open()
    repository.drop_target("channels/withdrawn.json")
    repository.publish()
    before = node.files()
    with pytest.raises(Untrusted) as caught:
        node.trust(url).refresh()
    assert caught.value.reason == "target-missing"
    assert node.files() == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "withdrawn", "A", ".hidden", "x\n", "a" * 65, "a\0"])
def test_a_channel_name_cannot_leave_its_folder(url: str, node: Node, name: str) -> None:
    trust = node.trust(url)
    trust.refresh()
    with pytest.raises(InvalidDocument):
        trust.channel(name)


@pytest.mark.parametrize("version", ["../1.0.0", "1.0.0/../../x", "", "1.0.0\n", "..", "1" * 80, "%2e%2e"])
def test_a_version_cannot_leave_its_folder(url: str, node: Node, version: str) -> None:
    trust = node.trust(url)
    trust.refresh()
    with pytest.raises(InvalidDocument):
        trust.manifest(version)


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "AB" * 32, "", "ab" * 31])
def test_a_digest_that_is_no_digest_is_refused(site: Site, url: str, node: Node, digest: str) -> None:
    repository = site.open()
    repository.targets["releases"].signed.targets["manifests/1.0.0.json"].hashes = {"sha256": digest}
    repository.change("releases")
    repository.publish()
    assert refused(node, url).reason == "metadata-invalid"


@pytest.mark.parametrize("path", ["timestamp.json", "2.root.json", "3.snapshot.json", "2.releases.json"])
def test_endless_metadata_is_cut_off(site: Site, node: Node, path: str) -> None:
    sent = 0

    def play(handler: Handler) -> None:
        nonlocal sent
        at = site.repo / handler.path.removeprefix("/repo/")
        if at.name != path:
            handler.answer(200, at.read_bytes()) if at.is_file() else handler.answer(404)
            return
        handler.answer(200, length=None)
        try:
            while not handler.server.over.is_set():
                handler.wfile.write(b"[" * 65536)
                sent += 65536
        except OSError:
            pass

    with hostile(play) as server:
        error = refused(node, server.url)
    assert error.reason == "metadata-too-large"
    assert path in error.message
    assert sent < 32 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[" * 10_000,
        b'{"signatures": [], "signed": {}}',
        b'{"signatures": [], "signed": {"_type": "timestamp", "version": NaN}}',
        b'{"signatures": [], "signed": {"_type": "root"}}',
        b"\xff" * 100,
    ],
)
def test_metadata_that_is_garbage_is_refused(site: Site, url: str, node: Node, raw: bytes) -> None:
    node.trust(url).refresh()
    (site.repo / "metadata" / "timestamp.json").write_bytes(raw)
    assert refused(node, url).reason in ("metadata-invalid", "metadata-unsigned")


def test_a_version_that_is_not_a_whole_number_is_refused(site: Site, url: str, node: Node) -> None:
    rewrite(site.repo, "timestamp", site.ring, ["timestamp"], version=True)
    assert refused(node, url).reason == "metadata-mixed"


def test_a_mirror_that_serves_other_bytes_for_a_manifest_is_named(site: Site, url: str, node: Node) -> None:
    liar = site.copy("liar")
    for at in (liar / "targets" / "manifests").iterdir():
        at.write_bytes(at.read_bytes()[:-2] + b" \n")
    with served(liar) as lying:
        trust = node.trust(lying)
        trust.refresh()
        before = node.files()
        with pytest.raises(Untrusted) as caught:
            trust.manifest("1.0.0")
        assert caught.value.reason == "target-mismatch"
        assert lying in caught.value.message
        assert node.files() == before
        assert node.trust(lying, url).manifest("1.0.0")[0].version == "1.0.0"


def test_a_mirror_that_is_half_synchronized_is_a_network_failure(site: Site, url: str, node: Node) -> None:
    node.trust(url).refresh()
    before = node.files()
    site.publish("2.0.0")
    (site.repo / "metadata" / newest(site.repo, "snapshot")).unlink()
    with pytest.raises(NetworkFailure) as caught:
        node.trust(url).refresh()
    assert caught.value.reason == "not-found"
    assert newest(site.copy("now"), "snapshot") in caught.value.message or "snapshot" in caught.value.message
    assert node.files() == before


def test_a_lie_says_more_than_silence(site: Site, node: Node) -> None:
    with served(site.copy("frozen")) as frozen:
        site.later(days=4)
        error = refused(node, "http://127.0.0.1:1/", frozen)
    assert error.reason == "metadata-expired"


def test_a_clock_in_1970_does_not_bring_expired_metadata_back(site: Site, node: Node) -> None:
    with served(site.copy("frozen")) as frozen:
        site.later(days=4)
        site.refresh()
        node.trust(str(site.repo)).refresh()
        node.clock = lambda: datetime(1970, 1, 1, tzinfo=UTC)
        error = refused(node, frozen)
        assert error.reason in ("metadata-expired", "metadata-rolled-back")
        # A fresh node has only its image's build time to go by.
        fresh = Node(site.folder / "fresh", site.roots, node.clock)
        fresh.built = site.now
        assert refused(fresh, frozen).reason == "metadata-expired"
        fresh.built = START
        assert fresh.trust(frozen).refresh().time_floor == START


def test_a_clock_in_1970_still_accepts_what_is_fresh(site: Site, url: str, node: Node) -> None:
    node.trust(url).refresh()
    node.clock = lambda: datetime(1970, 1, 1, tzinfo=UTC)
    site.later(hours=1)
    site.refresh()
    assert node.trust(url).refresh().time_floor == START


def test_a_clock_far_in_the_future_refuses_and_leaves_no_trace(site: Site, url: str, node: Node) -> None:
    node.trust(url).refresh()
    right = node.clock
    node.clock = lambda: datetime(2099, 1, 1, tzinfo=UTC)
    error = refused(node, url)
    assert error.reason == "metadata-expired"
    assert "2099-01-01T00:00:00Z" in error.message
    assert "clock" in error.mend
    node.clock = right
    assert node.trust(url).refresh().time_floor == START


def test_ngclient_alone_would_accept_the_rollback(site: Site, quick_path: Path) -> None:
    """Keep this as long as it passes: it is why the accepted set has digests and floors of its own."""
    from tuf.ngclient import Updater

    with served(site.copy("old")) as old, served(site.repo) as url:
        for day in range(5):
            site.publish(f"2.{day}.0")
        cache = quick_path / "cache"
        cache.mkdir()

        def client(address: str) -> int:
            updater = Updater(str(cache), f"{address}/metadata/", bootstrap=site.raw("1.root.json"))
            updater._trusted_set.reference_time = site.now
            updater.refresh()
            return updater._trusted_set.timestamp.version

        assert client(url) == 8
        (cache / "timestamp.json").write_bytes(b"{")
        (cache / "snapshot.json").write_bytes(b"")
        assert client(old) == 3
