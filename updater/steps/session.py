"""One run of the updater on one machine: the node, its documents, who watches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from updater.facts import Facts, observe
from updater.node.protocol import Node
from updater.progress import LogReporter, Reporter
from updater.records import Event, ReleaseRecord
from updater.slots import Slot
from updater.store import Store, utc_text

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """What every step works with; facts are observed anew whenever a step may have changed them."""

    node: Node
    store: Store
    reporter: Reporter

    def facts(self) -> Facts:
        """Look at the machine as it is now."""
        return observe(self.node, self.store)

    def now(self) -> datetime:
        """Return the node's time."""
        return self.node.now()

    def stamp(self) -> str:
        """Return the node's time as documents carry it."""
        return utc_text(self.node.now())

    def record(
        self,
        event: str,
        sentence: str,
        *,
        release: ReleaseRecord | None = None,
        version: str = "",
        slot: Slot | None = None,
        reason: str = "",
        evidence: str | None = None,
    ) -> None:
        """Write one line of history, and log it."""
        log.info("%s: %s", event, sentence)
        self.store.record(
            Event(
                at=self.stamp(),
                event=event,
                sentence=sentence,
                version=release.version if release else version,
                slot=slot.value if slot else "",
                boot_id=self.node.boot_id(),
                reason=reason,
                evidence=evidence,
            )
        )


def open_session(node: Node, reporter: Reporter | None = None, *, read_only: bool = False) -> Session:
    """Begin a session; with `read_only` corrupt documents are told and left where they lie."""
    store = Store(node.state, node.esp, node.now, read_only=read_only)
    return Session(node, store, reporter or LogReporter())
