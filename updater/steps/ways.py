"""The ways in which a release can come to this node as it is now, worked out before a stage and then executed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from updater.blocks import Blocks
from updater.errors import NetworkFailure, Untrusted, UpdaterError
from updater.facts import Facts
from updater.fill.boot_file import fetch_file
from updater.fill.boot_file_ways import Picked, Room, file_costs, pick_delta
from updater.fill.filler import Filled, Filler
from updater.fill.source_slot import SourceSlot
from updater.fill.ways import FILE_TROUBLE
from updater.format.transport import Delta, FileTransport, Transport
from updater.manifest import Manifest
from updater.plan import Plan
from updater.progress import step
from updater.records import UKI_NAME, BarredWay, FileRecord, Journal, ReleaseRecord
from updater.repository import Repository
from updater.situation import running_is_proven
from updater.steps.session import Session
from updater.verity import Progress
from updater.ways import Choice, Cost, Way, choose_way

log = logging.getLogger(__name__)

IMAGE = "image"


@dataclass(slots=True)
class WorkedOut:
    """What each way costs, which ones are chosen, and all that is needed to take them."""

    session: Session
    repository: Repository
    facts: Facts
    release: ReleaseRecord
    transport: Transport
    image: Filler
    image_costs: tuple[Cost, ...]
    image_choice: Choice
    uki_costs: tuple[Cost, ...]
    uki_choice: Choice
    uki_delta: Delta | None
    memory_bytes: int | None = None
    """What all that goes on at once may take; None where there is no limit."""

    def planned(self, plan: Plan) -> Plan:
        """Return the plan with these ways."""
        return plan.with_ways(
            self.image_costs, self.image_choice, self.uki_costs, self.uki_choice, beside_bytes=self.image.tree_bytes
        )

    def fill(self, data: Blocks, hashes: Blocks) -> Filled:
        """Fill the other slot and read it back."""
        return self.image.fill(
            data,
            hashes,
            self.image_choice,
            on_barred=lambda way, error: self._bar(way, IMAGE, error),
            progress=self.session.reporter.advance,
        )

    def fetch(self, file: FileRecord, path: Path) -> Way:
        """Write a boot file, proven, to a file of scratch; return the way that it came by."""
        is_uki = file.name == UKI_NAME
        return self._fetched(
            file,
            path,
            self.uki_choice if is_uki else Choice((Way.PLAIN,), ""),
            lambda way, error: self._bar(way, file.name, error),
            self.session.reporter.advance,
        )

    def make_uki(self, file: FileRecord, path: Path, progress: Progress) -> None:
        """Write the UKI, proven, to a file of scratch, by its delta and no other way; note nothing of a failure."""
        self._fetched(file, path, Choice((Way.DELTA,), ""), lambda way, error: None, progress)

    @property
    def uki_goes_beside(self) -> bool:
        """Tell whether the UKI's delta may be applied while the slot is filled: both fit into the memory together."""
        image = next(cost for cost in self.image_costs if cost.way is self.image_choice.taken)
        uki = next(cost for cost in self.uki_costs if cost.way is self.uki_choice.taken)
        if uki.way is not Way.DELTA:
            return False
        return self.memory_bytes is None or image.memory_bytes + uki.memory_bytes <= self.memory_bytes

    def _fetched(
        self,
        file: FileRecord,
        path: Path,
        choice: Choice,
        on_barred: Callable[[Way, UpdaterError], None],
        progress: Progress,
    ) -> Way:
        is_uki = file.name == UKI_NAME
        return fetch_file(
            self.repository.fetcher,
            file,
            self.transport.uki if is_uki else None,
            choice,
            path,
            delta=self.uki_delta if is_uki else None,
            held=lambda: self.session.node.boot.artifact_chunks(self.facts.running.slot, file.name),
            on_barred=on_barred,
            progress=progress,
            what=f"{file.name} of release {self.release.version}",
        )

    def _bar(self, way: Way, file: str, error: UpdaterError) -> None:
        """Remember that a way need not be tried again for this release."""
        session = self.session
        journal = session.store.journal()
        if journal.update is None:
            return
        barred = BarredWay(way.value, file, error.reason, error.message, session.stamp())
        others = [item for item in journal.update.barred if (item.way, item.file) != (barred.way, barred.file)]
        update = msgspec.structs.replace(journal.update, barred=[*others, barred])
        session.store.write_journal(msgspec.structs.replace(journal, update=update))
        session.record(
            "way-barred",
            f"the {way.value} way fails for the {file} of release {self.release.version}: {error.message}",
            release=self.release,
            reason=error.reason,
        )


