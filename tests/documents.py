"""Valid documents that tests change one value of."""

from __future__ import annotations

from typing import Any

MANIFEST: dict[str, Any] = {
    "format": 1,
    "version": "2.0.0",
    "image_id": "acl-reference",
    "architecture": "x86-64",
    "layouts": ["dps-root"],
    "built": "2026-11-01T00:00:00Z",
    "security_epoch": 3,
    "root": {
        "length_bytes": 4096 * 200,
        "tree_length_bytes": 4096 * 3,
        "root_hash": "ab" * 32,
        "salt": "cd" * 32,
        "uuid": "11111111-2222-3333-4444-555555555555",
    },
    "uki": {"length_bytes": 5000, "sha256": "ef" * 32},
    "addons": [{"name": "fips.addon.efi", "length_bytes": 900, "sha256": "12" * 32}],
}


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return the document with the value at a dotted path replaced."""
    head, _, rest = path.partition(".")
    return {**document, head: changed(document[head], rest, value) if rest else value}
