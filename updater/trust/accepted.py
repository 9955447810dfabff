"""The accepted set: the last consistent metadata that this node has proven."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from updater.errors import EnvironmentFailure, InvalidDocument
from updater.files import Directory
from updater.records import Kept, decode_state, encode_state
from updater.schema import Name, Sha256Hex, UtcText

POINTER = "accepted.json"
SETS = "sets"
MAX_METADATA_BYTES = 4 << 20


def utc_text(moment: datetime) -> str:
    """Return a time in UTC as documents carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_time(text: str) -> datetime:
    """Return the time that a document's text stands for."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RoleState:
    """One role's metadata: its version and the time at which it expires."""

    name: str
    version: int
    expires: datetime


@dataclass(frozen=True, slots=True)
class EpochReset:
    """A root-signed reset of the security epoch's floor, to be followed once per `root_version`."""

    floor: int
    root_version: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a refresh proved, from where and when.

    `time_floor` is the time below which this node's clock is not believed; `mended` says in sentences which damage of
    our own memory was found and made good.
    """

    roles: tuple[RoleState, ...]
    mirror: str
    refreshed: datetime
    time_floor: datetime
    epoch_reset: EpochReset | None = None
    mended: tuple[str, ...] = ()

    def role(self, name: str) -> RoleState:
        """Return one role's state; raise KeyError."""
        for state in self.roles:
            if state.name == name:
                return state
        raise KeyError(name)

    @property
    def versions(self) -> dict[str, int]:
        """Return each role's version."""
        return {state.name: state.version for state in self.roles}

    @property
    def expires(self) -> datetime:
        """Return the time at which the first role expires."""
        return min(state.expires for state in self.roles)


class StoredRole(msgspec.Struct, frozen=True):
    """One metadata file of the stored set."""

    name: Name
    version: int
    expires: UtcText
    length_bytes: int
    sha256: Sha256Hex


class StoredSet(msgspec.Struct, frozen=True):
    """The pointer document, whose replacement is the switch from one set to the next."""

    number: int
    roles: list[StoredRole]
    mirror: str
    refreshed: UtcText
    reset_floor: int | None = None
    reset_root_version: int = 0
    format: Literal[1] = 1


class Damaged(Exception):
    """The stored set cannot be read as it was written; `root` is its root, when that one is intact."""

    def __init__(self, why: str, root: bytes | None = None) -> None:
        super().__init__(why)
        self.root = root


@dataclass(frozen=True, slots=True)
class Held:
    """A stored set, read whole and intact."""

    stored: StoredSet
    files: Mapping[str, bytes]

    def accepted(self, time_floor: datetime, mended: tuple[str, ...] = ()) -> Accepted:
        """Return it as a value."""
        stored = self.stored
        reset = None if stored.reset_floor is None else EpochReset(stored.reset_floor, stored.reset_root_version)
        return Accepted(
            tuple(RoleState(role.name, role.version, utc_time(role.expires)) for role in stored.roles),
            stored.mirror,
            utc_time(stored.refreshed),
            time_floor,
            reset,
            mended,
        )


def load(state: Directory) -> Held | None:
    """Return the stored set, None when there is none; raise Damaged when a byte of it is not as written."""
    while True:
        raw = _pointer(state)
        if raw is None:
            return None
        try:
            return _read_set(state, raw)
        except Damaged:
            # A refresh by another process may have switched, and removed this set while it was read.
            if _pointer(state) == raw:
                raise


def _pointer(state: Directory) -> bytes | None:
    try:
        return state.read(POINTER)
    except EnvironmentFailure as error:
        raise Damaged(f"{POINTER} is unreadable ({error.message})") from error


def _read_set(state: Directory, pointer: bytes) -> Held:
    try:
        stored = decode_state(pointer, StoredSet, POINTER).value
    except InvalidDocument as error:
        raise Damaged(f"{POINTER} is unreadable ({error.why})") from error
    files: dict[str, bytes] = {}
    faults: list[str] = []
    for role in stored.roles:
        name = f"{SETS}/{stored.number}/{role.name}.json"
        try:
            content = state.read(name, limit_bytes=MAX_METADATA_BYTES)
        except EnvironmentFailure as error:
            faults.append(error.message)
            continue
        if content is None:
            faults.append(f"{name} is missing")
        elif hashlib.sha256(content).hexdigest() != role.sha256:
            faults.append(f"{name} has {len(content)} bytes that are not the {role.length_bytes} accepted ones")
        else:
            files[role.name] = content
    if faults:
        raise Damaged("; ".join(faults), files.get("root"))
    return Held(stored, files)


def publish(state: Directory, held: Held, previous: Held | None) -> None:
    """Make `held` the accepted set: its files first, then the pointer, then away with older sets.

    Power may fail anywhere: a reader finds the old set whole or the new one whole.
    """
    if previous is None or held.stored.number != previous.stored.number:
        # A set of this number that a power cut left behind is not referred to by anything.
        state.remove(f"{SETS}/{held.stored.number}")
        for name, content in held.files.items():
            state.write_new(f"{SETS}/{held.stored.number}/{name}.json", [content])
    state.replace(POINTER, encode_state(Kept(held.stored)))
    for name in state.names(SETS):
        if name != str(held.stored.number):
            state.remove(f"{SETS}/{name}")
