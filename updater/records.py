"""What a node remembers, as documents that older and newer releases of the updater can both read.

State outlives a rollback, so the older code reads what the newer one wrote: unknown fields are kept, not refused.
Every document travels in an envelope with a checksum; one that does not match counts as corrupt.
"""

from __future__ import annotations

import hashlib
from typing import Any, Generic, Literal, TypeVar

import msgspec

from updater.errors import InvalidDocument
from updater.manifest import Manifest, Root
from updater.schema import MAX_DOCUMENT_BYTES, Name, Sha256Hex, UtcText, VersionText, convert
from updater.slots import Slot

T = TypeVar("T")

UKI_NAME = "uki.efi"
MAX_QUARANTINE = 100
MAX_SEEN = 200


class RootRecord(msgspec.Struct, frozen=True):
    """The proof of a root image: see `updater.manifest.Root`."""

    length_bytes: int
    tree_length_bytes: int
    root_hash: Sha256Hex
    salt: str
    uuid: str

    def as_root(self) -> Root:
        """Return the manifest's own type, checked again; raise InvalidDocument."""
        return convert(msgspec.to_builtins(self), Root, "ledger")


class FileRecord(msgspec.Struct, frozen=True):
    """A file of the boot artifact: `uki.efi` or an addon; `slot` is the only one that it is placed in."""

    name: str
    length_bytes: int
    sha256: Sha256Hex
    slot: Slot | None = None


class ReleaseRecord(msgspec.Struct, frozen=True):
    """A release, down to what is needed to prove it again without the repository."""

    version: VersionText
    manifest_sha256: Sha256Hex
    security_epoch: int
    built: UtcText
    root: RootRecord
    files: list[FileRecord]

    def files_of(self, slot: Slot) -> list[FileRecord]:
        """Return the boot files that `slot` needs, in the order in which they are placed: addons before the UKI."""
        return [file for file in self.files if file.slot in (None, slot)]


def release_record(manifest: Manifest, raw: bytes) -> ReleaseRecord:
    """Return what to remember of a manifest whose proven bytes are `raw`."""
    root = manifest.root
    return ReleaseRecord(
        version=manifest.version,
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
        security_epoch=manifest.security_epoch,
        built=manifest.built,
        root=RootRecord(root.length_bytes, root.tree_length_bytes, root.root_hash, root.salt, root.uuid),
        files=[
            *(FileRecord(addon.name, addon.length_bytes, addon.sha256, addon.slot) for addon in manifest.addons),
            FileRecord(UKI_NAME, manifest.uki.length_bytes, manifest.uki.sha256),
        ],
    )


class Proven(msgspec.Struct, frozen=True):
    """A release that a slot holds and that may be booted without guard.

    `how`: shipped as the factory image, committed here after a trial, or adopted when the records were lost while it
    ran from a good boot entry.
    """

    slot: Slot
    release: ReleaseRecord
    how: Literal["factory", "committed", "adopted"]
    at: UtcText


class Quarantined(msgspec.Struct, frozen=True):
    """A release that failed here, or whose try ended without evidence (then `until` says when it may be tried again).

    `stage`: loader, kernel, initrd, userspace, health, artifact, operator or unknown. `cause`: panic, watchdog,
    deadline, check, damaged-slot, damaged-uki, emergency, operator or none.
    """

    version: VersionText
    root_hash: Sha256Hex
    stage: str
    cause: str
    sentence: str
    at: UtcText
    until: UtcText | None = None
    rounds: int = 1
    checks: list[str] = []
    evidence: str | None = None


class Seen(msgspec.Struct, frozen=True):
    """The manifest that this node once accepted for a version: versions are immutable."""

    version: VersionText
    manifest_sha256: Sha256Hex


class Armed(msgspec.Struct, frozen=True):
    """The release on trial, also told to the ESP, where it is found when the state partition is not."""

    slot: Slot
    release: ReleaseRecord


