"""`python -m integration.schemas`: write the JSON Schemas of all documents that people write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from integration.lab.catalogue import FaultFile
from integration.lab.scenario import Scenario
from rollback.checks import HealthFile
from updater.config import Config
from updater.format.later import LaterDeltas
from updater.layouts import Layout
from updater.manifest import Channel, Manifest, Withdrawn
from updater.schema import json_schema

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"

DOCUMENTS: dict[str, type[Any]] = {
    "channel": Channel,
    "config": Config,
    "deltas": LaterDeltas,
    "fault": FaultFile,
    "health": HealthFile,
    "layout": Layout,
    "manifest": Manifest,
    "scenario": Scenario,
    "withdrawn": Withdrawn,
}


def main() -> int:
    """Write each schema; return 0."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, kind in DOCUMENTS.items():
        (FOLDER / f"{name}.json").write_bytes(json_schema(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
