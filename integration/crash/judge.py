"""What a disk would do if its power came back now, judged from outside, by tools that are not the product's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from integration.crash.esp import Damaged, Esp
from integration.crash.medium import Medium
from integration.crash.memory import MemoryReader, body_of, untrue
from integration.crash.menu import Item, Menu, Values, chosen_by, content, read_menu
from integration.crash.variables import Name, Variables, read_variables
from integration.images.tooltree import ToolTree, tool_tree
from updater import gpt
from updater.errors import EnvironmentFailure
from updater.run import run

# What fsck.vfat says of an ESP that a cut left, and that no reader minds: a chain that no name points to is wasted
# room; the dirty bit, the free count and a differing boot-sector copy are hints.
_HARMLESS = (
    "Dirty bit is set",
    "Free cluster summary",
    "Reclaimed",
    "Reclaiming",
    "unused cluster",
    "There are differences between boot sector and its backup",
    "ifferences:",
    "Not automatically fixing",
    "Leaving filesystem unchanged",
    "Orphaned long file name part",
    "fsck.fat",
    "files,",
)
# A folder on the ESP in which a recording may change names; what begins with F only fills it.
RENAMES = "renames"
_NUMBER = re.compile(r"\d+")
_LEDGERS = ("EFI/acl/ledger-0.json", "EFI/acl/ledger-1.json")
# What an update, the loader or the firmware may write; all other files of an ESP stay as they were.
_CHANGING = ("efi/acl/", "loader/entries/", "loader/random-seed")


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

    `loader` is equal for states between which the loader could not tell a difference that matters; `names` are all
    that lies among the entries, and `phase` is the journal's. `complaints` must be empty.
    """

    order: tuple[str, ...]
    names: tuple[str, ...]
    boots: str | None
    loader: str
    complaints: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What lies on the ESP: what may be started, the digests of the UKIs for that, and the ledger's copies."""

    menu: Menu = field(default_factory=Menu)
    digests: Mapping[str, str] = field(default_factory=dict)
    ledgers: tuple[Mapping[str, Any], ...] = ()
    complaints: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(slots=True)
