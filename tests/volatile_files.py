"""A file system in memory that tells what a power cut could leave of it, with the manners of FAT or of ext4.

What is flushed stays. Of the rest each part is kept or lost by itself: a new name, a removed one, a rename, the
content of a file. On ext4 a rename is old or new, and content that was not flushed is old, empty, short or zeros. FAT
orders nothing: a rename is old, new, both or neither, a name may be left with its short half alone, and content may be
garbage too, the bytes of another file, or a chain that ends too early and cannot be read.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

Content = bytes | None
"""The bytes of a file; None where the medium cannot read them."""

ROOT = 0
SECTOR_BYTES = 512
CLUSTER_BYTES = 4096
_SHORT_NAME = re.compile(r"[^.]{1,8}(\.[^.]{1,3})?")


class Manners(Enum):
    """Whose promises the file system keeps."""

    FAT = "fat"
    EXT4 = "ext4"


@dataclass(frozen=True, slots=True)
class File:
    """A file as programs see it (`content`), and as the medium has it for certain (`base`).

    `how` says what was done since the last flush. `reused` are bytes that were written to its clusters after its name
    was removed, while the medium may still have that name.
    """

    content: Content
    base: Content
    how: Literal["clean", "rewritten", "overwritten"] = "clean"
    stale: bytes = b""
    reused: bytes | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a folder that is not flushed yet; `target` is the new name of a rename."""

    verb: Literal["create", "remove", "rename", "rename within a sector"]
    name: str
    node: int
    target: str = ""


