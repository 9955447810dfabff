"""Fixtures of all tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.disk_image import make_disk
from tests.releases import Publisher
from updater.release.transport import Ways

# A busy machine is no failure: only pytest's own timeout ends a test. What a change must pass draws the same examples
# each time; `--hypothesis-profile=explore` draws new ones, as `make fuzz` does for the parsers.
settings.register_profile("explore", deadline=None)
settings.register_profile("patient", deadline=None, derandomize=True)
settings.load_profile("patient")


@pytest.fixture(scope="module")
def publisher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """Return a publisher of the module's releases ONE and TWO, which travel in every way."""
    return Publisher.of_pair(tmp_path_factory.mktemp("publisher"), request.module.ONE, request.module.TWO, Ways())


@pytest.fixture(scope="module")
def factory_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a disk that came with the module's release ONE."""
    return make_disk(request.module.ONE, tmp_path_factory.mktemp("factory") / "disk.raw")


@pytest.fixture
def quick_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a new folder in memory where there is one: flushes cost nothing there. For a few megabytes only."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        (Path(folder) / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", f"{folder}/tmp")
        yield Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much of what a power cut could leave was tried: a test that tries little proves little."""
    passed = terminalreporter.getreports("passed")
    found = [value for report in passed for name, value in report.user_properties if name == "power_cuts"]
    if found:
        effects, cuts, states, recoveries, updates = (sum(column) for column in zip(*found, strict=True))
        terminalreporter.write_line(
            f"power cuts: {len(found)} operations with {effects} effects; {cuts} cuts left {states} distinct states; "
            f"{recoveries} recoveries, {updates} next updates"
        )
