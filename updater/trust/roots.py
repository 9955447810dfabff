"""Chains of root metadata, each link signed by the one before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from updater.errors import Untrusted
from updater.trust.accepted import EpochReset

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root

MAX_ROOT_BYTES = 512_000
RESET_FIELD = "x-acl-epoch-reset"
_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


def parse_root(raw: bytes, source: str) -> Metadata[Root]:
    """Return root metadata that is signed by its own threshold; raise Untrusted."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    try:
        root: Metadata[Root] = Metadata[Root].from_bytes(raw)
        if root.signed.type != "root" or type(root.signed.version) is not int:
            raise RepositoryError(f"its type is {root.signed.type!r}")
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Untrusted(
            f"{source} is no root metadata that stands by itself: {error}",
            mend="take the roots from the publisher anew",
            reason="no-trusted-root",
        ) from error
    return root


def follow(trusted: bytes, candidate: bytes, source: str) -> bytes:
    """Return `candidate` when it is the next root after `trusted` and signed by both; raise Untrusted."""
    from tuf.api.exceptions import RepositoryError

    old, new = parse_root(trusted, "the trusted root"), parse_root(candidate, source)
    if new.signed.version != old.signed.version + 1:
        raise Untrusted(
            f"{source} is root version {new.signed.version}, and {old.signed.version + 1} is next",
            mend="supply every root in between",
            reason="root-chain-broken",
        )
    try:
        old.signed.verify_delegate("root", new.signed_bytes, new.signatures)
    except (RepositoryError, ValueError) as error:
        raise Untrusted(
            f"{source} is not signed by the keys of root version {old.signed.version}: {error}",
            mend="take the roots from the publisher anew",
            reason="root-chain-broken",
        ) from error
    return candidate


def read_chain(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of root files in the order of their versions; raise Untrusted."""
    found: dict[int, tuple[str, bytes]] = {}
    for path in paths:
        match = _NAME.fullmatch(path.name)
        try:
            raw = path.read_bytes() if match and path.stat().st_size <= MAX_ROOT_BYTES else b""
        except OSError:
            raw = b""
        if match is None or not raw:
            raise Untrusted(
                f"{path} cannot be read as a root that this image ships",
                mend="put <N>.root.json files of the repository there",
                reason="no-trusted-root",
            )
        found[int(match.group(1))] = (str(path), raw)
    return [found[number] for number in sorted(found)]


def first_root(paths: Sequence[Path]) -> bytes:
    """Return the newest of the shipped roots, reached by their own chain; raise Untrusted."""
    chain = read_chain(paths)
    if not chain:
        raise Untrusted(
            "this node has no root of trust: no <N>.root.json is shipped in its image",
            mend="build the image with the repository's roots in /usr/share/acl-updater/trust/",
            reason="no-trusted-root",
        )
    source, root = chain[0]
    parse_root(root, source)
    for source, candidate in chain[1:]:
        root = follow(root, candidate, source)
    return root


def epoch_reset(root: Root) -> EpochReset | None:
    """Return the root-signed reset of the security epoch's floor; raise Untrusted when it is malformed."""
    field = root.unrecognized_fields.get(RESET_FIELD)
    if field is None:
        return None
    floor = field.get("floor") if isinstance(field, dict) else None
    since = field.get("root_version") if isinstance(field, dict) else None
    if type(floor) is int and type(since) is int and 0 <= floor <= 1_000_000 and 1 <= since <= root.version:
        return EpochReset(floor, since)
    raise Untrusted(
        f"root version {root.version} resets the security epoch in a way that cannot be read",
        mend="ask the publisher to run `acl-release reset-epoch` again",
        reason="metadata-invalid",
    )
