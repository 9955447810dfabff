"""Replacement of keys, without an instant at which nodes would refuse the repository."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from updater.errors import Refused
from updater.release.keys import NAME_FIELD, KeyRing, role_of
from updater.release.repository import DELEGATIONS, Repository
from updater.trust.roots import RESET_FIELD


@dataclass(frozen=True, slots=True)
class Rotated:
    """A key that took another's place; `root_version` is the root that nodes follow to learn of it."""

    name: str
    old_keyid: str
    new_keyid: str
    root_version: int


def rotate(repository: Repository, name: str, scheme: str, passphrase: bytes | None) -> Rotated:
    """Replace one key by a new one made as `NAME.next`, sign what the role signs anew, and retire the old key.

    Interrupted, it goes on where it stopped when it is run again. Raises Refused before anything is published when a
    needed key is away.
    """
    ring, role = repository.ring, role_of(name)
    waiting, day = f"{name}.next", repository.now().strftime("%Y%m%dT%H%M%SZ")
    named = [
        keyid for keyid, key in repository.keys_of(role)[1].items() if key.unrecognized_fields.get(NAME_FIELD) == name
    ]
    moving = ring.half_moved(name, waiting)
    if moving is not None and named == [moving.keyid]:
        ring.retire(name, waiting, day)
        return Rotated(name, "", moving.keyid, repository.root.signed.version)
    old = _old_keyid(ring, role, name, named)
    new = ring.public(waiting) if waiting in ring.names() else ring.create(waiting, scheme, passphrase)
    if role == "root":
        _replace_root_key(repository, old, waiting)
    elif role in DELEGATIONS:
        _replace_delegated_key(repository, role, old, waiting)
    else:
        _replace_top_key(repository, role, old, waiting)
    ring.retire(name, waiting, day)
    return Rotated(name, old, new.keyid, repository.root.signed.version)


def reset_epoch(repository: Repository, floor: int) -> int:
    """Let nodes set the floor of security epochs to `floor`, once; return the root version that says so."""
    version = repository.root.signed.version + 1
    repository.root.signed.unrecognized_fields[RESET_FIELD] = {"floor": floor, "root_version": version}
    repository.publish_root()
    return version


def _old_keyid(ring: KeyRing, role: str, name: str, named: list[str]) -> str:
    """Return the id of a key by its name: from its public half, or from the metadata where that is lost as well."""
    if name in ring.names_for(role):
        return ring.public(name).keyid
    waiting = f"{name}.next"
    new = ring.public(waiting).keyid if waiting in ring.names() else ""
    lost = [keyid for keyid in named if keyid != new]
    if not lost:
        known = ", ".join(ring.names_for(role)) or role
        raise Refused(f"there is no key {name}", mend=f"name a key, such as {known}", reason="key-missing")
    return lost[0]


def _replace_root_key(repository: Repository, old: str, waiting: str) -> None:
    root = repository.root.signed
    if old not in root.roles["root"].keyids:
        return
    previous = copy.deepcopy(root)
    root.revoke_key(old, "root")
    root.add_key(repository.ring.public(waiting), "root")
    repository.publish_root(also_signed_by=previous)


def _replace_delegated_key(repository: Repository, role: str, old: str, waiting: str) -> None:
    """Change the delegation and sign the role anew in one revision, which nodes see at once."""
    targets = repository.targets["targets"].signed
    if old not in targets.get_delegated_role(role).keyids:
        return
    targets.revoke_key(old, role)
    targets.add_key(repository.ring.public(waiting), role)
    repository.change("targets", role)
    repository.publish()


def _replace_top_key(repository: Repository, role: str, old: str, waiting: str) -> None:
    """Add the new key, sign the role by both, take the old key away.

    Nodes see a new root before they see what its keys have signed: the old key stays valid in between.
    """
    root = repository.root.signed
    public = repository.ring.public(waiting)
    if public.keyid not in root.roles[role].keyids:
        root.add_key(public, role)
        repository.publish_root()
    if old not in root.roles[role].keyids:
        return
    repository.change(role)
    repository.publish()
    root.revoke_key(old, role)
    repository.publish_root()
    # Signatures of keys that are no longer valid are dropped.
    repository.change(role)
    repository.publish()
