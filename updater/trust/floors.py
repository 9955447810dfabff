"""The lowest versions and the earliest time that this node still believes, whatever becomes of its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from updater.errors import EnvironmentFailure, InvalidDocument
from updater.files import Directory
from updater.records import Kept, decode_state, encode_state
from updater.schema import Name, Sha256Hex, UtcText, VersionText
from updater.trust.accepted import Damaged, utc_text, utc_time

if TYPE_CHECKING:
    from tuf.api.metadata import Root

FILE = "floors.json"
MAX_SEEN = 2000


class RoleFloor(msgspec.Struct, frozen=True):
    """The highest version of a role that was accepted, and the keys that had signed it."""

    name: Name
    version: int
    signers: list[str] = []


class Seen(msgspec.Struct, frozen=True):
    """The manifest that a version had when this node first saw it: versions are immutable."""

    version: VersionText
    sha256: Sha256Hex


class Floors(msgspec.Struct, frozen=True):
    """Version floors per role, the time floor, and the manifests seen."""

    time: UtcText
    roles: list[RoleFloor] = []
    seen: list[Seen] = []
    format: Literal[1] = 1

    def version(self, role: str) -> int:
        """Return a role's floor, 0 when it has none."""
        return next((floor.version for floor in self.roles if floor.name == role), 0)

    def seen_sha256(self, version: str) -> str | None:
        """Return the digest of the manifest that this version had."""
        return next((seen.sha256 for seen in self.seen if seen.version == version), None)

    def breaches(self, versions: Mapping[str, int], root: Root) -> list[tuple[str, int, int]]:
        """Return (role, offered, floor) for each role that is offered below its floor.

        A floor of the timestamp or the snapshot no longer binds once the root has revoked the keys that signed it:
        otherwise the thief of such a key could push a version number so high that no later one is ever accepted (TUF
        specification 5.3.11). The versions of targets roles were told by the snapshot, and fall with it.
        """
        found = []
        for floor in self.roles:
            offered = versions.get(floor.name, 0)
            teller = floor.name if floor.name in ("root", "timestamp") else "snapshot"
            if teller != "root" and self._revoked(teller, root):
                continue
            # A delegated role may be given up by the publisher; targets, snapshot, timestamp and root may not.
            if offered < floor.version and (offered or floor.name in _TOP_LEVEL):
                found.append((floor.name, offered, floor.version))
        return found

    def _revoked(self, role: str, root: Root) -> bool:
        signers = next((floor.signers for floor in self.roles if floor.name == role), [])
        authorized = root.roles[role]
        return bool(signers) and len(set(signers) & set(authorized.keyids)) < authorized.threshold

    def with_root(self, version: int) -> Floors:
        """Return floors with the root's raised to `version`."""
        others = [floor for floor in self.roles if floor.name != "root"]
        root = RoleFloor("root", max(version, self.version("root")))
        return msgspec.structs.replace(self, roles=sorted([*others, root], key=lambda floor: floor.name))

    def raised(
        self,
        versions: Mapping[str, int],
        signers: Mapping[str, Sequence[str]],
        manifests: Mapping[str, str],
        moment: datetime,
    ) -> Floors:
        """Return floors at what was just accepted; a manifest seen before keeps its first digest."""
        seen = {item.version: item.sha256 for item in self.seen}
        # Versions that are published still come last, so that the limit drops the oldest gone ones.
        kept = {version: digest for version, digest in seen.items() if version not in manifests}
        kept.update({version: seen.get(version, digest) for version, digest in manifests.items()})
        return Floors(
            time=utc_text(max(moment, utc_time(self.time))),
            roles=[RoleFloor(name, version, list(signers.get(name, []))) for name, version in sorted(versions.items())],
            seen=[Seen(version, digest) for version, digest in kept.items()][-MAX_SEEN:],
        )


_TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")


def load(state: Directory) -> Kept[Floors] | None:
    """Return the floors, None when none were ever written; raise Damaged."""
    try:
        raw = state.read(FILE)
        return None if raw is None else decode_state(raw, Floors, FILE)
    except (InvalidDocument, EnvironmentFailure) as error:
        raise Damaged(
            f"{FILE} is unreadable ({error.why if isinstance(error, InvalidDocument) else error.message})"
        ) from error


def save(state: Directory, floors: Kept[Floors]) -> None:
    """Write the floors, durable on return."""
    state.replace(FILE, encode_state(floors))
