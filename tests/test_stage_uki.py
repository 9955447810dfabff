"""Staging a UKI by a delta through its unpacked kernel and initrd, from a real repository."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests import ukis
from tests.disks import image_of
from tests.machine import SimulatedMachine, replace_config
from tests.releases import Publisher, Release, make_release
from updater.config import Network
from updater.manifest import parse_manifest
from updater.plan import Plan
from updater.release.transport import Ways
from updater.repository import open_repository
from updater.schema import encode_json
from updater.slots import Slot
from updater.steps.recover import recover
from updater.steps.stage import stage
from updater.ways import Way


def _release(version: str, kernel: bytes, modules: bytes) -> Release:
    made = make_release(version, image=image_of(130, seed=7 if version == "1.0.0" else 8))
    command_line = f"roothash={made.manifest.root.root_hash} systemd.verity_root_options=panic-on-corruption panic=1"
    uki = ukis.uki(version, ukis.kernel(kernel), ukis.initrd(modules), command_line)
    document = json.loads(made.raw)
    document["uki"] = {"length_bytes": len(uki), "sha256": hashlib.sha256(uki).hexdigest()}
    raw = encode_json(document)
    return Release(parse_manifest(raw, version), raw, made.image, made.tree, uki)


KERNEL, MODULES = ukis.code(3, 200_000), ukis.code(5, 200_000)
ONE = _release("1.0.0", KERNEL, MODULES)
TWO = _release("2.0.0", ukis.edited(KERNEL, 4), ukis.edited(MODULES, 6))


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE)
    made.publish(TWO, ways=Ways(frames=True, reuse=False))
    made.promote("2.0.0")
    return made


def staged(publisher: Publisher, max_memory_bytes: int) -> tuple[SimulatedMachine, Plan]:
    machine = SimulatedMachine(ONE, mirror=publisher.mirror, roots=publisher.roots)
    machine.config = replace_config(machine.config, network=Network(max_memory_bytes=max_memory_bytes))
    session = machine.session()
    recover(session, None)
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        return machine, stage(session, repository, to=None)


def test_a_node_with_memory_to_spare_fetches_what_changed(publisher: Publisher) -> None:
    fetched = {}
    for name, most in (("lean", 100 << 20), ("rich", 1 << 30)):
        machine, made = staged(publisher, most)
        assert made.uki_choice is not None
        assert made.uki_choice.taken is Way.DELTA
        assert machine.holds(Slot.B, TWO)
        assert machine.session().facts().journal.phase == "staged"
        fetched[name] = next(cost.fetch_bytes for cost in made.uki_ways if cost.way is Way.DELTA)
    assert fetched["rich"] < len(TWO.uki) // 40 < fetched["lean"] < len(TWO.uki) * 2 // 3
