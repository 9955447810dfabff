"""What was observed on a machine, at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from updater.boot.protocol import BootState
from updater.node.protocol import Node, Running
from updater.records import Journal, Ledger, Policy
from updater.slots import Slot
from updater.store import Store, utc_text, utc_time


@dataclass(frozen=True, slots=True)
class Facts:
    """All that decisions are made from; `ledger_lost` says that no copy of the ledger could be read."""

    live: bool
    running: Running
    boot: BootState
    boot_id: str
    journal: Journal
    ledger: Ledger
    ledger_lost: bool
    policy: Policy
    now: datetime
    other_root_hash: str | None
    gpt_problem: str = ""
    notes: tuple[str, ...] = ()


def recorded_root_hash(ledger: Ledger, journal: Journal, slot: Slot) -> str | None:
    """Return the root hash of what the records say that `slot` holds whole, None when they say nothing.

    This is all that tells where PARTUUIDs are fixed. A slot that is being staged holds nothing whole.
    """
    update = journal.update
    if update is not None and update.slot is slot and journal.phase not in ("idle", "staging"):
        return update.release.root.root_hash
    proven = ledger.proven_in(slot)
    if proven is not None:
        return proven.release.root.root_hash
    armed = ledger.armed
    return armed.release.root.root_hash if armed is not None and armed.slot is slot else None


def observe(node: Node, store: Store) -> Facts:
    """Look at the machine; change nothing."""
    running = node.running()
    ledger = store.ledger()
    journal = store.journal()
    policy = store.policy()
    other = running.slot.other
    problem = node.gpt_problem()
    return Facts(
        live=node.live,
        running=running,
        boot=node.boot.read(),
        boot_id=node.boot_id(),
        journal=journal,
        ledger=ledger or Ledger(),
        ledger_lost=ledger is None,
        policy=policy,
        now=node.now(),
        other_root_hash=node.root_hash_in(other) or recorded_root_hash(ledger or Ledger(), journal, other),
        gpt_problem=problem,
        notes=(
            *node.notes(),
            *([f"{problem}: `acl-updater layout check --repair` writes both anew"] if problem else []),
            *store.set_aside,
            *_clock_note(node.now(), running, ledger),
        ),
    )


def _clock_note(now: datetime, running: Running, ledger: Ledger | None) -> tuple[str, ...]:
    proven = ledger.proven_in(running.slot) if ledger else None
    if proven is None or now >= utc_time(proven.release.built):
        return ()
    return (
        f"the clock says {utc_text(now)}, before the running release was built ({proven.release.built}): "
        "it is not believed; set it",
    )
