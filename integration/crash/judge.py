"""What a disk would do if its power came back now, judged from outside, by tools that are not the product's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from integration.crash.medium import Medium
from integration.images.tooltree import ToolTree, tool_tree
from integration.lab.fat import FatReader, Torn
from updater import gpt
from updater.boot.entries import ENTRIES, is_entry_name
from updater.boot.loader_model import Candidate, LoaderState, candidate, choose, in_order
from updater.errors import EnvironmentFailure
from updater.run import run

_OWN_FOLDER = "lib/acl-updater"
_CORRECTED = (0, 1)
# What fsck.vfat says of an ESP that a cut left, and that no reader minds: a chain that no name points to is wasted
# room; the dirty bit, the free count and a differing boot-sector copy are hints.
_HARMLESS = (
    "Dirty bit is set",
    "Free cluster summary",
    "Reclaimed",
    "Reclaiming",
    "unused cluster",
    "There are differences between boot sector and its backup",
    "differences:",
    "Not automatically fixing",
    "Leaving filesystem unchanged",
    "Orphaned long file name part",
    "fsck.fat",
    "files,",
)


@dataclass(frozen=True, slots=True)
class Image:
    """A release as its manifest pins it."""

    number: int
    version: str
    root_hash: str
    uki_sha256: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What one state would do: the entries in the loader's order, the slot that boots, and what is wrong.

    `signature` is equal for states between which neither the loader nor the updater could tell a difference that
    matters; `complaints` must be empty.
    """

    order: tuple[str, ...]
    boots: str | None
    signature: str
    complaints: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the state partition remembers once its journal is replayed: the phase, and (slot, version) proven."""

    phase: str
    proven: tuple[tuple[str, str], ...]
    complaints: tuple[str, ...]


@dataclass(slots=True)
class Judge:
    """Judges the states of one medium; remembers what it found for equal regions."""

    medium: Medium
    releases: Mapping[str, Image]
    disk_bytes: int
    hash_offset: int
    scratch: Path
    tools: ToolTree = field(default_factory=tool_tree)
    _loader: dict[tuple[int, int, int, int, int], Judged] = field(default_factory=dict)
    _slots: dict[tuple[str, int, int], str | None] = field(default_factory=dict)
    _memories: dict[int, Memory] = field(default_factory=dict)

    def judge(self, *, with_state: bool) -> Judged:
        """Return what the medium would do as it is now; `with_state` also replays the state partition's journal."""
        prints = self.medium.prints
        key = (prints["head"], prints["tail"], prints["esp"], prints["slot-a"], prints["slot-b"])
        found = self._loader.get(key)
        if found is None:
            found = self._loader[key] = self._judge_loader()
        if not with_state:
            return found
        memory = self._remembered()
        complaints = (*found.complaints, *memory.complaints, *_untrue(found, memory))
        return replace(found, signature=f"{found.signature} {memory.phase}", complaints=complaints)

    @property
    def count(self) -> int:
        """Return how many states of table, ESP and slots were really looked at."""
        return len(self._loader)

    # -- the loader's side ---------------------------------------------------------------------------------------

    def _judge_loader(self) -> Judged:
        complaints: list[str] = []
        remarks = self._fsck(complaints)
        try:
            table = gpt.parse(self.medium.read, self.disk_bytes, 512)
        except EnvironmentFailure as error:
            return Judged((), None, "no table", (f"no table: {error.message}",))
        if not table.primary_ok:
            complaints.append("the primary table is not valid: Linux finds no partition")
        esp = FatReader(self.medium.path("esp"), 0)
        try:
            listed = self._listed(esp)
        except Torn as error:
            return Judged((), None, "torn ESP", (f"the ESP cannot be read: {error}",))
        state = LoaderState(candidates=tuple(listed))
        order = in_order(state)
        chosen = choose(state)
        if chosen is None:
            complaints.append("the loader finds nothing to boot")
        uuids = {partition.name: partition.unique_guid for partition in table.partitions}
        for entry in order:
            if not entry.is_bad:
                why = self._why_unfit(esp, entry.path.strip("/"), entry.version, uuids)
                if why:
                    complaints.append(f"{entry.file} may be booted, but {why}")
        files = tuple(entry.file for entry in order)
        boots = _slot(chosen.path) if chosen else None
        torn = sorted(name for name in esp.names(ENTRIES) if name not in files)
        signature = f"{files} {torn} table {'whole' if table.consistent else 'half'}"
        versions = {slot: entry.version for entry in reversed(order) if (slot := _slot(entry.path))}
        return Judged(files, boots, signature, tuple(complaints), remarks, versions)

    def _listed(self, esp: FatReader) -> list[Candidate]:
        found = []
        for name in esp.names(ENTRIES):
            if is_entry_name(name):
                entry = candidate(name, esp.read(f"{ENTRIES}/{name}") or b"")
                if entry is not None and esp.read(entry.path.strip("/"), limit_bytes=1) is not None:
                    found.append(entry)
        return found

    def _why_unfit(self, esp: FatReader, path: str, version: str, uuids: Mapping[str, UUID]) -> str | None:
        """Return why an entry's slot is not exactly a release that was published, or None."""
        slot, image = _slot(path), self.releases.get(version)
        if image is None or slot is None:
            return f"its version {version!r} or its image {path} is unknown"
        digest = hashlib.sha256(esp.read(path) or b"").hexdigest()
        if digest != image.uki_sha256:
            return f"{path} is not the UKI of {version}"
        data, tree = uuids.get(f"root-{slot}"), uuids.get(f"root-{slot}-verity")
        if (data, tree) != (UUID(image.root_hash[:32]), UUID(image.root_hash[-32:])):
            return f"the table does not lead from {version}'s root hash to slot {slot}"
        return self._slot_damage(slot, image.root_hash)

    def _slot_damage(self, slot: str, root_hash: str) -> str | None:
        key = (slot, int(root_hash[:16], 16), self.medium.prints[f"slot-{slot}"])
        if key not in self._slots:
            both = self.medium.path(f"slot-{slot}")
            veritysetup = self.tools.tool("veritysetup")
            done = run([veritysetup, "verify", f"--hash-offset={self.hash_offset}", both, both, root_hash], check=False)
            self._slots[key] = f"slot {slot} is damaged: {_last(done.stderr)}" if done.returncode else None
        return self._slots[key]

    def _fsck(self, complaints: list[str]) -> tuple[str, ...]:
        done = run([self.tools.tool("fsck.vfat"), "-n", self.medium.path("esp")], check=False)
        if done.returncode > 1:
            complaints.append(f"fsck.vfat cannot read the ESP: {_last(done.stderr)}")
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        # What follows a complaint is indented: the choices that an interactive run would offer.
        said = (line.strip() for line in lines if line.strip() and not line.startswith(" "))
        return tuple(line for line in said if not any(harmless in line for harmless in _HARMLESS))

    # -- the updater's side --------------------------------------------------------------------------------------

    def _remembered(self) -> Memory:
        fingerprint = self.medium.prints["state"]
        if fingerprint not in self._memories:
            self._memories[fingerprint] = self._read_memory()
        return self._memories[fingerprint]

    def _read_memory(self) -> Memory:
        copy = self.scratch / "state.img"
        run(["cp", "--sparse=always", "--", self.medium.path("state"), copy])
        done = run([self.tools.tool("e2fsck"), "-p", copy], check=False)
        if done.returncode not in _CORRECTED:
            return Memory("lost", (), (f"e2fsck gives up on the state partition: {_last(done.stdout)}",))
        documents, complaints = {}, []
        for name in ("journal", "ledger"):
            raw = run([self.tools.tool("debugfs"), "-R", f"cat {_OWN_FOLDER}/{name}.json", copy]).stdout
            try:
                documents[name] = json.loads(raw)["body"] if raw else {}
            except (ValueError, KeyError):
                # A name that reached the disk before its content did.
                complaints.append(f"{name}.json is corrupt")
        phase = str(documents.get("journal", {}).get("phase", "none"))
        proven = {item["slot"]: item["release"]["version"] for item in documents.get("ledger", {}).get("proven", [])}
        return Memory(phase, tuple(sorted(proven.items())), tuple(complaints))


def _untrue(found: Judged, memory: Memory) -> Iterator[str]:
    """Tell what the journal does not say, and must: a trial nobody knows of could never be judged."""
    proven = dict(memory.proven)
    if found.boots is not None and memory.phase in ("idle", "none"):
        version = found.versions.get(found.boots)
        if proven and proven.get(found.boots) != version:
            yield f"slot {found.boots} ({version}) would boot, the journal knows of no update, the ledger of no proof"


def _last(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()[-200:]


def _slot(path: str) -> str | None:
    found = path.rsplit("/", 1)[-1].removesuffix(".efi")
    return found if found in ("a", "b") else None