Names = Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as programs see it, and as the medium has it for certain; keys are compared, names are shown."""

    names: Names
    base: Names
    changes: tuple[Change, ...] = ()


Nodes = Mapping[int, File | Folder]


@dataclass(frozen=True, slots=True)
class Atom:
    """One thing that a cut keeps or loses by itself: which of `options` it is, the first one being the most lost."""

    node: int
    change: int
    options: tuple[object, ...]


class VolatileFiles:
    """The file system; every change calls `tell` once it is made, and so does every flush.

    `lies` holds the labels of flushes that do nothing: `flushed` collects all labels that were ever given.
    """

    def __init__(
        self,
        name: str,
        manners: Manners,
        files: Mapping[str, Content] | None = None,
        *,
        capacity_bytes: int = 192 << 20,
        tell: Callable[[str], None] = lambda effect: None,
        lies: frozenset[str] = frozenset(),
    ) -> None:
        """Hold `files` by path, durable."""
        self.name = name
        self.manners = manners
        self.capacity_bytes = capacity_bytes
        self.tell = tell
        self.lies = lies
        self.flushed: set[str] = set()
        self.nodes: dict[int, File | Folder] = {ROOT: Folder({}, {})}
        self._numbers = itertools.count(1)
        self._stale = b""
        for path, content in (files or {}).items():
            self._hold(path, content)

    def _hold(self, path: str, content: Content) -> None:
        *folders, last = path.split("/")
        at = ROOT
        for part in folders:
            found = self.folder(at).names.get(self.key(part))
            at = found[1] if found else self._held(at, part, Folder({}, {}))
        self._held(at, last, File(content, content))

    def _held(self, at: int, name: str, node: File | Folder) -> int:
        number = next(self._numbers)
        self.nodes[number] = node
        names = {**self.folder(at).names, self.key(name): (name, number)}
        self.nodes[at] = Folder(names, names)
        return number

    # -- looking ---------------------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """Return what names are compared by."""
        return name.lower() if self.manners is Manners.FAT else name

    def folder(self, number: int) -> Folder:
        """Return a folder."""
        node = self.nodes[number]
        assert isinstance(node, Folder)
        return node

    def file(self, number: int) -> File:
        """Return a file."""
        node = self.nodes[number]
        assert isinstance(node, File)
        return node

    def find(self, parts: tuple[str, ...]) -> int | None:
        """Return the node at a path, None where there is none; NotADirectoryError below a file."""
        at = ROOT
        for part in parts:
            node = self.nodes[at]
            if isinstance(node, File):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/".join(parts))
            found = node.names.get(self.key(part))
            if found is None:
                return None
            at = found[1]
        return at

    @property
    def files(self) -> dict[str, Content]:
        """Return all files by path, as programs see them."""
        return dict(_walk(self.nodes, {number: node.names for number, node in _folders(self.nodes)}))

    @property
    def free_bytes(self) -> int:
        """Return the bytes that can still be written."""
        used = sum(_clusters(len(node.content or b"")) for node in self.nodes.values() if isinstance(node, File))
        return self.capacity_bytes - used

    # -- changing --------------------------------------------------------------------------------------------------

    def make(self, at: int, name: str, *, is_folder: bool) -> int:
        """Make a file or folder in a folder; return its number."""
        number = next(self._numbers)
        self.nodes[number] = Folder({}, {}) if is_folder else File(b"", b"")
        self._change(at, Change("create", name, number), {self.key(name): (name, number)})
        return number

    def unlink(self, at: int, name: str) -> None:
        """Take a name away; a file's clusters are free at once."""
        folder = self.folder(at)
        shown, number = folder.names[self.key(name)]
        node = self.nodes[number]
        if isinstance(node, File) and node.content:
            self._stale = node.content
        self._change(at, Change("remove", shown, number), {}, gone=self.key(name))

    def rename(self, at: int, old: str, new: str, *, in_sector: bool = False) -> None:
        """Rename a file within its folder, in place of another where there is one.

        With `in_sector` both names lie in one sector, which is old or new.
        """
        number = self.folder(at).names[self.key(old)][1]
        change = Change("rename within a sector" if in_sector else "rename", old, number, new)
        self._change(at, change, {self.key(new): (new, number)}, gone=self.key(old))

    def truncate(self, number: int) -> None:
        """Empty a file."""
        file = self.file(number)
        if file.content == b"":
            return
        self.nodes[number] = replace(file, content=b"", how="rewritten", stale=self._stale)
        self.tell(f"{self.name}: empty a file")

    def append(self, number: int, data: bytes) -> None:
        """Write to the end of a file."""
        file = self.file(number)
        if not data:
            return
        content = (file.content or b"") + data
        if self.free_bytes < _clusters(len(content)) - _clusters(len(file.content or b"")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.nodes[number] = replace(file, content=content, how="rewritten", stale=self._stale)
        self._reuse(number, data)
        self.tell(f"{self.name}: write {len(data)} bytes")

    def overwrite(self, number: int, data: bytes) -> None:
        """Write over the beginning of a file, in the sectors that it owns."""
        file = self.file(number)
        content = data + (file.content or b"")[len(data) :]
        how: Literal["rewritten", "overwritten"] = "rewritten" if file.how == "rewritten" else "overwritten"
        self.nodes[number] = replace(file, content=content, how=how)
        self.tell(f"{self.name}: overwrite {len(data)} bytes")

    def flush(self, number: int, label: str) -> None:
        """Make a file's content, or a folder's names, durable."""
        label = f"{self.name}: {label}"
        self.flushed.add(label)
        if label in self.lies:
            return
        node = self.nodes[number]
        if isinstance(node, File):
            self.nodes[number] = replace(node, base=node.content, how="clean", stale=b"")
        else:
            self.nodes[number] = Folder(node.names, node.names)
        self._forget()
        self.tell(f"flush {label}")

    def _change(self, at: int, change: Change, added: Names, *, gone: str = "") -> None:
        folder = self.folder(at)
        names = {key: value for key, value in folder.names.items() if key != gone}
        self.nodes[at] = replace(folder, names={**names, **added}, changes=(*folder.changes, change))
        self.tell(f"{self.name}: {change.verb} {change.name}{change.target and ' to '}{change.target}")

    def _reuse(self, number: int, data: bytes) -> None:
        """Let bytes reach the clusters of files whose removal is not durable yet."""
        if self.manners is not Manners.FAT:
            return
        present = {found for _, folder in _folders(self.nodes) for _, found in folder.names.values()}
        for other, node in self.nodes.items():
            if isinstance(node, File) and other not in present and other != number:
                self.nodes[other] = replace(node, reused=data)

    def _forget(self) -> None:
        """Drop the nodes that no name leads to, neither for programs nor on the medium."""
        named = {ROOT}
        for _, folder in _folders(self.nodes):
            named |= {number for _, number in folder.names.values()} | {number for _, number in folder.base.values()}
            named |= {change.node for change in folder.changes}
        for number in [number for number in self.nodes if number not in named]:
            del self.nodes[number]


def atoms(nodes: Nodes, manners: Manners) -> Iterator[Atom]:
    """Yield what a power cut keeps or loses, each by itself."""
    for number, node in nodes.items():
        if isinstance(node, Folder):
            for index, change in enumerate(node.changes):
                yield Atom(number, index, _fates(change, manners))
        else:
            options = _contents(node, manners)
            if len(options) > 1:
                yield Atom(number, -1, options)


def after_cut(nodes: Nodes, manners: Manners, chosen: Mapping[tuple[int, int], object]) -> dict[str, Content]:
    """Return the files that a cut leaves, by path; `chosen` is an option for each atom, by its node and change."""
    names = {}
    for number, folder in _folders(nodes):
        left = dict(folder.base)
        for index, change in enumerate(folder.changes):
            _leave(left, change, chosen[number, index], manners)
        names[number] = left
    files = {}
    for path, number in _paths(nodes, names):
        node = nodes[number]
        if isinstance(node, File):
            content = chosen.get((number, -1), node.base)
            assert content is None or isinstance(content, bytes)
            files[path] = content
    return files


def _fates(change: Change, manners: Manners) -> tuple[object, ...]:
    is_fat = manners is Manners.FAT
    if change.verb == "rename" and is_fat:
        return ("old", "both", "neither", "new")
    if change.target:
        return ("old", "new")
    return ("lost", "half", "done") if is_fat and _has_long_half(change.name) else ("lost", "done")


def _leave(names: dict[str, tuple[str, int]], change: Change, fate: object, manners: Manners) -> None:
    def key(name: str) -> str:
        return name.lower() if manners is Manners.FAT else name

    if change.target:
        if fate in ("neither", "new"):
            names.pop(key(change.name), None)
        if fate == "neither":
            names.pop(key(change.target), None)
        if fate in ("both", "new"):
            names[key(change.target)] = (change.target, change.node)
        return
    if fate == "half" or (fate == "done" and change.verb == "remove"):
        names.pop(key(change.name), None)
    if fate == "half":
        short = _short_half(change.name, names)
        names[key(short)] = (short, change.node)
    if fate == "done" and change.verb == "create":
        names[key(change.name)] = (change.name, change.node)


def _contents(file: File, manners: Manners) -> tuple[Content, ...]:
    """Return what a cut could leave of a file's content, the whole of it last."""
    found: list[Content] = []
    if file.how == "overwritten" and file.base is not None and file.content is not None:
        found += _sectors_mixed(file.base, file.content)
    elif file.how == "rewritten" and file.content is not None:
        length = len(file.content)
        found += [file.base, b"", file.content[: length // 2], bytes(length)]
        if manners is Manners.FAT:
            garbage = (b"\xe5\xa5" * length)[:length]
            found += [garbage, file.stale[:length].ljust(length, b"\0"), None]
            # The first sectors arrived, and the others hold what lay there before.
            if length > SECTOR_BYTES:
                found.append(file.content[:SECTOR_BYTES] + garbage[SECTOR_BYTES:])
    if file.reused is not None and file.base is not None:
        found += [file.base, file.reused[: len(file.base)].ljust(len(file.base), b"\0"), None]
        return tuple(dict.fromkeys(found))
    return tuple(dict.fromkeys([*found, file.content if file.how != "clean" else file.base]))


def _sectors_mixed(old: bytes, new: bytes) -> list[Content]:
    """Return old bytes with every subset of the sectors of `new`, and with each changed sector unreadable as zeros."""
    places = [
        at for at in range(0, len(new), SECTOR_BYTES) if old[at : at + SECTOR_BYTES] != new[at : at + SECTOR_BYTES]
    ]
    found: list[Content] = []
    for count in range(len(places) + 1):
        for kept in itertools.combinations(places, count):
            mixed = bytearray(old)
            for at in kept:
                mixed[at : at + SECTOR_BYTES] = new[at : at + SECTOR_BYTES]
            found.append(bytes(mixed))
    for at in places:
        length = len(old[at : at + SECTOR_BYTES])
        found.insert(1, old[:at] + bytes(length) + old[at + length :])
    return found


def _has_long_half(name: str) -> bool:
    """Tell whether FAT keeps a second, short name that differs from this one by more than its case."""
    return _SHORT_NAME.fullmatch(name) is None or bool(set(name) & set("+,;=[] "))


def _short_half(name: str, taken: Mapping[str, object]) -> str:
    stem, dot, ending = name.upper().rpartition(".")
    stem, ending = (stem, ending) if dot else (ending, "")
    clean = re.sub(r"[+,;=\[\]]", "_", stem.replace(".", "").replace(" ", ""))
    names = (f"{clean[:6]}~{number}{dot}{ending[:3]}" for number in itertools.count(1))
    return next(short for short in names if short.lower() not in taken)


def _folders(nodes: Nodes) -> list[tuple[int, Folder]]:
    return [(number, node) for number, node in nodes.items() if isinstance(node, Folder)]


def _paths(nodes: Nodes, names: Mapping[int, Names], at: int = ROOT, before: str = "") -> Iterator[tuple[str, int]]:
    for name, number in names[at].values():
        if isinstance(nodes[number], Folder):
            yield from _paths(nodes, names, number, f"{before}{name}/")
        else:
            yield f"{before}{name}", number


def _walk(nodes: Nodes, names: Mapping[int, Names]) -> Iterator[tuple[str, Content]]:
    for path, number in _paths(nodes, names):
        node = nodes[number]
        assert isinstance(node, File)
        yield path, node.content


def _clusters(length: int) -> int:
    return -(-length // CLUSTER_BYTES) * CLUSTER_BYTES
