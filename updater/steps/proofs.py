"""Proof that a slot holds a release: every block, and every boot file, read from the medium."""

from __future__ import annotations

from updater.errors import EnvironmentFailure, SlotDamaged
from updater.facts import Facts
from updater.plan import boot_files
from updater.records import ReleaseRecord
from updater.situation import running_is_proven
from updater.slots import Slot
from updater.steps.session import Session


def prove_image(session: Session, slot: Slot, release: ReleaseRecord) -> None:
    """Read a slot's image and hash tree against the release's root hash; raise SlotDamaged."""
    from updater.verity import prove

    data = session.node.blocks(slot, "data")
    try:
        hashes = session.node.blocks(slot, "hash")
        try:
            prove(data, hashes, release.root.as_root(), session.reporter.advance)
        finally:
            hashes.close()
    finally:
        data.close()


def prove_boot_files(session: Session, slot: Slot, release: ReleaseRecord) -> None:
    """Read a slot's boot files from the ESP against the release's digests; raise SlotDamaged."""
    differences = session.node.boot.verify(slot, boot_files(release, slot))
    if differences:
        raise SlotDamaged(
            f"slot {slot}'s boot files are not those of release {release.version}: {'; '.join(differences)}",
            mend="stage the release again",
            reason="boot-files-damaged",
        )


def prove_fallback(session: Session, facts: Facts) -> ReleaseRecord:
    """Prove the running slot, whole; return its release. Nothing may be staged or armed without it."""
    slot = facts.running.slot
    proven = facts.ledger.proven_in(slot)
    if proven is None or not running_is_proven(facts):
        raise EnvironmentFailure(
            f"the running slot {slot} (root hash {facts.running.root_hash[:12]}…) is not on record as proven",
            mend="let it boot to a healthy state once, so that it is adopted: see `acl-updater explain`",
            reason="running-not-proven",
        )
    try:
        prove_image(session, slot, proven.release)
        prove_boot_files(session, slot, proven.release)
    except SlotDamaged as error:
        raise SlotDamaged(
            f"the fallback would be lost: {error.message}",
            mend="this disk or ESP is failing: reimage the node; nothing was changed",
            reason="fallback-damaged",
        ) from error
    return proven.release
