"""Filling a slot by delta, reuse and frames: exact bytes and requests, kills, damage, fallbacks."""

from __future__ import annotations

import pytest

from tests.transported import Repository, filled
from updater.blocks import Blocks
from updater.errors import UpdaterError
from updater.fill.filler import Filled, Filler
from updater.ways import Choice, Way, choose_way

WAYS = [Way.DELTA, Way.REUSE, Way.FULL]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


def run(
    filler: Filler,
    data: Blocks,
    hashes: Blocks,
    *,
    order: tuple[Way, ...] | None = None,
    barred: list[tuple[Way, str]] | None = None,
) -> Filled:
    costs = filler.work_out(data, hashes, thorough=True)
    choice = Choice(order, "told") if order is not None else choose_way(costs)

    def on_barred(way: Way, error: UpdaterError) -> None:
        assert barred is not None, f"{way} was barred: {error}"
        barred.append((way, error.reason))

    return filler.fill(data, hashes, choice, on_barred=on_barred)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_alone_fills_a_wiped_slot(repository: Repository, way: Way) -> None:
    data, hashes = repository.wiped()
    done = run(repository.filler(repository.running(), only=way), data, hashes, order=(way,))
    assert filled(data, hashes, repository.new)
    assert done.ways == (way,)
    print(done)


@pytest.mark.parametrize("way", WAYS)
def test_the_cost_is_what_it_costs(repository: Repository, way: Way) -> None:
    for data, hashes in (repository.wiped(), repository.running_blocks()):
        filler = repository.filler(repository.running(), only=way)
        costs = {cost.way: cost for cost in filler.work_out(data, hashes, thorough=True)}
        done = filler.fill(data, hashes, Choice((way,), ""), on_barred=lambda way, error: None)
        print(costs[way], done)
        assert filled(data, hashes, repository.new)
