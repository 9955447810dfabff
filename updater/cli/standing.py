"""The document that says where the machine stands."""

from __future__ import annotations

from typing import Any

import msgspec

from updater.boot.protocol import Entry
from updater.facts import Facts
from updater.policy import holding
from updater.situation import decide


def status_data(facts: Facts) -> dict[str, Any]:
    """Return the status document (docs/status.md describes its keys)."""
    update = facts.journal.update
    other = facts.running.slot.other
    proven = facts.ledger.proven_in(other)
    verdict = update.verdict if update else None
    last = facts.ledger.quarantine[-1] if facts.ledger.quarantine else None
    following = facts.boot.next_entry
    return {
        "format": 1,
        "live": facts.live,
        "situation": decide(facts).value,
        "phase": facts.journal.phase,
        "running": {
            "slot": facts.running.slot.value,
            "release": facts.running.version,
            "root_hash": facts.running.root_hash,
        },
        "other": {
            "slot": other.value,
            "release": proven.release.version if proven else None,
            "proven": proven is not None,
            "root_hash": facts.other_root_hash,
        },
        "target": (
            {
                "release": update.release.version,
                "slot": update.slot.value,
                "root_hash": update.release.root.root_hash,
                "staged": update.staged,
                "armed": update.armed,
                "trial_boots": len(update.trial_boots),
                "tries": update.tries,
                "brought": msgspec.to_builtins(update.brought),
            }
            if update
            else None
        ),
        "verdict": msgspec.to_builtins(verdict) if verdict else None,
        "reason": msgspec.to_builtins(last) if last else None,
        "quarantine": msgspec.to_builtins(facts.ledger.quarantine),
        "proven": [
            {"slot": item.slot.value, "release": item.release.version, "how": item.how, "at": item.at}
            for item in facts.ledger.proven
        ],
        "floor": facts.ledger.floor,
        "policy": {
            "pin": facts.policy.pin,
            "channel": facts.policy.channel,
            "held": holding(facts.policy, facts.now),
            "held_until": facts.policy.held_until,
        },
        "boot": {
            "loader": facts.boot.loader,
            "booted": facts.boot.booted_name,
            "entries": [_entry(entry) for entry in facts.boot.order],
            "next": following.slot.value if following and following.slot else None,
            "next_entry": facts.boot.next_name,
            "obstacles": list(facts.boot.obstacles),
        },
        "boot_id": facts.boot_id,
        "notes": [*facts.boot.notes, *facts.notes],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "slot": entry.slot.value if entry.slot else None,
        "release": entry.version,
        "generation": entry.generation,
        "tries_left": entry.tries_left,
        "tries_done": entry.tries_done,
    }
