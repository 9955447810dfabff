"""The demonstration that the README begins with, as anybody runs it by `make demo`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from integration.demo import show


@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_the_demo_holds_to_its_end(results: Path) -> None:
    """The lab's own releases travel plain: here a live node takes deltas, by its own timer."""
    work = results / "demo.work"
    try:
        assert show(results / "demo", work) == 0, f"see {results / 'demo' / 'report.html'}"
    finally:
        shutil.rmtree(work, ignore_errors=True)
