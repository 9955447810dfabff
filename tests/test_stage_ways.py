"""Staging by the cheapest way on a simulated machine: bars that are remembered, caps, what plan and explain say."""

from __future__ import annotations

import argparse
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from tests.machine import PoweredBlocks, SimulatedMachine, replace_config
from tests.releases import Publisher, make_release
from tests.simulated import Power, PowerCut
from updater.cli.looking import explain, plan
from updater.config import Network
from updater.errors import EnvironmentFailure, Refused
from updater.manifest import BLOCK_BYTES, parse_manifest
from updater.plan import Plan
from updater.records import BarredWay
from updater.release.transport import Ways
from updater.repository import open_repository
from updater.slots import Slot
from updater.steps import ways as steps_ways
from updater.steps.recover import recover
from updater.steps.stage import stage
from updater.ways import Way


def _successor(image: bytes) -> bytes:
    changed = bytearray(image)
    for block in (3, 70, 71, 140):
        changed[block * BLOCK_BYTES + 9 : block * BLOCK_BYTES + 13] = random.Random(block).randbytes(4)
    return bytes(changed)


ONE = make_release("1.0.0")
TWO = make_release("2.0.0", image=_successor(ONE.image))


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, ways=Ways())
    made.publish(TWO, ways=Ways())
    made.promote("2.0.0")
    return made


@pytest.fixture
def machine(publisher: Publisher) -> SimulatedMachine:
    return SimulatedMachine(ONE, mirror=publisher.mirror, roots=publisher.roots)


def staged(machine: SimulatedMachine) -> Plan:
    session = machine.session()
    recover(session, None)
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        return stage(session, repository, to=None)


def without_the_delta(publisher: Publisher, folder: Path) -> Path:
    """Return a copy of the mirror that lacks what the delta's operations need."""
    mirror = folder / "mirror"
    shutil.copytree(publisher.mirror, mirror)
    (manifest,) = mirror.glob("targets/manifests/*2.0.0.json")
    transport = parse_manifest(manifest.read_bytes(), "manifest").transport
    assert transport is not None
    payload = transport.root.deltas[0].payload
    assert payload is not None
    (mirror / payload.path).unlink()
    return mirror


def test_the_delta_is_taken_and_costs_a_few_blocks(machine: SimulatedMachine) -> None:
    made = staged(machine)
    assert made.image_choice is not None
    assert made.image_choice.taken is Way.DELTA
    costs = {cost.way: cost for cost in made.image_ways}
    assert costs[Way.DELTA].fetch_bytes < 5 * BLOCK_BYTES
    assert made.download_bytes_at_most < len(TWO.image) // 10
    assert machine.holds(Slot.B, TWO)


def test_plan_shows_every_way_and_writes_nothing(machine: SimulatedMachine) -> None:
    recover(machine.session(), None)
    effects = [name for name in machine.power.effects if "write slot" in name]
    report = plan(argparse.Namespace(to=None), machine.session())
    assert [name for name in machine.power.effects if "write slot" in name] == effects
    ways = {way["way"]: way for way in report.data["image"]["ways"]}
    assert list(ways) == ["delta", "reuse", "full", "plain"]
    assert all(way["worked_out"] and way["fetch_bytes"] and way["requests"] for way in ways.values())
    assert report.data["image"]["order"][0] == "delta"
    assert any(line.startswith("> image by delta") for line in report.lines)
    assert any("reuse would fetch" in line for line in report.lines)


class RottingBlocks(PoweredBlocks):
    """A running slot's disk that rots in one block as soon as the other slot is written: after its proof."""

    rot: Literal["flipped", "unreadable"] = "flipped"
    at = 70 * BLOCK_BYTES
    rotten = False

    def rots(self, offset: int, length: int) -> None:
        if not self.rotten and self.rot == "flipped":
            self.content[self.at + 100] ^= 1
        self.rotten = True

    def read(self, offset: int, length: int) -> bytes:
        if self.rotten and self.rot == "unreadable" and offset <= self.at < offset + length:
            raise EnvironmentFailure(f"cannot read {self.name} at byte {self.at}", reason="io-error")
        return super().read(offset, length)


def rotting(machine: SimulatedMachine, rot: Literal["flipped", "unreadable"]) -> RottingBlocks:
    """Give slot a's disk the fault."""
    sound = machine.partitions[Slot.A, "data"]
    blocks = RottingBlocks(len(sound.content), sound.name, machine.power)
    blocks.content[:] = sound.content
    blocks.rot = rot
    machine.partitions[Slot.A, "data"] = blocks
    machine.partitions[Slot.B, "hash"].before_write = blocks.rots
    return blocks