@contextmanager
def worked_out(
    session: Session,
    repository: Repository,
    facts: Facts,
    manifest: Manifest,
    release: ReleaseRecord,
    *,
    thorough: bool,
) -> Iterator[WorkedOut]:
    """Work out the ways while both slots are open for reading; nothing is written.

    Raises Refused (`download-cap`, `no-way`), and Untrusted or NetworkFailure when not even the tree can be had.
    """
    node, slot = session.node, facts.running.slot
    proven = facts.ledger.proven_in(slot) if running_is_proven(facts) else None
    transport = transport_of(repository, manifest)
    network = node.config.network
    with ExitStack() as opened:
        running: SourceSlot | None = None
        if proven is not None:
            running = SourceSlot(
                opened.enter_context(closing(node.blocks(slot, "data"))),
                opened.enter_context(closing(node.blocks(slot, "hash"))),
                proven.release.root.as_root(),
            )
        image = Filler(
            repository.fetcher,
            repository.images(manifest.root),
            manifest.root,
            transport.root,
            source_slot=running,
            barred=barred_ways(facts.journal, release, IMAGE),
            what=f"release {release.version}",
        )
        data = opened.enter_context(closing(node.blocks(slot.other, "data")))
        hashes = opened.enter_context(closing(node.blocks(slot.other, "hash")))
        with step(session.reporter, "survey", "see what both slots hold already, and what each way would fetch"):
            costs = image.work_out(data, hashes, thorough=thorough, progress=session.reporter.advance)
        memory = spare_memory_bytes(network.max_memory_bytes)
        picked, uki_costs = _uki_costs(session, facts, release, transport.uki, memory)
        uki_least = min(cost.fetch_bytes for cost in uki_costs if cost.possible)
        boot_files = release.files_of(slot.other)
        others = image.tree_bytes + sum(file.length_bytes for file in boot_files if file.name != UKI_NAME)
        cap = network.max_download_bytes
        choice = choose_way(costs, most_bytes=cap, beside_bytes=uki_least + others, most_memory_bytes=memory)
        taken = next(cost for cost in costs if cost.way is choice.taken)
        beside = taken.fetch_bytes + others
        uki_choice = choose_way(uki_costs, most_bytes=cap, beside_bytes=beside, most_memory_bytes=memory)
        yield WorkedOut(
            session,
            repository,
            facts,
            release,
            transport,
            image,
            costs,
            choice,
            uki_costs,
            uki_choice,
            picked.delta,
            memory,
        )


def barred_ways(journal: Journal, release: ReleaseRecord, file: str) -> dict[Way, str]:
    """Return the ways that are known to fail for a file of a release, each with its reason."""
    update = journal.update
    if update is None or update.release != release:
        return {}
    known = {way.value: way for way in Way}
    return {known[item.way]: item.sentence for item in update.barred if item.file == file and item.way in known}


def held_uki(facts: Facts) -> FileRecord | None:
    """Return what is on record of the running release's UKI."""
    proven = facts.ledger.proven_in(facts.running.slot) if running_is_proven(facts) else None
    return next((file for file in proven.release.files if file.name == UKI_NAME), None) if proven else None


def spare_memory_bytes(most: int | None, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return what a way may take: half of the memory that is available without swapping, and no more than `most`.

    Where the kernel does not tell, it is `most`; None is no limit.
    """
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return most
    words = next((line.split() for line in lines if line.startswith("MemAvailable:")), [])
    if len(words) != 3 or not words[1].isdigit():
        return most
    half = int(words[1]) * 1024 // 2
    return half if most is None else min(half, most)


def transport_of(repository: Repository, manifest: Manifest) -> Transport:
    """Return how a release travels; a mirror that lacks its later deltas, or spoils them, costs only bytes."""
    try:
        return repository.transport(manifest)
    except Untrusted as failure:
        log.warning("without the later deltas: %s", failure)
    except NetworkFailure as failure:
        if failure.reason not in FILE_TROUBLE:
            raise
        log.warning("without the later deltas: %s", failure)
    return repository.transport(manifest, later=False)


def _uki_costs(
    session: Session,
    facts: Facts,
    release: ReleaseRecord,
    transport: FileTransport | None,
    memory_bytes: int | None,
) -> tuple[Picked, tuple[Cost, ...]]:
    file = next(file for file in release.files if file.name == UKI_NAME)
    room = Room(memory_bytes, session.node.state.free_bytes())
    picked = pick_delta(transport, held_uki(facts), file, room)
    return picked, file_costs(file, transport, picked, barred_ways(facts.journal, release, file.name))
