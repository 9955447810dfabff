"""What is served, made once and kept as long as nothing that it was made from has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from integration.bench.results import Making

TOP = Path(__file__).resolve().parents[2]


def made_once(stamp: Path, key: object, make: Callable[[], Making]) -> Making:
    """Return what the stamp says of a making from the same key, else make it anew and stamp it."""
    words = json.loads(json.dumps(key))
    if stamp.exists():
        known = json.loads(stamp.read_text())
        if known["key"] == words:
            return Making(**{**known["making"], "reused": True})
    stamp.unlink(missing_ok=True)
    making = make()
    stamp.write_text(json.dumps({"key": words, "making": asdict(making)}))
    return making


def publishing_digest() -> str:
    """Return a digest of the sources that decide what is published: another state of them may publish other bytes."""
    found = hashlib.sha256()
    for folder in ("release", "format"):
        for path in sorted((TOP / "updater" / folder).rglob("*.py")):
            found.update(f"{path.relative_to(TOP)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
