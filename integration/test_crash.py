"""A short recorded update, cut at every write: each state is judged offline, and two of them boot for real.

`make crash` does the same with a whole update, and boots many more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.crash.epochs import Cut, Depth, Kind
from integration.crash.esp import Esp
from integration.crash.judge import RENAMES
from integration.crash.proof import Proof, boot_spread, published
from integration.crash.recording import SHORT, Recorded, record
from integration.crash.replay import Walk, states, walk
from integration.crash.report import summary, words
from integration.images.cache import locked
from integration.lab.stock import Stock

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(3600)]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recording, and what the walk over it found."""

    recorded: Recorded
    found: Walk


@pytest.fixture(scope="module")
def folder(results: Path) -> Path:
    """Return the folder of this module's recording and reports."""
    found = results / "crash"
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(scope="module")
def replayed(stock: Stock, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """Record a short update, once for all workers, and judge all that a cut of it may leave."""
    with locked(folder / "recording.lock"):
        recorded = record(stock, folder / "recording", SHORT)
    return Replayed(recorded, walk(recorded, published(stock), tmp_path_factory.mktemp("walk"), Depth(subsets=2)))


def test_every_cut_of_a_recorded_update_leaves_a_proven_release_that_boots(replayed: Replayed) -> None:
    found = replayed.found
    print(summary(found, [], seconds=0))
    assert not found.failed, "\n".join(map(words, found.failures))
    assert found.forced == 0, "a forced write is durable alone, which the replay does not model"
    assert {Kind.END, Kind.UP_TO, Kind.WITHOUT, Kind.SEED, Kind.VARIABLES} <= set(found.kinds)
    assert found.variable_changes > 0
    order = {point.judged.order for point in found.loaders.values()}
    assert {("a.conf",), ("b+3-0.conf", "a.conf"), ("b+2-1.conf", "a.conf"), ("b.conf", "a.conf")} <= order


def test_a_disk_that_lies_about_its_flushes_is_found_out(stock: Stock, replayed: Replayed, tmp_path: Path) -> None:
    """Were nothing found wrong here, the test above would prove nothing."""
    found = walk(replayed.recorded, published(stock), tmp_path, Depth(subsets=10, most_single=10), lying=True)
    assert found.failed


def test_a_cut_rename_on_vfat_leaves_the_old_name_the_new_one_both_or_neither(
    replayed: Replayed, tmp_path: Path
) -> None:
    """The simulated ESP of the fast tests says the same (`rename_as_firmware` of `tests/simulated.py`)."""
    old, new = "OLD", "NEW"
    renamed = next(point.epoch for point in replayed.found.ends if f"{RENAMES}/{new}" in point.judged.names)
    # Linux writes the new name twice: neither is left where both of these are lost, and the old one's removal is not.
    wanted = [(renamed, Cut(Kind.SEED, seed)) for seed in range(100)]
    found = {
        frozenset(Esp(medium.reader("esp")).names(RENAMES)) & {old, new}
        for medium in states(replayed.recorded, wanted, tmp_path)
    }
    assert found == {frozenset(), frozenset({old}), frozenset({new}), frozenset({old, new})}


def test_states_that_a_cut_left_boot_to_the_end_of_their_story(stock: Stock, replayed: Replayed, folder: Path) -> None:
    proof = Proof(folder, found=replayed.found)
    boot_spread(stock, replayed.recorded, proof, 2, 1, again=True, live=0)
    assert len(proof.told) == 2
    assert {one.point: one.problem for one in proof.told if not one.passed} == {}
