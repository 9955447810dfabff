"""One run of TUF's client workflow, by ngclient, on a scratch copy."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.files import explained
from updater.trust.accepted import MAX_METADATA_BYTES
from updater.versions import is_version

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
    from tuf.ngclient import FetcherInterface, Updater

Source = Callable[[str, int], bytes]

WITHDRAWN_PATH = "channels/withdrawn.json"
# Asking for these loads every role that this product delegates to, whether or not the targets exist.
_PROBES = (WITHDRAWN_PATH, "manifests/0.json")
_HEX = re.compile(r"[0-9a-f]{64}")
_ROLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ABSENT = ("not-found", "forbidden")


class Proven:
    """Metadata that has just been proven; `files` are its bytes by role."""

    def __init__(self, updater: Updater, folder: Path) -> None:
        from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

        self._updater = updater
        found = {path.stem: path.read_bytes() for path in folder.glob("*.json") if path.stem != "root"}
        self.root: Metadata[Root] = Metadata[Root].from_bytes((folder / "root.json").read_bytes())
        self.timestamp: Metadata[Timestamp] = Metadata[Timestamp].from_bytes(found["timestamp"])
        self.snapshot: Metadata[Snapshot] = Metadata[Snapshot].from_bytes(found["snapshot"])
        listed = [name.removesuffix(".json") for name in self.snapshot.signed.meta]
        self.targets: dict[str, Metadata[Targets]] = {
            name: Metadata[Targets].from_bytes(found[name])
            for name in listed
            if name in found and _ROLE.fullmatch(name)
        }
        self.files: dict[str, bytes] = {
            "root": (folder / "root.json").read_bytes(),
            "timestamp": found["timestamp"],
            "snapshot": found["snapshot"],
            **{name: found[name] for name in self.targets},
        }

    @property
    def versions(self) -> dict[str, int]:
        """Return each role's version."""
        return {name: signed.version for name, signed in self._signed()}

    @property
    def expiries(self) -> dict[str, datetime]:
        """Return the time at which each role expires."""
        return {name: signed.expires for name, signed in self._signed()}

    def _signed(self) -> list[tuple[str, Root | Timestamp | Snapshot | Targets]]:
        return [
            ("root", self.root.signed),
            ("timestamp", self.timestamp.signed),
            ("snapshot", self.snapshot.signed),
            *((name, role.signed) for name, role in self.targets.items()),
        ]

    @property
    def signers(self) -> dict[str, list[str]]:
        """Return the keys whose signatures stand under the timestamp and the snapshot."""
        root = self.root.signed
        return {
            name: sorted(root.get_verification_result(name, role.signed_bytes, role.signatures).signed)
            for name, role in (("timestamp", self.timestamp), ("snapshot", self.snapshot))
        }

    def find(self, path: str) -> TargetFile | None:
        """Return what is signed about a target by the role that may sign it."""
        found = self._updater.get_targetinfo(path)
        if found is not None and not _HEX.fullmatch(found.hashes.get("sha256", "")):
            raise Untrusted(
                f"the metadata of {path} has no SHA-256", mend="ask the publisher", reason="metadata-invalid"
            )
        return found

    def paths(self, prefix: str) -> list[str]:
        """Return the sorted paths of targets below `prefix` that are signed by the role that may sign them."""
        listed = {path for role in self.targets.values() for path in role.signed.targets if path.startswith(prefix)}
        return sorted(path for path in listed if self.find(path) is not None)

    def manifests(self) -> dict[str, str]:
        """Return the digest of each published manifest by version."""
        found: dict[str, str] = {}
        for path in self.paths("manifests/"):
            version = path.removeprefix("manifests/").removesuffix(".json")
            info = self.find(path)
            if path.endswith(".json") and is_version(version) and info is not None:
                found[version] = info.hashes["sha256"]
        return found


def run(root: bytes, cached: Mapping[str, bytes], source: Source, reference: datetime) -> Proven:
    """Refresh from `source`, beginning with a trusted root and what was accepted before.

    `source` takes a path below the repository and a limit in bytes. `reference` is the time that expiries are judged
    by. Raises what ngclient and `source` raise: see `updater.trust.refusals`.
    """
    from tuf.ngclient import Updater, UpdaterConfig

    with (
        explained("cannot write the scratch copy of metadata", "free some space in the folder for temporary files"),
        tempfile.TemporaryDirectory(prefix="acl-trust-") as scratch,
    ):
        folder = Path(scratch)
        for name, content in cached.items():
            if name != "root":
                (folder / f"{name}.json").write_bytes(content)
        updater = Updater(
            str(folder),
            "metadata/",
            fetcher=_adapter(source),
            config=UpdaterConfig(
                max_root_rotations=256,
                max_delegations=8,
                root_max_length=512_000,
                timestamp_max_length=16_384,
                snapshot_max_length=1 << 18,
                targets_max_length=MAX_METADATA_BYTES,
            ),
            bootstrap=root,
        )
        # ngclient asks the clock by itself, and has no argument for it; the caller checks expiries once more.
        if not isinstance(getattr(updater._trusted_set, "reference_time", None), datetime):
            raise EnvironmentFailure(
                "this version of python-tuf keeps its reference time where the updater does not know it",
                mend="install the version that constraints.txt names",
                reason="tuf-unknown",
            )
        updater._trusted_set.reference_time = reference
        updater.refresh()
        for path in _PROBES:
            updater.get_targetinfo(path)
        return Proven(updater, folder)


def replay(files: Mapping[str, bytes], reference: datetime) -> Proven:
    """Prove an accepted set again, signatures included, from its own bytes and as of the time of its acceptance."""

    def source(path: str, max_bytes: int) -> bytes:
        name = path.removeprefix("metadata/").removesuffix(".json")
        bare = name.partition(".")[2] or name
        if bare == "root" or bare not in files:
            raise NetworkFailure(f"{path} is not cached", reason="not-found")
        return files[bare]

    return run(files["root"], {}, source, reference)


def _adapter(source: Source) -> FetcherInterface:
    """Return ngclient's view of our fetcher."""
    from collections.abc import Iterator

    from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError
    from tuf.ngclient import FetcherInterface

    class Adapter(FetcherInterface):
        def download_bytes(self, url: str, max_length: int) -> bytes:
            try:
                return source(url, max_length)
            except NetworkFailure as error:
                if error.reason in _ABSENT:
                    raise DownloadHTTPError(error.message, 404) from error
                raise
            except Untrusted as error:
                raise DownloadLengthMismatchError(error.message) from error

        def _fetch(self, url: str) -> Iterator[bytes]:
            yield self.download_bytes(url, MAX_METADATA_BYTES)

    return Adapter()
