"""What a node's state folder remembers of its trust, with its damage found and mended."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from updater.errors import Untrusted
from updater.files import Directory
from updater.records import Kept
from updater.trust import accepted as sets
from updater.trust import floors as floor_file
from updater.trust import roots, workflow
from updater.trust.accepted import Damaged, Held, StoredRole, StoredSet, utc_text, utc_time
from updater.trust.floors import Floors
from updater.trust.workflow import Proven

log = logging.getLogger(__name__)

ROOT_FILE = "root.json"
_SET_GONE = "no accepted metadata stands beside the version floors"


@dataclass(frozen=True, slots=True)
class Memory:
    """The trusted root, the version floors, the accepted set, and in sentences what of it was damaged."""

    root: bytes
    floors: Kept[Floors] | None = None
    held: Held | None = None
    mended: list[str] = field(default_factory=list)


def remember(state: Directory, bootstrap_roots: Sequence[Path]) -> Memory:
    """Read the state folder; what is damaged is logged as an error, and left to be mended from the rest.

    The accepted set is mended by fetching anew above the version floors, the floors from the accepted set. Raises
    Untrusted (`metadata-corrupt-cache`) when both are gone: then nothing here can tell an old version from a new one.
    """
    mended: list[str] = []
    floors: Kept[Floors] | None = None
    held: Held | None = None
    root: bytes | None = None
    floor_damage = set_damage = ""
    try:
        floors = floor_file.load(state)
    except Damaged as damage:
        floor_damage = str(damage)
    try:
        held = sets.load(state)
        root = held.files["root"] if held else None
    except Damaged as damage:
        set_damage, root = str(damage), damage.root
    if floors is None and held is None and (floor_damage or set_damage):
        raise corrupt("; ".join(text for text in (set_damage, floor_damage) if text))
    if floors is None and held is not None:
        mended.append(f"{floor_damage or 'the version floors are gone'}: taken anew from the accepted metadata")
        floors = Kept(_floors_of(held))
    elif set_damage or (floors is not None and held is None and floors.value.version("timestamp")):
        mended.append(f"{set_damage or _SET_GONE}: fetched anew, above the version floors")
    for sentence in mended:
        log.error("trust: damaged memory: %s", sentence)
    return Memory(newest_root(state, root, bootstrap_roots), floors, held, mended)


def newest_root(state: Directory, cached: bytes | None, bootstrap_roots: Sequence[Path]) -> bytes:
    """Return the newest root that is trusted by this node's own memory, or else the image's; raise Untrusted."""
    best: bytes | None = None
    best_version = 0
    for raw, source in ((state.read(ROOT_FILE), ROOT_FILE), (cached, "the accepted root")):
        if raw is None:
            continue
        try:
            version = roots.parse_root(raw, source).signed.version
        except Untrusted as error:
            log.error("trust: damaged memory: %s", error.message)
            continue
        if version > best_version:
            best, best_version = raw, version
    return best if best is not None else roots.first_root(bootstrap_roots)


def held_set(state: Directory) -> Held | None:
    """Return the accepted set, None when none ever was; raise Untrusted (`metadata-corrupt-cache`)."""
    try:
        held = sets.load(state)
    except Damaged as damage:
        raise corrupt(str(damage)) from damage
    if held is None:
        floors = held_floors(state)
        if floors is not None and floors.version("timestamp"):
            raise corrupt(_SET_GONE)
    return held


def held_floors(state: Directory) -> Floors | None:
    """Return the floors, None when there are none; raise Untrusted (`metadata-corrupt-cache`)."""
    try:
        floors = floor_file.load(state)
    except Damaged as damage:
        raise corrupt(str(damage)) from damage
    return None if floors is None else floors.value


def to_hold(proven: Proven, mirror: str, moment: datetime, previous: Held | None) -> Held:
    """Return what was just proven as the set to store; it keeps its number when no byte has changed."""
    same = previous is not None and dict(previous.files) == proven.files
    number = 1 if previous is None else previous.stored.number + (0 if same else 1)
    reset = roots.epoch_reset(proven.root.signed)
    expiries = proven.expiries
    versions = proven.versions
    return Held(
        StoredSet(
            number=number,
            roles=[
                StoredRole(name, versions[name], utc_text(expiries[name]), len(raw), hashlib.sha256(raw).hexdigest())
                for name, raw in proven.files.items()
            ],
            mirror=mirror,
            refreshed=utc_text(moment),
            reset_floor=reset.floor if reset else None,
            reset_root_version=reset.root_version if reset else 0,
        ),
        proven.files,
    )


def _floors_of(held: Held) -> Floors:
    moment = utc_time(held.stored.refreshed)
    proven = workflow.replay(held.files, moment)
    return Floors(time=held.stored.refreshed).raised(proven.versions, proven.signers, proven.manifests(), moment)


def corrupt(why: str) -> Untrusted:
    """Return the refusal of our own memory."""
    return Untrusted(
        f"the metadata that this node had accepted is damaged: {why}",
        mend="see dmesg for errors of the state partition's disk; `acl-updater check` mends it where the version floors"
        " are intact, and otherwise remove the trust folder to begin again with the image's roots",
        reason="metadata-corrupt-cache",
    )