class Ledger(msgspec.Struct, frozen=True):
    """What must never be forgotten; kept twice, on the state partition and on the ESP.

    `floor` is the lowest security epoch that may still be installed; `floor_root_version` the version of the trusted
    root whose reset of the floor was last followed. The copy with the higher `serial` counts.
    """

    format: int = 1
    serial: int = 0
    floor: int = 0
    floor_root_version: int = 0
    proven: list[Proven] = []
    quarantine: list[Quarantined] = []
    armed: Armed | None = None
    seen: list[Seen] = []

    def proven_in(self, slot: Slot) -> Proven | None:
        """Return the proven release that `slot` holds."""
        return next((item for item in self.proven if item.slot is slot), None)

    def without_proven(self, slot: Slot) -> Ledger:
        """Return a ledger in which `slot` holds nothing proven."""
        return msgspec.structs.replace(self, proven=[item for item in self.proven if item.slot is not slot])

    def with_proven(self, item: Proven) -> Ledger:
        """Return a ledger in which the item's slot holds it."""
        cleared = self.without_proven(item.slot)
        return msgspec.structs.replace(cleared, proven=sorted([*cleared.proven, item], key=lambda p: p.slot.value))

    def quarantined(self, root_hash: str) -> Quarantined | None:
        """Return the quarantine record of an image, known by its root hash."""
        return next((item for item in self.quarantine if item.root_hash == root_hash), None)

    def with_quarantined(self, item: Quarantined) -> Ledger:
        """Return a ledger with the item in place of an earlier one for the same image; the oldest are dropped."""
        others = [other for other in self.quarantine if other.root_hash != item.root_hash]
        return msgspec.structs.replace(self, quarantine=[*others, item][-MAX_QUARANTINE:])

    def without_quarantined(self, root_hash: str) -> Ledger:
        """Return a ledger in which the image is not quarantined."""
        return msgspec.structs.replace(
            self, quarantine=[item for item in self.quarantine if item.root_hash != root_hash]
        )

    def with_seen(self, release: ReleaseRecord) -> Ledger:
        """Return a ledger that remembers which manifest was accepted for this version."""
        others = [item for item in self.seen if item.version != release.version]
        return msgspec.structs.replace(self, seen=[*others, Seen(release.version, release.manifest_sha256)][-MAX_SEEN:])


Phase = Literal["idle", "staging", "staged", "armed", "committing", "rolling-back", "reverting"]


class VerdictRecord(msgspec.Struct, frozen=True):
    """The verdict on a trial boot, written before it is acted on."""

    decision: Literal["commit", "roll-back"]
    reason: str
    sentence: str
    at: UtcText
    boot_id: str
    checks: list[str] = []
    stage: str = "health"
    cause: str = "check"
    evidence: str | None = None


class BarredWay(msgspec.Struct, frozen=True):
    """A way of fetching that failed for good with this release on this node; `file` is `image` or a boot file's name.

    A network error never bars: what failed here fails again however often it is tried.
    """

    way: str
    file: str
    reason: str
    sentence: str
    at: UtcText


class Brought(msgspec.Struct, frozen=True):
    """What the run that staged a release took to do so.

    `image` are the ways that were tried, the last of which did it, and `files` the way of each boot file. What was
    fetched counts all of that run, metadata included; what was written and kept are the slot's bytes. `read_back` says
    how the slot was read from the medium.
    """

    image: list[str]
    files: dict[str, str]
    fetched_bytes: int
    requests: int
    retries: int
    written_bytes: int
    kept_bytes: int
    read_back: str


class Update(msgspec.Struct, frozen=True):
    """One update from its first byte to its verdict; `barred` are ways of fetching that need not be tried again."""

    id: str
    release: ReleaseRecord
    slot: Slot
    from_version: str
    from_slot: Slot
    started: UtcText
    deliberate: bool = False
    staged: UtcText | None = None
    armed: UtcText | None = None
    armed_boot_id: str | None = None
    tries: int = 3
    trial_boots: list[str] = []
    baseline: dict[str, Any] | None = None
    verdict: VerdictRecord | None = None
    barred: list[BarredWay] = []
    brought: Brought | None = None


