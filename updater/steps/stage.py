"""Stage a release: fill the slot that is not running, prove it, place its boot files."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from updater.boot.protocol import BootFile
from updater.errors import EnvironmentFailure, InvalidDocument, NothingToDo, Refused
from updater.facts import Facts
from updater.fill.filler import Filled
from updater.kept import Kept
from updater.manifest import Manifest
from updater.node.protocol import Node
from updater.plan import Plan, boot_files, make_plan
from updater.policy import Target, choose, refuse_unfit
from updater.progress import step
from updater.records import UKI_NAME, Brought, FileRecord, Journal, ReleaseRecord, Update
from updater.repository import Repository
from updater.situation import Situation, decide
from updater.steps.proofs import prove_boot_files, prove_fallback
from updater.steps.session import Session
from updater.steps.ways import WorkedOut, worked_out
from updater.verity_words import check_verity_words
from updater.ways import Way

CHUNK_BYTES = 1 << 20


def plan_stage(session: Session, repository: Repository, facts: Facts, *, to: str | None) -> tuple[Plan, Manifest]:
    """Choose the release and add up what it needs; change nothing. Raises NothingToDo, Refused, Untrusted."""
    node = session.node
    channel = facts.policy.channel or node.config.channel
    target = choose(
        to=to,
        policy=facts.policy,
        channel=channel,
        offered=repository.offered(channel),
        running=facts.running.version,
        now=facts.now,
    )
    manifest, release = repository.release(target.version)
    refuse_unfit(
        manifest,
        manifest_sha256=release.manifest_sha256,
        target=target,
        layout=node.layout.name,
        architecture=node.architecture,
        image_id=node.image_id,
        running_root_hash=facts.running.root_hash,
        ledger=facts.ledger,
        withdrawn=repository.withdrawn(),
        now=facts.now,
    )
    refuse_damaged_table(session, facts)
    return _planned(session, facts, target, manifest, release), manifest


def refuse_in_situation(facts: Facts) -> None:
    """Raise Refused while the other slot must not be touched."""
    situation = decide(facts)
    update = facts.journal.update
    version = update.release.version if update else "a release"
    if situation in (Situation.TRIAL, Situation.COMMITTING):
        raise Refused(
            f"release {facts.running.version} is on trial: the other slot is its fallback and stays untouched",
            mend="wait for the verdict: see `acl-updater status`",
            reason="on-trial",
        )
    if situation is Situation.ARMED:
        raise Refused(
            f"release {version} is armed: the next boot tries it",
            mend="reboot, or `acl-updater cancel`",
            reason="armed",
        )
    if situation in (Situation.REVERTING, Situation.REVERTED):
        raise Refused(
            "a roll back to the other slot waits for its reboot",
            mend="reboot, or `acl-updater cancel`",
            reason="reverting",
        )
    if situation in (Situation.FELL_BACK, Situation.ROTTED):
        raise Refused(
            "a trial ended and its end is not on record yet",
            mend="run `acl-updater recover` on the node itself (its service does so at every boot)",
            reason="not-recovered",
        )


def refuse_damaged_table(session: Session, facts: Facts) -> None:
    """Raise EnvironmentFailure when the table's copies differ by no write of ours, and staging would write it."""
    if facts.gpt_problem and facts.journal.phase == "idle" and session.node.layout.writes_table:
        raise EnvironmentFailure(
            f"{facts.gpt_problem}, and no update of ours was at work there",
            mend="find out who changed it; `acl-updater layout check --repair` writes both copies anew",
            reason="gpt-stale",
        )


