"""The examples in docs/health.md are what the parser reads."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import get_args

import pytest

from rollback.checks import AnyCheck, parse_health_file

PAGE = (Path(__file__).parent.parent / "docs" / "health.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_page_is_valid(example: str) -> None:
    if not example.lstrip("# ").startswith(("format", "/etc")):
        example = "format: 1\nchecks:\n" + textwrap.indent(example, "  ")
    parse_health_file(example.encode(), "docs/health.md")


def test_the_page_has_an_example_of_every_kind() -> None:
    kinds = {kind.kind for kind in get_args(AnyCheck)}
    assert {kind for kind in kinds if any(f"kind: {kind}" in example for example in EXAMPLES)} == kinds
