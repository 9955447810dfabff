"""Every shipped scenario, on real firmware: `acl-lab run NAME` runs one of them by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.lab.catalogue import chosen_faults
from integration.lab.factory import make_stock
from integration.lab.runner import execute
from integration.lab.scenario import FOLDER, find_scenarios, load_scenario

# Those with most boots begin first, so that the last machine does not run alone for long.
_LONGEST_FIRST = ("hang-", "power-cut-write", "kernel-panic", "initrd-", "init-", "power-cut-", "health-", "downgrade-")

# The demo has releases of its own: `test_demo`. The others are refusals before a reboot: `test_faults` meets them on a
# disk at rest, under the names behind them; `acl-lab run --all` runs them on a live node as well.
_ELSEWHERE = {
    "demo": "",
    "esp-full": "loader-esp-full",
    "expired-metadata": "metadata-expired",
    "release-too-large": "disk-release-too-large",
    "tampered-block": "metadata-block-tampered",
    "tampered-manifest": "metadata-manifest-tampered",
}


def _order(path: Path) -> tuple[int, str]:
    rank = next((at for at, start in enumerate(_LONGEST_FIRST) if path.stem.startswith(start)), len(_LONGEST_FIRST))
    return (rank, path.stem)


@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name", [path.stem for path in sorted(find_scenarios(), key=_order) if path.stem not in _ELSEWHERE]
)
def test_scenario_holds(name: str, results: Path) -> None:
    scenario = load_scenario(FOLDER / f"{name}.yaml")
    report = execute(make_stock(scenario.layout), scenario, results / scenario.name)
    for event in report.events:
        print(f"{event.at_s:8.1f}  {event.boot or '-':>2}  {event.kind:10} {event.text}")
    assert report.passed, f"{report.problem}\n(reports and serial logs: {results / scenario.name})"


def test_what_is_run_elsewhere_is_there() -> None:
    scenarios = {path.stem for path in find_scenarios()}
    offline = {fault.name for fault in chosen_faults([]) if not fault.needs_boots}
    assert _ELSEWHERE.keys() <= scenarios
    assert set(_ELSEWHERE.values()) - {""} <= offline