def stage(session: Session, repository: Repository, *, to: str | None) -> Plan:
    """Stage the release that policy (or `to`) names; return the executed plan.

    The order is DESIGN's: prove the fallback, record the intent, take away the other slot's boot entry, and only
    then write its first byte. Whatever happens in between, the running release boots.
    """
    facts = session.facts()
    refuse_in_situation(facts)
    plan, manifest = plan_stage(session, repository, facts, to=to)
    update = facts.journal.update
    if decide(facts) is Situation.STAGED and update is not None and update.release == plan.release:
        raise NothingToDo(
            f"release {plan.release.version} is staged already in slot {update.slot}",
            mend="`acl-updater finalize` arms it",
            reason="already-staged",
        )
    plan.refuse_unless_possible()
    with (
        _keeping(session, repository, plan.release),
        worked_out(session, repository, facts, manifest, plan.release, thorough=False) as ways,
    ):
        plan = ways.planned(plan)
        brought = _execute(session, facts, plan, ways)
    return replace(plan, brought=brought)


@contextmanager
def _keeping(session: Session, repository: Repository, release: ReleaseRecord) -> Iterator[None]:
    """Keep what arrives until the release is staged, and nothing that came for another release."""
    folder = session.node.partial
    if folder is None:
        yield
        return
    mine = folder / release.root.root_hash
    for other in folder.iterdir() if folder.is_dir() else ():
        if other != mine:
            shutil.rmtree(other, ignore_errors=True)
    # A boot file and the copy of the running one that it is made from need their room.
    kept = Kept(mine, spare_bytes=2 * max(file.length_bytes for file in release.files))
    repository.fetcher.kept = kept
    try:
        yield
        forget_partial(session.node)
    finally:
        repository.fetcher.kept = None


def forget_partial(node: Node) -> None:
    """Remove what was fetched and is not needed any more."""
    if node.partial is not None:
        shutil.rmtree(node.partial, ignore_errors=True)


def _execute(session: Session, facts: Facts, plan: Plan, ways: WorkedOut) -> Brought:
    node, reporter, release, slot = session.node, session.reporter, plan.release, plan.slot
    sentences = dict(plan.steps)

    with step(reporter, "prove-fallback", sentences["prove-fallback"]) as said:
        prove_fallback(session, facts)
        said.append(f"slot {plan.from_slot} holds release {plan.from_version}, whole")

    with step(reporter, "record-intent", sentences["record-intent"]):
        before = facts.journal.update
        resumes = facts.journal.phase == "staging" and before is not None and before.release == release
        update = (
            before
            if resumes and before is not None
            else Update(
                id=str(uuid.uuid4()),
                release=release,
                slot=slot,
                from_version=plan.from_version,
                from_slot=plan.from_slot,
                started=session.stamp(),
                deliberate=plan.target.deliberate,
            )
        )
        journal = Journal(phase="staging", update=update, healthy_boot_id=facts.journal.healthy_boot_id)
        session.store.write_journal(journal)
        session.store.write_ledger(facts.ledger.without_proven(slot).with_seen(release))
        verb = "resumes staging" if resumes else "stages"
        session.record(
            "stage-began",
            f"the node {verb} release {release.version} into slot {slot}: {plan.target.why}",
            release=release,
            slot=slot,
        )

    with step(reporter, "settle-fallback", sentences["settle-fallback"]):
        node.boot.settle(plan.from_slot)

    with step(reporter, "withdraw-slot", sentences["withdraw-slot"]):
        node.boot.withdraw(slot)

    with step(reporter, "fill-slot", sentences["fill-slot"]) as said:
        filled, read_back = _fill(session, plan, ways)
        said.append(_told(filled, read_back, release))

    with step(reporter, "label-slot", sentences["label-slot"]):
        node.label_slot(slot, release.root.root_hash)

    files: dict[str, str] = {}
    with step(reporter, "place-boot-files", sentences["place-boot-files"]) as said:
        given: list[str] = []
        for file, shape in zip(release.files_of(slot), boot_files(release, slot), strict=True):
            files[file.name] = _place(session, plan, ways, file, shape, given).value
        said += [f"{name}: {way}" for name, way in files.items()]
        prove_boot_files(session, slot, release)

    with step(reporter, "record-staged", sentences["record-staged"]):
        # Ways that were barred meanwhile stand in the journal on the disk.
        update = session.store.journal().update or update
        brought = _brought(ways, filled, files, read_back)
        staged = msgspec.structs.replace(update, staged=session.stamp(), brought=brought)
        session.store.write_journal(msgspec.structs.replace(journal, phase="staged", update=staged))
        session.record("staged", f"slot {slot} holds release {release.version}, proven", release=release, slot=slot)
    return brought


