"""The faults that need no boot, and one that shows the way into a guest: `acl-lab matrix` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.lab.catalogue import chosen_faults, compose
from integration.lab.factory import make_stock
from integration.lab.runner import execute

# Its script changes a unit of release 2 alone, and its verdict is the health service's.
_BOOTED = ("container-containerd-wedged",)
_FAULTS = {fault.name: fault for fault in chosen_faults([])}
_OFFLINE = sorted(name for name, fault in _FAULTS.items() if not fault.needs_boots)


@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*_BOOTED, *_OFFLINE])
def test_the_node_does_what_an_operator_wants(name: str, results: Path) -> None:
    fault = _FAULTS[name]
    report = execute(make_stock(fault.needs.layout), compose(fault, short=True), results / f"fault-{name}")
    for event in report.events:
        print(f"{event.at_s:8.1f}  {event.boot or '-':>2}  {event.kind:10} {event.text}")
    assert report.passed, f"{report.problem}\n(reports and serial logs: {results / f'fault-{name}'})"
