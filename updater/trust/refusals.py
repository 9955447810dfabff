"""What a node says when metadata is refused, with stable reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from updater.errors import NetworkFailure, Untrusted, UpdaterError
from updater.trust.accepted import utc_text

_ASK = "use another mirror, and tell the publisher"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one mirror: what it served by path, what was accepted before, and the time of judgement."""

    mirror: str
    served: dict[str, bytes]
    cached: Mapping[str, bytes]
    reference: datetime

    @property
    def last(self) -> str:
        """Return the path that was served last: the one that was judged when something was found wrong."""
        return next(reversed(self.served), "")


def expired(mirror: str, role: str, version: int, expires: datetime, reference: datetime) -> Untrusted:
    """Return the refusal of metadata that is out of date."""
    return Untrusted(
        f"{role} version {version} from {mirror} expired at {utc_text(expires)}, and it is {utc_text(reference)} here:"
        " it was not renewed, or is frozen by this mirror",
        mend="ask the publisher to run `acl-release refresh`, try another mirror, and see whether this clock is right",
        reason="metadata-expired",
    )


def rolled_back(mirror: str, role: str, offered: int, known: int) -> Untrusted:
    """Return the refusal of metadata older than what was accepted before."""
    shown = f"{role} version {offered}" if offered else f"no {role}"
    return Untrusted(
        f"{mirror} offers {shown}, but this node has already accepted version {known}: it was rolled back",
        mend=_ASK,
        reason="metadata-rolled-back",
    )


def refusal(error: Exception, attempt: Attempt) -> UpdaterError:
    """Return what to raise for an error of ngclient's."""
    from tuf.api import exceptions

    mirror = attempt.mirror
    if isinstance(error, exceptions.ExpiredMetadataError):
        return _expired(attempt, str(error))
    if isinstance(error, exceptions.UnsignedMetadataError):
        return Untrusted(
            f"metadata from {mirror} lacks signatures by the keys that this node trusts: {error}",
            mend="it is forged, or of another publisher than the image's roots: " + _ASK,
            reason="metadata-unsigned",
        )
    if isinstance(error, exceptions.DownloadLengthMismatchError):
        return Untrusted(f"metadata is too large: {error}", mend=_ASK, reason="metadata-too-large")
    if isinstance(error, exceptions.DownloadHTTPError):
        return NetworkFailure(
            f"{error}", mend="see whether its address is right and its content complete", reason="not-found"
        )
    if isinstance(error, exceptions.BadVersionNumberError):
        step = _step_back(attempt)
        if step is not None:
            return rolled_back(mirror, *step)
    if isinstance(error, exceptions.BadVersionNumberError | exceptions.LengthOrHashMismatchError):
        return Untrusted(
            f"the metadata files of {mirror} do not belong together: {attempt.last} is not what the others name",
            mend="try again when its publisher or its synchronization has finished; otherwise " + _ASK,
            reason="metadata-mixed",
        )
    if isinstance(error, exceptions.RepositoryError) and "missing info" in str(error):
        return Untrusted(
            f"{mirror} leaves out metadata that was there before: {error}", mend=_ASK, reason="metadata-mixed"
        )
    if isinstance(error, exceptions.DownloadError):
        return NetworkFailure(f"{mirror}: {error}", mend="see the network and the server", reason="unreachable")
    return Untrusted(
        f"{attempt.last or 'metadata'} from {mirror} cannot be read: {str(error)[:300] or type(error).__name__}",
        mend=_ASK,
        reason="metadata-invalid",
    )


def _expired(attempt: Attempt, said: str) -> Untrusted:
    """Find version and expiry in the bytes: their signatures had been checked before their expiry was."""
    role = next((name for name in ("root", "timestamp", "snapshot") if name in said), "")
    if not role:
        role = said.removeprefix("New ").removesuffix(" is expired")
    signed = _newest(attempt, role)
    try:
        expires = datetime.fromisoformat(str(signed["expires"]))
        return expired(attempt.mirror, role, int(signed["version"]), expires, attempt.reference)
    except (KeyError, ValueError, TypeError):
        return Untrusted(
            f"{role} metadata from {attempt.mirror} has expired: it was not renewed, or is frozen by this mirror",
            mend="ask the publisher to run `acl-release refresh`",
            reason="metadata-expired",
        )


def _newest(attempt: Attempt, role: str) -> dict[str, Any]:
    """Return the signed part that was judged: what was served last of a role, or else what was cached."""
    served = [raw for path, raw in attempt.served.items() if path.endswith((f"/{role}.json", f".{role}.json"))]
    return _signed(served[-1] if served else attempt.cached.get(role, b""))


def _signed(raw: bytes) -> dict[str, Any]:
    try:
        signed = json.loads(raw)["signed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return signed if isinstance(signed, dict) else {}


def _step_back(attempt: Attempt) -> tuple[str, int, int] | None:
    """Return (role, offered, known) when a version number went down against the cache; None when files are mixed."""
    offered, known = _newest(attempt, "timestamp"), _signed(attempt.cached.get("timestamp", b""))
    snapshot, old = _newest(attempt, "snapshot"), _signed(attempt.cached.get("snapshot", b""))
    pairs = [("timestamp", offered.get("version"), known.get("version"))]
    for new_meta, old_meta in ((offered, known), (snapshot, old)):
        for name, info in _meta(old_meta).items():
            if name in _meta(new_meta):
                pairs.append((name.removesuffix(".json"), _version(_meta(new_meta)[name]), _version(info)))
    for role, new_version, old_version in pairs:
        if isinstance(new_version, int) and isinstance(old_version, int) and new_version < old_version:
            return role, new_version, old_version
    return None


def _meta(signed: dict[str, Any]) -> dict[str, Any]:
    meta = signed.get("meta")
    return meta if isinstance(meta, dict) else {}


def _version(info: Any) -> int | None:
    version = info.get("version") if isinstance(info, dict) else None
    return version if isinstance(version, int) else None