class Aftermath(msgspec.Struct, frozen=True):
    """A trial that was rolled back, until the old release has run the checks that condemned it."""

    version: VersionText
    root_hash: Sha256Hex
    checks: list[str]


class Journal(msgspec.Struct, frozen=True):
    """The memory of intent: which update is under way, and how far it had got."""

    format: int = 1
    phase: Phase = "idle"
    update: Update | None = None
    aftermath: Aftermath | None = None
    healthy_boot_id: str | None = None


class Policy(msgspec.Struct, frozen=True):
    """What the operator has set by command: a channel, a pin, a hold."""

    format: int = 1
    channel: Name | None = None
    pin: VersionText | None = None
    held: bool = False
    held_until: UtcText | None = None
    hold_why: str = ""


class Event(msgspec.Struct, frozen=True):
    """One line of the history."""

    at: UtcText
    event: str
    sentence: str
    version: str = ""
    slot: str = ""
    boot_id: str = ""
    reason: str = ""
    evidence: str | None = None


class Kept(Generic[T]):
    """A value with the fields of its document that this release does not know."""

    __slots__ = ("raw", "value")

    def __init__(self, value: T, raw: dict[str, Any] | None = None) -> None:
        self.value = value
        self.raw: dict[str, Any] = raw or {}


def decode_state(raw: bytes, kind: type[T], source: str) -> Kept[T]:
    """Open an envelope and parse its body; raise InvalidDocument when it is corrupt."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise InvalidDocument(source, "", "it is too large to be ours", "it is set aside and rebuilt")
    try:
        envelope = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidDocument(source, "", f"not JSON: {error}", "it is set aside and rebuilt") from error
    if not isinstance(envelope, dict) or not isinstance(envelope.get("body"), dict):
        raise InvalidDocument(source, "body", "the envelope has no body", "it is set aside and rebuilt")
    if envelope.get("sha256") != _checksum(envelope["body"]):
        raise InvalidDocument(source, "sha256", "the checksum does not match", "it is set aside and rebuilt")
    return Kept(convert(envelope["body"], kind, source), envelope["body"])


def encode_state(kept: Kept[Any]) -> bytes:
    """Return the envelope of a value, with the unknown fields that its document had."""
    body = _keeping(kept.raw, msgspec.to_builtins(kept.value))
    envelope = {"sha256": _checksum(body), "body": body}
    return msgspec.json.format(msgspec.json.encode(envelope, order="sorted"), indent=1) + b"\n"


def _checksum(body: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()


def _keeping(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _keeping(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        before = {_identity(item): item for item in old}
        before.pop(None, None)
        return [_keeping(before.get(_identity(item)), item) for item in new]
    return new


def _identity(item: Any) -> tuple[Any, ...] | None:
    """Tell what makes a list's item the same item in an older and a newer document."""
    if not isinstance(item, dict):
        return None
    release = item.get("release")
    image = release.get("manifest_sha256") if isinstance(release, dict) else None
    identity = (*(item.get(key) for key in ("slot", "version", "root_hash", "name")), image)
    return identity if any(isinstance(part, str) for part in identity) else None


def factory_ledger(manifest: Manifest, raw: bytes, slot: Slot, at: str) -> bytes:
    """Return the ledger that an image maker writes for the release shipped in `slot`.

    `raw` are the manifest's bytes as published, `at` the time as a UTC text. It belongs on the state partition as
    `lib/acl-updater/ledger.json` and on the ESP as `EFI/acl/ledger-1.json`.
    """
    release = release_record(manifest, raw)
    ledger = Ledger(serial=1, floor=manifest.security_epoch).with_proven(Proven(slot, release, "factory", at))
    return encode_state(Kept(ledger.with_seen(release)))
