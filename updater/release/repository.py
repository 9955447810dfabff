"""The signed metadata of a repository, changed as one revision that becomes visible at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from updater.errors import EnvironmentFailure, Refused
from updater.files import Directory, MountedDirectory, explained
from updater.manifest import Channel, Withdrawn
from updater.release import settings as settings_file
from updater.release.keys import NAME_FIELD, KeyRing
from updater.release.settings import Settings
from updater.schema import decode_json
from updater.versions import is_version

if TYPE_CHECKING:
    from tuf.api.metadata import Key, Metadata, Role, Root, Snapshot, Targets, Timestamp

METADATA_LIMIT_BYTES = 16 << 20
WITHDRAWN = "channels/withdrawn.json"
DELEGATIONS = {"channels": "channels/*", "releases": "manifests/*"}


class Repository:
    """A repository's folder: metadata as last published, and the revision that is being made of it.

    Files go to disk in an order that keeps an unfinished revision invisible: what nothing refers to yet first, the
    timestamp last, each flushed. Only a new root is seen by nodes as soon as it is written; it is signed by the old
    keys as well, and written just before the timestamp.
    """

    def __init__(self, folder: Directory, ring: KeyRing, now: Callable[[], datetime]) -> None:
        """Open the folder and read what is published; raise Refused when there is nothing."""
        self._prepare(folder, ring, now, settings_file.load(folder))
        raw = folder.read("metadata/timestamp.json")
        if raw is None:
            raise Refused(
                "there is no repository here",
                mend="name its folder with --repo, or make one with `acl-release repo init`",
                reason="no-repository",
            )
        from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

        self.timestamp: Metadata[Timestamp] = Metadata[Timestamp].from_bytes(raw)
        self.root: Metadata[Root] = Metadata[Root].from_bytes(self._newest_root())
        snapshot_version = self.timestamp.signed.snapshot_meta.version
        self.snapshot: Metadata[Snapshot] = Metadata[Snapshot].from_bytes(self._file("snapshot", snapshot_version))
        self.targets: dict[str, Metadata[Targets]] = {
            name.removesuffix(".json"): Metadata[Targets].from_bytes(
                self._file(name.removesuffix(".json"), meta.version)
            )
            for name, meta in self.snapshot.signed.meta.items()
        }

    def _prepare(self, folder: Directory, ring: KeyRing, now: Callable[[], datetime], settings: Settings) -> None:
        self.folder = folder
        self.ring = ring
        self.now = now
        self.settings = settings
        self._changed: set[str] = set()

    @classmethod
    def blank(
        cls,
        folder: Directory,
        ring: KeyRing,
        now: Callable[[], datetime],
        settings: Settings,
        *,
        root: Metadata[Root],
        timestamp: Metadata[Timestamp],
        snapshot: Metadata[Snapshot],
        targets: dict[str, Metadata[Targets]],
    ) -> Repository:
        """Return a repository whose first revision, with version 1 throughout, is still to be published."""
        new = cls.__new__(cls)
        new._prepare(folder, ring, now, settings)
        new.root, new.timestamp, new.snapshot, new.targets = root, timestamp, snapshot, targets
        documents: list[Metadata[Any]] = [root, timestamp, snapshot, *targets.values()]
        for document in documents:
            document.signed.version = 0
        return new

    # Reading.

    def _file(self, role: str, version: int) -> bytes:
        name = f"metadata/{version}.{role}.json"
        raw = self.folder.read(name, limit_bytes=METADATA_LIMIT_BYTES)
        if raw is None:
            raise EnvironmentFailure(
                f"{name} is missing", mend="restore it from a mirror or a backup", reason="repository-damaged"
            )
        return raw

    def _newest_root(self) -> bytes:
        versions = [
            int(name.split(".", 1)[0])
            for name in self.folder.names("metadata")
            if name.endswith(".root.json") and name.split(".", 1)[0].isdigit()
        ]
        return self._file("root", max(versions, default=1))

    def target(self, path: str) -> bytes | None:
        """Return a target document's bytes, None when there is none; raise EnvironmentFailure when damaged."""
        role = self.targets[role_for(path)].signed
        info = role.targets.get(path)
        if info is None:
            return None
        parent, _, name = path.rpartition("/")
        raw = self.folder.read(f"targets/{parent}/{info.hashes['sha256']}.{name}")
        if raw is None or hashlib.sha256(raw).hexdigest() != info.hashes["sha256"]:
            raise EnvironmentFailure(
                f"the target {path} is missing or damaged",
                mend="publish it again, or restore it from a mirror",
                reason="repository-damaged",
            )
        return raw

    def versions(self) -> list[str]:
        """Return the published versions, unsorted."""
        names = (
            path.removeprefix("manifests/").removesuffix(".json") for path in self.targets["releases"].signed.targets
        )
        return [name for name in names if is_version(name)]

    def channels(self) -> dict[str, Channel]:
        """Return the channels by name."""
        found = {}
        for path in sorted(self.targets["channels"].signed.targets):
            raw = self.target(path) if path != WITHDRAWN else None
            if raw is not None:
                channel = decode_json(raw, Channel, path)
                found[channel.channel] = channel
        return found

    def withdrawn(self) -> Withdrawn:
        """Return the list of withdrawn releases."""
        raw = self.target(WITHDRAWN)
        return Withdrawn(1) if raw is None else decode_json(raw, Withdrawn, WITHDRAWN)

    def keys_of(self, role: str) -> tuple[Role, dict[str, Key]]:
        """Return a role's threshold with its keys by id, as they are signed now."""
        delegator: Root | Targets = self.root.signed
        if role in DELEGATIONS:
            delegator = self.targets["targets"].signed
        found = delegator.get_delegated_role(role)
        return found, {keyid: delegator.get_key(keyid) for keyid in found.keyids}

    # Changing.

    def put_target(self, path: str, content: bytes) -> bool:
        """Write a target document and enter it into its role; return False when it was there already."""
        from tuf.api.metadata import TargetFile

        role = role_for(path)
        info = TargetFile.from_data(path, content, ["sha256"])
        parent, _, name = path.rpartition("/")
        file = f"targets/{parent}/{info.hashes['sha256']}.{name}"
        if self.folder.read(file) != content:
            self.folder.write_new(file, [content])
        if self.targets[role].signed.targets.get(path) == info:
            return False
        self.targets[role].signed.targets[path] = info
        self.change(role)
        return True

    def drop_target(self, path: str) -> None:
        """Take a target out of its role; its bytes stay for nodes that still read the revision before."""
        self.targets[role_for(path)].signed.targets.pop(path, None)
        self.change(role_for(path))

    def change(self, *roles: str) -> None:
        """Sign these roles anew in this revision, with a new version and expiry."""
        self._changed.update(roles)

    def publish(self) -> list[str]:
        """Sign the changed roles and what depends on them, and write it all; return the roles signed.

        Raises Refused (`key-missing`) before anything is written when a needed key is away.
        """
        if not self._changed:
            return []
        changed = {*self._changed, "snapshot", "timestamp"}
        documents: list[tuple[str, bytes]] = []
        for name in sorted(changed & self.targets.keys()):
            role = self.targets[name]
            role.signed.version = max(role.signed.version, self._listed(name)) + 1
            documents.append((f"{role.signed.version}.{name}.json", self._signed(name, role)))
            self.snapshot.signed.meta[f"{name}.json"] = _meta(role.signed.version, documents[-1][1])
        self.snapshot.signed.version += 1
        snapshot = self._signed("snapshot", self.snapshot)
        documents.append((f"{self.snapshot.signed.version}.snapshot.json", snapshot))
        self.timestamp.signed.version += 1
        self.timestamp.signed.snapshot_meta = _meta(self.snapshot.signed.version, snapshot)
        timestamp = self._signed("timestamp", self.timestamp)
        for name, content in documents:
            self.folder.replace(f"metadata/{name}", content)
        settings_file.save(self.folder, self.settings)
        self.folder.replace("metadata/timestamp.json", timestamp)
        self._changed.clear()
        return sorted(changed)

    def publish_root(self, also_signed_by: Root | None = None) -> None:
        """Sign a new version of the root, by its own keys and by those of the version before, and write it."""
        self.root.signed.version += 1
        content = self._signed("root", self.root, also_signed_by)
        self.folder.replace(f"metadata/{self.root.signed.version}.root.json", content)

    def _listed(self, role: str) -> int:
        listed = self.snapshot.signed.meta.get(f"{role}.json")
        return listed.version if listed else 0

    def _signed(self, name: str, document: Metadata[Any], previous: Root | None = None) -> bytes:
        """Return a role's document, renewed and signed by all of its keys that are here, threshold at least."""
        from tuf.api.serialization.json import JSONSerializer

        document.signed.expires = (self.now() + self.settings.lifetime(name)).replace(microsecond=0)
        document.signatures.clear()
        wanted = [self.keys_of(name)]
        if previous is not None:
            role = previous.roles["root"]
            wanted.append((role, {keyid: previous.keys[keyid] for keyid in role.keyids}))
        for role, keys in wanted:
            signed = 0
            for keyid in role.keyids:
                signer = None if keyid in document.signatures else self.ring.signer(keyid)
                if signer is not None:
                    document.sign(signer, append=True)
                signed += keyid in document.signatures
            if signed < role.threshold:
                missing = [_shown(key) for keyid, key in keys.items() if keyid not in document.signatures]
                raise Refused(
                    f"{name} needs {role.threshold} signature{'s' if role.threshold > 1 else ''}, and only {signed} of"
                    f" its keys can sign here (missing: {', '.join(missing)})",
                    mend="bring the keys, and name their folders with --keys",
                    reason="key-missing",
                )
        return document.to_bytes(JSONSerializer(compact=False))


def role_for(path: str) -> str:
    """Return the role that signs a target path."""
    return "channels" if path.startswith("channels/") else "releases"


def _meta(version: int, content: bytes) -> Any:
    from tuf.api.metadata import MetaFile

    return MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def _shown(key: Key) -> str:
    return str(key.unrecognized_fields.get(NAME_FIELD) or key.keyid[:16])


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


@contextlib.contextmanager
def opened(folder: Path, ring: KeyRing, now: Callable[[], datetime]) -> Iterator[Repository]:
    """Open a repository for changes, alone; raise Refused when another process changes it now."""
    with locked(folder):
        yield Repository(MountedDirectory(folder), ring, now)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other acl-release processes from changing a repository."""
    if not folder.is_dir():
        raise Refused(
            f"there is no folder {folder}",
            mend="name the repository with --repo, or make one with `acl-release repo init`",
            reason="no-repository",
        )
    with explained(f"cannot lock {folder}", "see its owner and its medium"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"another acl-release is changing {folder}", mend="wait until it is done", reason="repository-busy"
            ) from error
        yield
    finally:
        os.close(handle)
