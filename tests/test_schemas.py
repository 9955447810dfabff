"""The JSON Schemas in docs/ are those of the types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from updater.manifest import Channel, Manifest, Withdrawn
from updater.schema import json_schema

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"


@pytest.mark.parametrize(("name", "kind"), [("manifest", Manifest), ("channel", Channel), ("withdrawn", Withdrawn)])
def test_a_schema_is_that_of_its_type(name: str, kind: type[Any]) -> None:
    at = SCHEMAS / f"{name}.schema.json"
    # Made with `updater.schema.json_schema`.
    assert at.read_bytes() == json_schema(kind)
