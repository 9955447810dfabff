"""docs/trust.md names every reason and every lifetime that the code knows."""

from __future__ import annotations

import re
from pathlib import Path

from updater.release.repository import DELEGATIONS
from updater.release.settings import DEFAULT_LIFETIMES_S

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trust.md").read_text()


def test_every_reason_for_which_a_node_distrusts_is_documented() -> None:
    sources = [path.read_text() for path in (ROOT / "updater" / "trust").glob("*.py")]
    reasons = {reason for source in sources for reason in re.findall(r'reason="([a-z-]+)"', source)}
    internal = {"not-found", "unreachable", "tuf-unknown"}
    assert len(reasons) > 12
    assert {reason for reason in reasons - internal if f"`{reason}`" not in PAGE} == set()


def test_the_lifetimes_and_paths_of_each_role_are_documented() -> None:
    for role, seconds in DEFAULT_LIFETIMES_S.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{role}` |"))
        assert row.endswith(f"| {seconds // 86_400} days |")
        assert role not in DELEGATIONS or f"`{DELEGATIONS[role]}`" in row
