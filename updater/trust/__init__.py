"""The client's side of trust: which metadata, channels and manifests this node believes."""

from __future__ import annotations

from updater.trust.accepted import Accepted, EpochReset, RoleState
from updater.trust.client import Trust, TrustStatus

__all__ = ["Accepted", "EpochReset", "RoleState", "Trust", "TrustStatus"]
