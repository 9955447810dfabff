"""The JSON Schemas that editors use are those of the code."""

import pytest

from integration.schemas import DOCUMENTS, FOLDER
from updater.schema import json_schema


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_the_schema_on_file_is_the_codes(name: str) -> None:
    on_file = (FOLDER / f"{name}.json").read_bytes()
    assert on_file == json_schema(DOCUMENTS[name]), "run `make schemas` and look at what changed"


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(DOCUMENTS)