@pytest.mark.parametrize(
    ("rot", "reason", "ways"),
    [("flipped", "source-damaged", ["delta"]), ("unreadable", "source-unreadable", ["delta", "reuse"])],
    ids=["flipped", "EIO"],
)
def test_a_broken_delta_is_barred_once_told_by_explain_and_not_tried_again(
    machine: SimulatedMachine, rot: Literal["flipped", "unreadable"], reason: str, ways: list[str]
) -> None:
    # In a block that an operation reads.
    disk = rotting(machine, rot)
    staged(machine)
    assert disk.rotten
    assert machine.holds(Slot.B, TWO)
    update = machine.session().facts().journal.update
    assert update is not None
    assert [(item.way, item.file, item.reason) for item in update.barred] == [(way, "image", reason) for way in ways]
    assert steps_ways.barred_ways(machine.session().facts().journal, update.release, "image").keys() == set(
        map(Way, ways)
    )
    told = explain(argparse.Namespace(offline=True), machine.session())
    assert any("the delta way is barred for the image of release 2.0.0" in line for line in told.lines)
    assert [event.event for event in machine.session().store.history()].count("way-barred") == len(ways)


def test_a_bar_counts_for_its_release_only(machine: SimulatedMachine) -> None:
    staged(machine)
    journal = machine.session().facts().journal
    assert journal.update is not None
    item = BarredWay("delta", "image", "operation-failed", "corrupt", "2026-11-01T00:00:00Z")
    barred = msgspec.structs.replace(journal, update=msgspec.structs.replace(journal.update, barred=[item]))
    release = journal.update.release
    assert steps_ways.barred_ways(barred, release, "image") == {Way.DELTA: "corrupt"}
    assert steps_ways.barred_ways(barred, release, "uki.efi") == {}
    assert steps_ways.barred_ways(barred, msgspec.structs.replace(release, version="3.0.0"), "image") == {}


def test_policy_refuses_a_download_beyond_its_cap_before_anything_is_touched(machine: SimulatedMachine) -> None:
    recover(machine.session(), None)
    machine.config = replace_config(machine.config, network=Network(max_download_bytes=100))
    before = dict(machine.esp.files)
    with pytest.raises(Refused) as caught:
        staged(machine)
    assert caught.value.reason == "download-cap"
    assert machine.esp.files == before
    assert not machine.partitions[Slot.B, "data"].writes
    assert machine.session().facts().journal.phase == "idle"


def test_a_cap_leaves_only_the_ways_below_it(machine: SimulatedMachine) -> None:
    machine.config = replace_config(machine.config, network=Network(max_download_bytes=100_000))
    made = staged(machine)
    assert made.image_choice is not None
    assert Way.PLAIN not in made.image_choice.order
    assert machine.holds(Slot.B, TWO)


def test_a_mirror_without_the_delta_is_no_bar(publisher: Publisher, machine: SimulatedMachine, tmp_path: Path) -> None:
    machine.with_mirror(without_the_delta(publisher, tmp_path))
    staged(machine)
    assert machine.holds(Slot.B, TWO)
    update = machine.session().facts().journal.update
    assert update is not None
    assert update.barred == []


def test_the_step_says_how_the_slot_was_read_back(machine: SimulatedMachine) -> None:
    session = machine.session()
    recover(session, None)
    said: list[str] = []

    class Heard:
        def begin(self, name: str, sentence: str) -> None: ...
        def advance(self, done_bytes: int, total_bytes: int) -> None: ...
        def end(self, name: str, result: str) -> None:
            said.append(f"{name}: {result}")

    session = replace(session, reporter=Heard())
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        stage(session, repository, to=None)
    filled = next(line for line in said if line.startswith("fill-slot: "))
    assert filled.startswith("fill-slot: delta: ")
    assert "read back (memory)" in filled


@pytest.mark.parametrize("offset", range(4))
def test_a_power_cut_at_any_effect_of_a_stage_is_resumed(publisher: Publisher, offset: int) -> None:
    whole = SimulatedMachine(ONE, mirror=publisher.mirror, roots=publisher.roots)
    staged(whole)
    for cut_after in range(offset, len(whole.power.effects), 12):
        machine = SimulatedMachine(
            ONE, mirror=publisher.mirror, roots=publisher.roots, power=Power(cut_after=cut_after)
        )
        with pytest.raises(PowerCut):
            staged(machine)
        machine.restored(Power())
        assert machine.reboot_now().slot is Slot.A
        staged(machine)
        assert machine.holds(Slot.B, TWO)


def test_a_way_may_take_half_of_the_memory_that_is_left_and_no_more_than_policy_allows(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2048 kB\nMemAvailable:    1024 kB\n")
    assert steps_ways.spare_memory_bytes(None, meminfo) == 512 * 1024
    assert steps_ways.spare_memory_bytes(1 << 30, meminfo) == 512 * 1024
    assert steps_ways.spare_memory_bytes(1000, meminfo) == 1000
    meminfo.write_text("MemTotal:       2048 kB\n")
    assert steps_ways.spare_memory_bytes(None, meminfo) is None
    assert steps_ways.spare_memory_bytes(1000, tmp_path / "none") == 1000
