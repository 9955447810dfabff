"""Adopt the running release when all records were lost: what boots, verifies and is healthy counts as proven."""

from __future__ import annotations

import hashlib

import msgspec

from updater.errors import EnvironmentFailure
from updater.facts import Facts
from updater.records import UKI_NAME, FileRecord, Ledger, Proven, ReleaseRecord, RootRecord
from updater.slots import Slot
from updater.steps.proofs import prove_image
from updater.steps.session import Session
from updater.store import utc_text


def adopt(session: Session, facts: Facts, *, force: bool = False) -> None:
    """Record the running release as proven, from its own disk: superblock, root hash, boot files.

    Only a release that runs from a good, uncounted entry is adopted, unless `force`: a counted one may be somebody's
    trial. Raises EnvironmentFailure when the slot does not verify.
    """
    from updater.verity import parse_superblock

    slot = facts.running.slot
    booted = next((entry for entry in facts.boot.order if entry.name == facts.boot.booted_name), None)
    entries = facts.boot.entries_of(slot)
    judged = booted or (entries[0] if entries else None)
    if not force and (judged is None or judged.slot is not slot or judged.tries_left is not None):
        raise EnvironmentFailure(
            f"the running slot {slot} is not on record, and its boot entry is "
            f"{judged.name if judged else 'missing'}: it may be a trial, so it is not adopted",
            mend="commit it by hand once it is known to be good: `acl-updater commit --force`",
            reason="running-not-proven",
        )
    hashes = session.node.blocks(slot, "hash")
    try:
        described = parse_superblock(hashes.read(0, 4096))
    finally:
        hashes.close()
    root = RootRecord(
        described.length_bytes,
        described.tree_length_bytes,
        facts.running.root_hash,
        described.salt,
        described.uuid,
    )
    addons = [name for name in session.node.boot.artifact_names(slot) if name != UKI_NAME]
    release = ReleaseRecord(
        version=facts.running.version,
        manifest_sha256="0" * 64,
        security_epoch=0,
        built=utc_text(facts.now),
        root=root,
        files=[_on_record(session, slot, name) for name in (*addons, UKI_NAME)],
    )
    prove_image(session, slot, release)
    session.node.boot.settle(slot)
    ledger = facts.ledger if not facts.ledger_lost else Ledger()
    session.store.write_ledger(
        msgspec.structs.replace(ledger.with_proven(Proven(slot, release, "adopted", session.stamp())), armed=None)
    )
    session.record(
        "adopted",
        f"no record of slot {slot} was left; release {release.version} runs from a good entry and verifies, "
        "so it counts as proven",
        release=release,
        slot=slot,
    )


def _on_record(session: Session, slot: Slot, name: str) -> FileRecord:
    digest = hashlib.sha256()
    length = 0
    for chunk in session.node.boot.artifact_chunks(slot, name):
        digest.update(chunk)
        length += len(chunk)
    return FileRecord(name, length, digest.hexdigest())
