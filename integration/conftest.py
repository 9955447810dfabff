"""What the integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.lab.factory import make_stock
from integration.lab.stock import Stock


@pytest.fixture(scope="session")
def stock() -> Stock:
    """Return the lab's stock, built once for all workers."""
    return make_stock()


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Path:
    """Return the folder in which each case leaves its reports and serial logs."""
    return pytestconfig.rootpath / "build" / "integration"
