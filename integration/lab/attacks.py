"""Forged metadata, as a hostile mirror or a thief of some keys would make it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration.lab import publisher
from updater.errors import EnvironmentFailure
from updater.release.keys import KeyRing

_HUGE_BYTES = 64 << 20
_DEEP = 32
_NEXT = "manifests/3.0.0.json"


def forge(kind: str, repository: Path, keys: Path) -> None:
    """Change the served metadata in the named way; files are replaced, never written into."""
    metadata = repository / "metadata"
    if not (metadata / "timestamp.json").is_file():
        raise EnvironmentFailure(
            f"{repository} has no timestamp to forge", mend="mend the scenario", reason="fault-not-injected"
        )
    _FORGERIES[kind](repository, keys)


def _mixed(repository: Path, keys: Path) -> None:
    metadata = repository / "metadata"
    old = _newest(metadata, "snapshot")
    content = old.read_bytes()
    publisher.renew(repository, keys)
    _replace(_newest(metadata, "snapshot"), content)


def _wrong_key(repository: Path, keys: Path) -> None:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Timestamp

    path = repository / "metadata/timestamp.json"
    document: Metadata[Timestamp] = Metadata.from_bytes(path.read_bytes())
    document.signed.version += 1
    document.sign(CryptoSigner.generate_ed25519())
    _replace(path, document.to_bytes())


def _unsigned(repository: Path, keys: Path) -> None:
    path = repository / "metadata/timestamp.json"
    document = json.loads(path.read_bytes())
    document["signatures"] = []
    _replace(path, json.dumps(document).encode())


def _short_threshold(repository: Path, keys: Path) -> None:
    from tuf.api.metadata import Metadata, Root

    metadata = repository / "metadata"
    newest = _newest(metadata, "root")
    document: Metadata[Root] = Metadata.from_bytes(newest.read_bytes())
    document.signed.version += 1
    document.signatures.clear()
    ring = KeyRing([keys])
    needed = document.signed.roles["root"].threshold
    signers = [signer for keyid in document.signed.roles["root"].keyids if (signer := ring.signer(keyid)) is not None]
    for signer in signers[: needed - 1]:
        document.sign(signer, append=True)
    _replace(metadata / f"{document.signed.version}.root.json", document.to_bytes())


def _huge(repository: Path, keys: Path) -> None:
    path = repository / "metadata/timestamp.json"
    _replace(path, path.read_bytes() + b" " * _HUGE_BYTES)


def _deep(repository: Path, keys: Path) -> None:
    """Delegate the manifests through a chain of roles, each signed by the key of releases, to none that has any."""
    from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Targets

    from updater.release.repository import opened, utc_now

    ring = KeyRing([keys])
    key = ring.public("releases")
    signer = ring.signer(key.keyid)
    if signer is None:
        raise EnvironmentFailure("the lab has no key of releases", mend="make its stock anew", reason="lab-keys")
    with opened(repository, ring, utc_now) as revision:
        releases = revision.targets["releases"].signed
        names = [f"deep{n:02d}" for n in range(_DEEP)]
        for n, name in enumerate(names):
            role = DelegatedRole(name, [key.keyid], 1, False, ["manifests/*"])
            below = Metadata(Targets(expires=datetime.now(UTC) + timedelta(days=9)))
            if n + 1 < _DEEP:
                following = DelegatedRole(names[n + 1], [key.keyid], 1, False, ["manifests/*"])
                below.signed.delegations = Delegations({key.keyid: key}, {following.name: following})
            else:
                below.signed.targets = dict(releases.targets)
            below.sign(signer)
            _replace(repository / "metadata" / f"1.{name}.json", below.to_bytes())
            revision.snapshot.signed.meta[f"{name}.json"] = MetaFile(1)
            if n == 0:
                releases.delegations = Delegations({key.keyid: key}, {name: role})
        # Release 3 stays where it is: the next update shows that the search came to an end and broke nothing.
        hidden = [path for path in releases.targets if path.startswith("manifests/") and path != _NEXT]
        releases.targets = {path: info for path, info in releases.targets.items() if path not in hidden}
        revision.change("releases")
        revision.publish()


_FORGERIES: dict[str, Callable[[Path, Path], None]] = {
    "mixed": _mixed,
    "wrong-key": _wrong_key,
    "unsigned": _unsigned,
    "short-threshold": _short_threshold,
    "huge": _huge,
    "deep": _deep,
}


def _newest(metadata: Path, role: str) -> Path:
    return max(metadata.glob(f"*.{role}.json"), key=lambda path: int(path.name.partition(".")[0]))


def _replace(path: Path, content: bytes) -> None:
    # The copy shares its files with the stock by hard links: a new file takes the name, none is written into.
    path.unlink(missing_ok=True)
    path.write_bytes(content)