def _fill(session: Session, plan: Plan, ways: WorkedOut) -> tuple[Filled, str]:
    """Fill the slot; return also how it was read back."""
    data = session.node.blocks(plan.slot, "data", writable=True)
    try:
        hashes = session.node.blocks(plan.slot, "hash", writable=True)
        try:
            return ways.fill(data, hashes), data.read_back
        finally:
            hashes.close()
    finally:
        data.close()


def _told(filled: Filled, read_back: str, release: ReleaseRecord) -> str:
    tried = ", then ".join(way.value for way in filled.ways) or "nothing to fetch"
    return (
        f"{tried}: {filled.fetched_bytes} bytes fetched, {filled.written_bytes} written, {filled.kept_bytes} were in "
        f"place; read back ({read_back}) against root hash {release.root.root_hash[:12]}…"
    )


def _brought(ways: WorkedOut, filled: Filled, files: dict[str, str], read_back: str) -> Brought:
    counters = ways.repository.fetcher.counters
    return Brought(
        [way.value for way in filled.ways],
        files,
        counters.bytes_fetched,
        counters.requests,
        counters.retries,
        filled.written_bytes,
        filled.kept_bytes,
        read_back,
    )


def _place(session: Session, plan: Plan, ways: WorkedOut, file: FileRecord, shape: BootFile, given: list[str]) -> Way:
    """Fetch one boot file to scratch, prove it, and only then let its bytes reach the ESP.

    `given` gathers the words of the command line; the UKI comes last, and is placed only when all of them together
    boot this release from this slot.
    """
    node, release = session.node, plan.release
    with node.scratch_folder() as scratch:
        path = scratch / file.name
        way = ways.fetch(file, path)
        try:
            given += _sound_words(path, file, session, release)
            if file.name == UKI_NAME:
                check_verity_words(given, _sources(plan), release=release, layout=node.layout, slot=plan.slot)
        except InvalidDocument as error:
            raise Refused(
                f"{file.name} of release {release.version} would not boot: {error.message}",
                mend=error.mend,
                reason="unsound-boot-file",
            ) from error
        node.boot.place(plan.slot, shape, _chunks(path))
    return way


def _sound_words(path: Path, file: FileRecord, session: Session, release: ReleaseRecord) -> list[str]:
    """Return the words that a sound boot file adds to the command line; raise InvalidDocument."""
    from updater.uki import check_addon, check_uki, words

    architecture = session.node.architecture
    if file.name == UKI_NAME:
        return words(check_uki(path, release, architecture).command_line)
    return words(check_addon(path, architecture, of_slot=file.slot is not None).command_line)


def _sources(plan: Plan) -> str:
    return ", ".join(file.name for file in reversed(plan.release.files_of(plan.slot)))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _planned(session: Session, facts: Facts, target: Target, manifest: Manifest, release: ReleaseRecord) -> Plan:
    node = session.node
    slot = facts.running.slot.other
    lengths = []
    for role in ("data", "hash"):
        blocks = node.blocks(slot, "data" if role == "data" else "hash")
        lengths.append(blocks.length_bytes)
        blocks.close()
    needed, free = node.boot.space_needed(slot, boot_files(release, slot))
    return make_plan(
        target=target,
        manifest=manifest,
        release=release,
        from_version=facts.running.version,
        from_slot=facts.running.slot,
        data_bytes=lengths[0],
        hash_bytes=lengths[1],
        esp_needed=needed,
        esp_free=free,
        scratch_free=node.state.free_bytes(),
        boot_partition="the ESP" if node.layout.is_uefi else "the boot partition",
    )
