"""The node's documents on the state partition, with the ledger's second copy on the ESP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from updater.errors import EnvironmentFailure, InvalidDocument
from updater.files import Directory
from updater.records import Event, Journal, Kept, Ledger, Policy, decode_state, encode_state

log = logging.getLogger(__name__)

T = TypeVar("T")

HISTORY_LINES = 500
# Two files that take turns: a rename on vfat may be cut in halves, and the other copy then still counts.
ESP_LEDGERS = ("EFI/acl/ledger-0.json", "EFI/acl/ledger-1.json")
FACTORY_LEDGER = "ledger.json"


def utc_text(moment: datetime) -> str:
    """Return a time in UTC as documents carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_time(text: str) -> datetime:
    """Return the time that a document's text stands for."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


class Store:
    """Read and write the journal, the ledger, the operator's policy and the history.

    A corrupt document is set aside under another name, told in `set_aside`, and counts as absent. Writes are durable
    on return and raise EnvironmentFailure.
    """

    def __init__(
        self, state: Directory, esp: Directory, now: Callable[[], datetime], *, read_only: bool = False
    ) -> None:
        """Work on a state folder and an ESP; `read_only` leaves corrupt documents where they lie."""
        self._read_only = read_only
        self._state = state
        self._esp = esp
        self._now = now
        self.set_aside: list[str] = []
        self._raw: dict[str, dict[str, object]] = {}

    def journal(self) -> Journal:
        """Return the journal; an absent or corrupt one is idle."""
        return self._load("journal.json", Journal) or Journal()

    def write_journal(self, journal: Journal) -> None:
        """Write the journal."""
        self._save("journal.json", journal)

    def policy(self) -> Policy:
        """Return the operator's policy; an absent one sets nothing."""
        return self._load("policy.json", Policy) or Policy()

    def write_policy(self, policy: Policy) -> None:
        """Write the operator's policy."""
        self._save("policy.json", policy)

    def ledger(self) -> Ledger | None:
        """Return the copy of the ledger with the highest serial, or None when no copy can be read."""
        copies = [self._load(FACTORY_LEDGER, Ledger)]
        copies += [self._load_from(self._esp, name, Ledger) for name in ESP_LEDGERS]
        found = [copy for copy in copies if copy is not None]
        return max(found, key=lambda copy: copy.serial, default=None)

    def write_ledger(self, ledger: Ledger) -> Ledger:
        """Write both copies under the next serial, the ESP's first; return what was written.

        One place that cannot be written is told in the log; EnvironmentFailure when neither can.
        """
        known = self.ledger()
        serial = max(ledger.serial, known.serial if known else 0) + 1
        written = msgspec.structs.replace(ledger, serial=serial)
        content = encode_state(Kept(written, self._raw.get(FACTORY_LEDGER)))
        failures: list[EnvironmentFailure] = []
        try:
            self._esp.write_new(ESP_LEDGERS[serial % 2], [content])
        except EnvironmentFailure as error:
            failures.append(error)
        try:
            self._state.replace(FACTORY_LEDGER, content)
        except EnvironmentFailure as error:
            failures.append(error)
        if len(failures) == 2:
            raise failures[0]
        for failure in failures:
            log.error("one copy of the ledger could not be written: %s", failure)
        return written

    def history(self) -> list[Event]:
        """Return the events on record, oldest first; unreadable lines are left out."""
        raw = self._state.read("history.jsonl", limit_bytes=8 << 20) or b""
        events = []
        for line in raw.splitlines():
            try:
                events.append(msgspec.json.decode(line, type=Event))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        return events

    def record(self, event: Event) -> None:
        """Append an event, dropping the oldest beyond 500; a full disk is told in the log, never fatal."""
        try:
            lines = (self._state.read("history.jsonl", limit_bytes=8 << 20) or b"").splitlines()
            lines = [*lines, msgspec.json.encode(event)][-HISTORY_LINES:]
            self._state.replace("history.jsonl", b"\n".join(lines) + b"\n")
        except EnvironmentFailure as error:
            log.error("the history could not be written: %s", error)

    def _load(self, name: str, kind: type[T]) -> T | None:
        return self._load_from(self._state, name, kind)

    def _load_from(self, place: Directory, name: str, kind: type[T]) -> T | None:
        try:
            raw = place.read(name)
        except EnvironmentFailure as error:
            log.error("cannot read %s: %s", name, error)
            return None
        if raw is None:
            return None
        try:
            kept = decode_state(raw, kind, name)
        except InvalidDocument as error:
            self._put_aside(place, name, raw, error)
            return None
        if place is self._state:
            self._raw[name] = kept.raw
        return kept.value

    def _save(self, name: str, value: object) -> None:
        self._state.replace(name, encode_state(Kept(value, self._raw.get(name))))

    def _put_aside(self, place: Directory, name: str, raw: bytes, error: InvalidDocument) -> None:
        if self._read_only:
            self.set_aside.append(str(error))
            return
        stamp = self._now().strftime("%Y%m%d%H%M%S")
        self.set_aside.append(f"{error} (set aside as {name}.corrupt-{stamp})")
        log.error("%s", self.set_aside[-1])
        try:
            if place is self._state:
                place.write_new(f"{name}.corrupt-{stamp}", [raw])
                for stale in [other for other in place.names("") if other.startswith(f"{name}.corrupt-")][:-3]:
                    place.remove(stale)
            place.remove(name)
        except EnvironmentFailure as failure:
            log.error("the corrupt %s could not be set aside: %s", name, failure)
