"""Targets by digest: signed documents from the node's cache or from a mirror."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.fetch import Fetcher
from updater.files import Directory
from updater.schema import MAX_DOCUMENT_BYTES
from updater.trust.workflow import Proven

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

log = logging.getLogger(__name__)

FOLDER = "targets"


def read_target(state: Directory, proven: Proven, path: str, fetchers: Sequence[Fetcher]) -> bytes:
    """Return a target's proven bytes from the cache or from the first mirror that has the right ones."""
    info = proven.find(path)
    if info is None:
        raise Untrusted(
            f"{path} is not in the repository (targets of snapshot {proven.snapshot.signed.version})",
            mend="see `acl-release status` for what is published, and this node's channel or pin",
            reason="target-missing",
        )
    if info.length > MAX_DOCUMENT_BYTES:
        raise Untrusted(
            f"{path} has {info.length} bytes, more than {MAX_DOCUMENT_BYTES}",
            mend="ask the publisher",
            reason="target-too-large",
        )
    cached = state.read(f"{FOLDER}/{info.hashes['sha256']}")
    if cached is not None and _matches(info, cached):
        return cached
    failures: list[Untrusted | NetworkFailure] = []
    for fetcher in fetchers:
        folder, _, name = path.rpartition("/")
        try:
            raw = fetcher.read(f"targets/{folder}/{info.hashes['sha256']}.{name}", info.length)
        except (Untrusted, NetworkFailure) as error:
            failures.append(error)
            continue
        if _matches(info, raw):
            _keep(state, info.hashes["sha256"], raw)
            return raw
        failures.append(
            Untrusted(
                f"{fetcher.mirrors[0]} serves {path} with bytes that are not the signed ones",
                mend="use another mirror, and tell whoever runs this one",
                reason="target-mismatch",
            )
        )
    failures.sort(key=lambda failure: isinstance(failure, NetworkFailure))
    raise failures[0]


def _keep(state: Directory, digest: str, raw: bytes) -> None:
    """Cache a proven document, where the state folder can be written: a mere look at a node needs no such right."""
    try:
        state.write_new(f"{FOLDER}/{digest}", [raw])
    except EnvironmentFailure as error:
        log.info("trust: not cached: %s", error)


def drop_unreferenced(state: Directory, proven: Proven) -> None:
    """Remove cached documents that the accepted metadata no longer names."""
    wanted = {
        target.hashes.get("sha256") for role in proven.targets.values() for target in role.signed.targets.values()
    }
    for name in state.names(FOLDER):
        if name not in wanted:
            state.remove(f"{FOLDER}/{name}")


def _matches(info: TargetFile, raw: bytes) -> bool:
    from tuf.api.exceptions import LengthOrHashMismatchError

    try:
        info.verify_length_and_hashes(raw)
    except LengthOrHashMismatchError:
        return False
    return True
