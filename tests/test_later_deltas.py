"""Deltas that a release is given after its publication: made, signed, read by nodes, refused when they are wrong."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.machine import SimulatedMachine
from tests.releases import Publisher, make_release
from updater.errors import InvalidDocument, NetworkFailure, Refused
from updater.fetch import Fetcher, Retries
from updater.format.later import later_path, parse_later
from updater.manifest import BLOCK_BYTES
from updater.plan import Plan
from updater.release.later import Added, add_deltas
from updater.release.repository import opened, utc_now
from updater.release.transport import Ways
from updater.release.verify import Report, verify
from updater.repository import Repository, open_repository
from updater.slots import Slot
from updater.steps.recover import recover
from updater.steps.stage import stage
from updater.steps.ways import transport_of
from updater.trust import Trust
from updater.ways import Way


def _changed(image: bytes, seed: int) -> bytes:
    changed = bytearray(image)
    for block in (5, 60, 61, 130):
        changed[block * BLOCK_BYTES + 9 : block * BLOCK_BYTES + 13] = random.Random(seed + block).randbytes(4)
    return bytes(changed)


ONE = make_release("1.0.0")
TWO = make_release("2.0.0-rc.1", image=_changed(ONE.image, 1))
TIME_ZERO = datetime.fromtimestamp(0, UTC)
NO_DELTAS = Ways(frames=False, reuse=False, deltas=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """Two releases without a delta, then the delta that was made later."""
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, ways=NO_DELTAS)
    made.publish(TWO, ways=NO_DELTAS)
    made.promote(TWO.version)
    manifest = _manifest_file(made.mirror, TWO.version).read_bytes()
    assert added(made, ONE.version, TWO.version).new
    assert _manifest_file(made.mirror, TWO.version).read_bytes() == manifest
    return made


def added(publisher: Publisher, source: str, target: str) -> Added:
    with opened(publisher.mirror, publisher.ring, utc_now) as repository:
        return add_deltas(repository, source, target)


def verified(mirror: Path, publisher: Publisher) -> Report:
    return verify(Fetcher([str(mirror)]), publisher.roots[:1], utc_now)


def staged(machine: SimulatedMachine) -> Plan:
    session = machine.session()
    recover(session, None)
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        return stage(session, repository, to=None)


def node(publisher: Publisher, mirror: Path | None = None) -> SimulatedMachine:
    return SimulatedMachine(ONE, mirror=mirror or publisher.mirror, roots=publisher.roots)


def copied(publisher: Publisher, folder: Path) -> Path:
    mirror = folder / "mirror"
    shutil.copytree(publisher.mirror, mirror)
    return mirror


def _manifest_file(mirror: Path, version: str) -> Path:
    (found,) = (mirror / "targets/manifests").glob(f"*.{version}.json")
    return found


def _later_file(mirror: Path) -> Path:
    (found,) = (mirror / "targets/manifests").glob("*.deltas-*.json")
    return found


def test_a_node_takes_a_delta_that_was_added_later(published: Publisher) -> None:
    machine = node(published)
    made = staged(machine)
    assert made.image_choice is not None
    assert made.uki_choice is not None
    assert (made.image_choice.taken, made.uki_choice.taken) == (Way.DELTA, Way.DELTA)
    assert made.download_bytes_at_most < len(TWO.image) // 10
    assert machine.holds(Slot.B, TWO)


def test_a_release_is_no_more_in_the_list_of_versions_for_its_deltas(published: Publisher) -> None:
    machine = node(published)
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        assert repository.trust.versions() == [ONE.version, TWO.version]
    assert verified(published.mirror, published).releases == [ONE.version, TWO.version]


def test_the_same_delta_again_changes_nothing(published: Publisher) -> None:
    before = sorted(str(path) for path in published.mirror.rglob("*"))
    again = added(published, ONE.version, TWO.version)
    assert not again.new
    assert again.root is not None
    assert again.fetch_bytes > 0
    assert sorted(str(path) for path in published.mirror.rglob("*")) == before


def test_a_delta_may_lead_back_to_an_older_release(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    publisher.publish(ONE, TWO)
    back = added(publisher, TWO.version, ONE.version)
    assert back.root is not None
    assert (back.root.source, back.root.source_version) == (TWO.manifest.root.root_hash, TWO.version)
    assert verified(publisher.mirror, publisher).good


def test_a_release_that_has_its_deltas_is_published_again_without_a_change(published: Publisher) -> None:
    before = _later_file(published.mirror).read_bytes()
    published.publish(TWO, ways=NO_DELTAS)
    assert _later_file(published.mirror).read_bytes() == before
    assert verified(published.mirror, published).good


def test_verify_names_a_later_delta_that_is_gone(published: Publisher, tmp_path: Path) -> None:
    mirror = copied(published, tmp_path)
    recipe = json.loads(_later_file(mirror).read_bytes())["root"][0]["recipe"]["sha256"]
    (mirror / "blobs" / recipe[:2] / recipe).unlink()
    report = verified(mirror, published)
    assert [finding.what for finding in report.findings] == [f"release {TWO.version}"]
    assert recipe in report.findings[0].why


@pytest.mark.parametrize("spoil", ["missing", "other bytes"])
def test_a_mirror_that_hides_or_spoils_the_document_costs_only_bytes(
    published: Publisher, tmp_path: Path, spoil: str
) -> None:
    mirror = copied(published, tmp_path)
    document = _later_file(mirror)
    if spoil == "missing":
        document.unlink()
    else:
        document.write_bytes(document.read_bytes().replace(b"1.0.0", b"1.0.1"))
    machine = node(published, mirror)
    made = staged(machine)
    assert made.image_choice is not None
    assert made.image_choice.taken is Way.PLAIN
    assert machine.holds(Slot.B, TWO)


def test_a_network_that_fails_for_a_moment_does_not_hide_the_deltas(published: Publisher) -> None:
    machine = node(published)
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        manifest, _ = repository.release(TWO.version)
    # Nobody listens on port 1.
    fetcher = Fetcher(["http://127.0.0.1:1"], retries=Retries(attempts=1))
    trust = Trust(
        machine.trust, fetcher, bootstrap_roots=machine.bootstrap_roots(), now=machine.now, time_floor=TIME_ZERO
    )
    with pytest.raises(NetworkFailure):
        transport_of(Repository(trust, fetcher), manifest)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("1.0.0", "9.0.0", "release-unknown"),
        ("0.9.0", "1.0.0", "release-unknown"),
        ("1.0.0", "1.0", "same-release"),
        ("1.0.0", "3.0.0", "other-image"),
        ("1.0.0", "4.0.0", "release-withdrawn"),
    ],
)
def test_what_no_node_could_use_is_refused(tmp_path: Path, source: str, target: str, reason: str) -> None:
    publisher = Publisher(tmp_path)
    other, gone = make_release("3.0.0", blocks=130), make_release("4.0.0", blocks=130)
    document = json.loads(other.raw)
    document["image_id"] = "another"
    object.__setattr__(other, "raw", json.dumps(document).encode())
    publisher.publish(make_release("1.0.0", blocks=130), other, gone)
    publisher.withdraw("4.0.0", "breaks DNS")
    with pytest.raises(Refused) as caught:
        added(publisher, source, target)
    assert caught.value.reason == reason
    assert not list((publisher.mirror / "targets/manifests").glob("*.deltas-*.json"))


def _document(publisher: Publisher) -> dict[str, Any]:
    found = json.loads(_later_file(publisher.mirror).read_bytes())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"version": "2.0.0"},
        {"root_hash": "00" * 32},
        {"uki_sha256": "00" * 32},
        {"surprise": 1},
        {"root": [{}]},
        {"root": "all of them"},
    ],
)
def test_a_document_that_is_malformed_or_about_another_release_is_refused(
    published: Publisher, change: dict[str, Any]
) -> None:
    good = _document(published)
    parse_later(json.dumps(good).encode(), TWO.manifest, "deltas")
    with pytest.raises(InvalidDocument):
        parse_later(json.dumps(good | change).encode(), TWO.manifest, "deltas")


def test_more_deltas_than_64_are_refused(published: Publisher) -> None:
    good = _document(published)
    with pytest.raises(InvalidDocument):
        parse_later(json.dumps(good | {"root": good["root"] * 65}).encode(), TWO.manifest, "deltas")


def test_the_document_is_no_manifest_of_any_version() -> None:
    from updater.versions import is_version

    for version in ("1", "1.0.0-rc", "2026.1.1-a.b"):
        assert not is_version(later_path(version).removeprefix("manifests/").removesuffix(".json"))
