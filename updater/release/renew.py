"""Renewal of metadata before it expires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from updater.errors import Refused
from updater.release.keys import ONLINE_ROLES, ROLES
from updater.release.repository import Repository

# A role is near its end when less than this part of its life is left.
_NEAR = 0.25


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a role's metadata expires; `state` is `good`, `near` or `expired`."""

    role: str
    version: int
    expires: datetime
    state: str


def expiries(repository: Repository) -> list[Expiry]:
    """Return each role's expiry, as published."""
    signed = {
        "root": repository.root.signed,
        **{name: role.signed for name, role in repository.targets.items()},
        "snapshot": repository.snapshot.signed,
        "timestamp": repository.timestamp.signed,
    }
    now = repository.now()
    found = []
    for role in ROLES:
        left = signed[role].expires - now
        near = left < repository.settings.lifetime(role) * _NEAR
        state = "expired" if left.total_seconds() <= 0 else "near" if near else "good"
        found.append(Expiry(role, signed[role].version, signed[role].expires, state))
    return found


def refresh(repository: Repository, roles: Sequence[str] = ()) -> list[str]:
    """Sign the timestamp and the snapshot anew, and `roles` too; return the roles signed.

    Without `roles` only the online keys are needed. Raises Refused when a needed key is away.
    """
    for role in roles:
        if role not in ROLES:
            raise Refused(f"there is no role {role}", mend=f"name one of {', '.join(ROLES)}", reason="role-unknown")
    renewed = []
    if "root" in roles:
        repository.publish_root()
        renewed.append("root")
    repository.change(*(set(roles) - {"root"}), *ONLINE_ROLES)
    return [*renewed, *repository.publish()]
