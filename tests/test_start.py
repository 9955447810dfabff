"""What a command brings in when it starts: each boot pays for it, on the slowest machine twentyfold."""

from __future__ import annotations

import json
import subprocess
import sys

_LIST = """
import json, sys
from updater.cli.dispatch import _find
import updater.node.live
_find(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""
# Fetching, filling and proving a slot, and the libraries of trust.
_HEAVY = ("updater.fetch", "updater.fill", "updater.repository", "updater.steps.stage", "concurrent", "tuf", "requests")


def imported_by(command: str) -> set[str]:
    done = subprocess.run([sys.executable, "-I", "-c", _LIST, command], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_recover_brings_in_nothing_that_fetches_or_writes_a_release() -> None:
    found = imported_by("recover")

    assert "updater.steps.recover" in found
    assert [name for name in sorted(found) if name.startswith(_HEAVY)] == []