class Judge:
    """Judges the states of one medium; remembers what it found for equal regions, and looks at no region twice.

    `firmware` says that the machine boots by its firmware alone.
    """

    medium: Medium
    releases: Mapping[str, Image]
    disk_bytes: int
    hash_offset: int
    scratch: Path
    firmware: bool = False
    tools: ToolTree = field(default_factory=tool_tree)
    _tables: dict[tuple[int, int], gpt.Gpt | str] = field(default_factory=dict)
    _esps: dict[tuple[int, frozenset[tuple[Name, bytes]]], _Seen] = field(default_factory=dict)
    _checks: dict[bytes, tuple[str | None, tuple[str, ...]]] = field(default_factory=dict)
    _digests: dict[tuple[object, ...], str] = field(default_factory=dict)
    _slots: dict[tuple[str, str, int], str | None] = field(default_factory=dict)
    _stores: dict[int, Variables] = field(default_factory=dict)
    _loaders: dict[tuple[int, ...], Judged] = field(default_factory=dict)
    _unchanging: Mapping[str, str] = field(default_factory=dict)
    _memories: MemoryReader = field(init=False)
    _variables: set[tuple[UUID, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._memories = MemoryReader(self.tools.tool, self.scratch)
        esp = Esp(self.medium.reader("esp"))
        self._unchanging = {
            key: self._digest(esp, file.path) for key, file in esp.files.items() if not key.startswith(_CHANGING)
        }
        self._variables = set(self.variables().values)

    def judge(self) -> Judged:
        """Return what the medium would do as it is now."""
        prints = self.medium.prints
        key = tuple(prints[name] for name in ("head", "tail", "esp", "slot-a", "slot-b", "store"))
        found = self._loaders.get(key)
        if found is None:
            found = self._loaders[key] = self._judge_loader()
        return self._with_memory(found)

    def looked_at(self) -> dict[str, int]:
        """Return how many states of each part were really looked at."""
        return {
            "tables": len(self._tables),
            "ESPs": len(self._esps),
            "ESP structures, by fsck.vfat": len(self._checks),
            "slots, by veritysetup": len(self._slots),
            "state partitions, by e2fsck": self._memories.count,
            "of them after a full repair": self._memories.repaired,
            "variable stores": len(self._stores),
        }

    def variables(self) -> Variables:
        """Return what the firmware finds in the medium's variable store."""
        fingerprint = self.medium.prints["store"]
        if fingerprint not in self._stores:
            region = next(region for region in self.medium.regions if region.name == "store")
            self._stores[fingerprint] = read_variables(self.medium.read(region.offset, region.length_bytes))
        return self._stores[fingerprint]

    # -- what boots ----------------------------------------------------------------------------------------------

    def _judge_loader(self) -> Judged:
        prints = self.medium.prints
        complaints: list[str] = []
        if prints["slot-a"]:
            complaints.append("the running slot was written to")
        seen = self._seen()
        order, chosen, names = seen.menu.order, seen.menu.chosen, seen.menu.names
        complaints += seen.complaints
        table = self._table()
        if isinstance(table, str):
            return Judged((), names, None, "no table", (*complaints, table), seen.remarks)
        if not table.primary_ok:
            complaints.append("the primary table is not valid: Linux finds no partition")
        if chosen is None:
            complaints.append("the loader finds nothing to boot")
        elif not any(entry.name.tries_left is None for entry in order):
            complaints.append("every entry is on trial: none that is proven is left to fall back to")
        uuids = {partition.name: partition.unique_guid for partition in table.partitions}
        for entry in _that_may_boot(seen.menu):
            why = self._why_unfit(entry, seen.digests, uuids)
            if why:
                complaints.append(f"{entry.file} may be booted, but {why}")
        store = self.variables()
        if not store.whole:
            complaints.append("the firmware finds no variable store")
        complaints += [f"the variable {name} is lost" for _, name in sorted(self._variables - set(store.values))]
        files = tuple(entry.file for entry in order)
        torn = sorted(name for name in set(names) - set(files) if "/" not in name)
        loader = f"{', '.join(files)}{f' beside {torn}' if torn else ''}, table {_state_of(table)}"
        boots = _slot(chosen.path) if chosen else None
        return Judged(files, names, boots, loader, tuple(complaints), seen.remarks)

    def _table(self) -> gpt.Gpt | str:
        key = (self.medium.prints["head"], self.medium.prints["tail"])
        if key not in self._tables:
            try:
                self._tables[key] = gpt.parse(self.medium.read, self.disk_bytes, 512)
            except EnvironmentFailure as error:
                self._tables[key] = f"no table: {error.message}"
        return self._tables[key]

    def _seen(self) -> _Seen:
        values = chosen_by(self.variables().values, firmware=self.firmware)
        key = (self.medium.prints["esp"], frozenset(values.items()))
        if key not in self._esps:
            try:
                self._esps[key] = self._look(Esp(self.medium.reader("esp")), values)
            except Damaged as error:
                self._esps[key] = _Seen(complaints=(f"the ESP cannot be read: {error}",))
        return self._esps[key]

    def _look(self, esp: Esp, values: Values) -> _Seen:
        problem, remarks = self._fsck(esp.structure)
        complaints = [problem] if problem else []
        for key, digest in self._unchanging.items():
            file = esp.files.get(key)
            if file is None or self._digest(esp, file.path) != digest:
                complaints.append(f"{key} on the ESP is not what it was")
        menu = read_menu(esp, values, firmware=self.firmware)
        complaints += menu.complaints
        may_boot = _that_may_boot(menu)
        for path in (path for entry in may_boot for path in entry.files):
            if not esp.is_owner(esp.files[path.lower()]):
                complaints.append(
                    f"{path} may be booted, and the next file takes its clusters: the table has them free"
                )
        digests = {entry.path: self._digest(esp, entry.path) for entry in may_boot}
        bodies = (body_of(content(esp, path)) for path in _LEDGERS)
        return _Seen(
            self._named(replace(menu, names=(*menu.names, *_renamed(esp))), digests),
            digests,
            tuple(body for body in bodies if body),
            tuple(complaints),
            remarks,
        )

    def _named(self, menu: Menu, digests: Mapping[str, str]) -> Menu:
        """Return a menu whose items all name a release: the published one that their UKI is, where they name none."""

        def named(item: Item) -> Item:
            digest = digests.get(item.path)
            known = (image.version for image in self.releases.values() if image.uki_sha256 == digest)
            return item if item.version else replace(item, version=next(known, ""))

        return replace(menu, order=tuple(map(named, menu.order)), chosen=named(menu.chosen) if menu.chosen else None)

    def _digest(self, esp: Esp, path: str) -> str:
        """Return a file's SHA-256, computed once for each place and content."""
        try:
            extents = esp.extents(esp.files[path.lower()])
        except Damaged as error:
            return str(error)
        key = (*extents, self.medium.print_of("esp", extents))
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(esp.read(path) or b"").hexdigest()
        return self._digests[key]

    def _why_unfit(self, entry: Item, digests: Mapping[str, str], uuids: Mapping[str, UUID]) -> str | None:
        """Return why an entry's slot is not exactly a release that was published, or None."""
        slot, image = _slot(entry.path), self.releases.get(entry.version)
        if image is None or slot is None:
            return f"its version {entry.version!r} or its image {entry.path} is unknown"
        if digests[entry.path] != image.uki_sha256:
            return f"{entry.path} is not the UKI of {entry.version}"
        data, tree = uuids.get(f"root-{slot}"), uuids.get(f"root-{slot}-verity")
        if (data, tree) != (UUID(image.root_hash[:32]), UUID(image.root_hash[-32:])):
            return f"the table does not lead from {entry.version}'s root hash to slot {slot}"
        return self._slot_damage(slot, image.root_hash)

    def _slot_damage(self, slot: str, root_hash: str) -> str | None:
        key = (slot, root_hash, self.medium.prints[f"slot-{slot}"])
        if key not in self._slots:
            both = self.medium.path(f"slot-{slot}")
            verify: list[str | Path] = [self.tools.tool("veritysetup"), "verify", f"--hash-offset={self.hash_offset}"]
            done = run([*verify, both, both, root_hash], check=False, timeout_s=600)
            self._slots[key] = f"slot {slot} is damaged: {_last(done.stderr)}" if done.returncode else None
        return self._slots[key]

    def _fsck(self, structure: bytes) -> tuple[str | None, tuple[str, ...]]:
        if structure not in self._checks:
            done = run([self.tools.tool("fsck.vfat"), "-n", self.medium.path("esp")], check=False)
            problem = f"fsck.vfat cannot read the ESP: {_last(done.stderr)}" if done.returncode > 1 else None
            self._checks[structure] = (problem, tuple(_remarks(done.stdout.decode("utf-8", "replace").splitlines())))
        return self._checks[structure]

    # -- what is remembered --------------------------------------------------------------------------------------

    def _with_memory(self, found: Judged) -> Judged:
        memory = self._memories.read(self.medium.prints["state"], self.medium.path("state"))
        seen = self._seen()
        trials = tuple(_held(entry) for entry in seen.menu.order if entry.name.tries_left)
        boots = _held(seen.menu.chosen) if seen.menu.chosen else None
        wrong = (*memory.complaints, *untrue(boots, trials, memory, seen.ledgers))
        return Judged(
            found.order,
            found.names,
            found.boots,
            found.loader,
            (*found.complaints, *wrong),
            found.remarks,
            memory.phase,
        )


def _remarks(lines: Iterable[str]) -> Iterator[str]:
    """Yield what fsck.vfat complains of; a complaint about a file is its path, and what it is in the next line."""
    file = ""
    for line in lines:
        if line.startswith("/"):
            file = line.strip()
        elif file and line.startswith(" "):
            yield f"{file}: {_NUMBER.sub('N', line.strip())}"
            file = ""
        elif line.strip() and not line.startswith(" ") and not any(harmless in line for harmless in _HARMLESS):
            yield line.strip()


def _that_may_boot(menu: Menu) -> tuple[Item, ...]:
    return tuple(entry for entry in menu.order if not entry.is_bad or entry == menu.chosen)


def _renamed(esp: Esp) -> list[str]:
    return [f"{RENAMES}/{name}" for name in sorted(esp.names(RENAMES)) if not name.startswith("F")]


def _held(entry: Item) -> tuple[str, str]:
    return _slot(entry.path) or "?", entry.version


def _slot(path: str) -> str | None:
    found = path.rsplit("/", 1)[-1].removesuffix(".efi")
    return found if found in ("a", "b") else None


def _state_of(table: gpt.Gpt) -> str:
    return "whole" if table.consistent else "half written"


def _last(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()[-200:]
