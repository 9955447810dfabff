"""Every shipped scenario, on real firmware: `acl-lab run NAME` runs one of them by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.lab.factory import make_stock
from integration.lab.runner import execute
from integration.lab.scenario import FOLDER, find_scenarios, load_scenario

# Those with most boots begin first, so that the last machine does not run alone for long.
_LONGEST_FIRST = ("hang-", "power-cut-write", "kernel-panic", "initrd-", "init-", "power-cut-", "health-", "downgrade-")


def _order(path: Path) -> tuple[int, str]:
    rank = next((at for at, start in enumerate(_LONGEST_FIRST) if path.stem.startswith(start)), len(_LONGEST_FIRST))
    return (rank, path.stem)


@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [path.stem for path in sorted(find_scenarios(), key=_order) if path.stem != "demo"])
def test_scenario_holds(name: str, results: Path) -> None:
    scenario = load_scenario(FOLDER / f"{name}.yaml")
    report = execute(make_stock(scenario.layout), scenario, results / scenario.name)
    for event in report.events:
        print(f"{event.at_s:8.1f}  {event.boot or '-':>2}  {event.kind:10} {event.text}")
    assert report.passed, f"{report.problem}\n(reports and serial logs: {results / scenario.name})"
