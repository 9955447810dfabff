"""A new, empty repository: its first root of trust."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from updater.errors import Refused
from updater.files import Directory, MountedDirectory
from updater.manifest import Withdrawn
from updater.release import settings as settings_file
from updater.release.keys import ROLES, KeyRing
from updater.release.repository import DELEGATIONS, WITHDRAWN, Repository, locked
from updater.release.settings import Settings
from updater.schema import encode_json


def create(
    folder: Path, ring: KeyRing, settings: Settings, root_threshold: int | None, now: Callable[[], datetime]
) -> int:
    """Make a repository with an empty list of withdrawn releases; return the root's threshold.

    The threshold is 2 by default, 1 where there is only one root key. Raises Refused when there is a repository
    already or when a role has no key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return create_in(MountedDirectory(folder), ring, settings, root_threshold, now)


def create_in(
    folder: Directory, ring: KeyRing, settings: Settings, root_threshold: int | None, now: Callable[[], datetime]
) -> int:
    """Do the work of `create` in a folder that is locked."""
    from tuf.api.metadata import (
        DelegatedRole,
        Delegations,
        Metadata,
        MetaFile,
        Root,
        Snapshot,
        Targets,
        Timestamp,
    )

    if folder.read("metadata/timestamp.json") is not None:
        raise Refused(
            "there is a repository here already",
            mend="name another folder with --repo; nothing was touched",
            reason="repository-exists",
        )
    names = {role: ring.names_for(role) for role in ROLES}
    for role, found in names.items():
        if not found:
            raise Refused(
                f"the role {role} has no key",
                mend="make keys with `acl-release keys init`, or name their folders with --keys",
                reason="key-missing",
            )
    threshold = root_threshold or min(2, len(names["root"]))
    if threshold > len(names["root"]):
        raise Refused(
            f"a threshold of {threshold} root keys needs more than {len(names['root'])}",
            mend="make more root keys, or choose a lower --root-threshold",
            reason="threshold-unreachable",
        )
    root = Root(consistent_snapshot=True)
    for role in ("root", "timestamp", "snapshot", "targets"):
        for name in names[role]:
            root.add_key(ring.public(name), role)
    root.roles["root"].threshold = threshold
    delegations = Delegations({}, {})
    assert delegations.roles is not None
    for role, pattern in DELEGATIONS.items():
        delegations.roles[role] = DelegatedRole(role, [], 1, True, [pattern])
    targets = Targets(delegations=delegations)
    for role in DELEGATIONS:
        for name in names[role]:
            targets.add_key(ring.public(name), role)
    repository = Repository.blank(
        folder,
        ring,
        now,
        settings,
        root=Metadata(root),
        timestamp=Metadata(Timestamp(version=1, snapshot_meta=MetaFile(1))),
        snapshot=Metadata(Snapshot(version=1, meta={})),
        targets={"targets": Metadata(targets), **{role: Metadata(Targets()) for role in DELEGATIONS}},
    )
    repository.put_target(WITHDRAWN, encode_json(Withdrawn(1)))
    repository.change("targets", *DELEGATIONS)
    # The root comes first: it is what image builders take, and nobody believes the rest without it.
    settings_file.save(folder, settings)
    repository.publish_root()
    repository.publish()
    return threshold
