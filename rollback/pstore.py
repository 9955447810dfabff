"""Panic dumps that the kernel left in EFI variables (pstore), put together again."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# systemd-pstore(8) moves dumps from the first to the second, below folders of its own.
ROOTS = (Path("sys/fs/pstore"), Path("var/lib/systemd/pstore"))

MAX_FILES = 2000
MAX_PART_BYTES = 1 << 16
MAX_DUMP_BYTES = 1 << 18

# drivers/firmware/efi/efi-pstore.c: the id is (time * 100 + part) * 1000 + count, in decimal. The driver was once
# called "efi".
_EFI = re.compile(r"dmesg-efi(?:_pstore)?-(\d+)(\d{2})(\d{3})")
_DUMP_S = 30
_CLOCK_SLACK_S = 60
_HEADER = re.compile(r"\A([A-Za-z]+)#\d+ Part\d+\n")
_LEVEL = re.compile(r"^<\d+>", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Dump:
    """The end of the kernel's log as it was when the kernel gave up.

    `reason` is the kernel's own word: Panic, Oops, Emergency and the like. `files` are its parts' names.
    """

    files: tuple[str, ...]
    reason: str
    text: str


def dump_names(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the names of all parts of dumps that lie about now."""
    return tuple(sorted({path.name for path in _files(root)}))


def read_dumps(root: Path, known: frozenset[str] | None) -> list[Dump]:
    """Return the dumps that are not among the `known` names, oldest first, each whole and in the order of its lines.

    Where nobody noted what was there before (None), a dump counts when it was filed away during this boot or has not
    been yet: others may be of any age.
    """
    parts: list[_Part] = []
    others: list[Path] = []
    for path in _files(root):
        efi = _EFI.fullmatch(path.name)
        if path.name in known if known is not None else _is_old(path, root):
            continue
        if efi:
            parts.append(_Part(int(efi[3]), int(efi[1]), int(efi[2]), path))
        else:
            others.append(path)
    dumps = [_joined([part.path for part in reversed(group)]) for group in _grouped(parts)]
    dumps += [_joined([path]) for path in sorted(others)]
    return [dump for dump in dumps if dump is not None]


class _Part(NamedTuple):
    """One part of a dump: the number of the dump in its boot, the second of its writing, its own number."""

    dump: int
    second: int
    number: int
    path: Path


def _grouped(parts: Iterable[_Part]) -> list[list[_Part]]:
    """Return the parts of each dump in their order, the dumps by age.

    Every part bears the second in which it was written, and a dump may take longer than that.
    """
    groups: list[list[_Part]] = []
    for part in sorted({(part.dump, part.second, part.number): part for part in parts}.values()):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and (last.dump, last.number < part.number) == (part.dump, True)
            and part.second - last.second <= _DUMP_S
        ):
            groups[-1].append(part)
        else:
            groups.append([part])
    return sorted(groups, key=lambda group: (group[0].second, group[0].dump))


def _joined(parts: list[Path]) -> Dump | None:
    """Put parts together, the last one first: part 1 is the end of the log."""
    reason = ""
    texts = []
    for path in parts:
        try:
            with path.open("rb") as file:
                text = file.read(MAX_PART_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        header = _HEADER.match(text)
        if header:
            reason = reason or header[1]
            text = text[header.end() :]
        texts.append(_LEVEL.sub("", text).rstrip("\n\0"))
    if not texts:
        return None
    return Dump(tuple(sorted(path.name for path in parts)), reason, "\n".join(texts)[-MAX_DUMP_BYTES:])


def _is_old(path: Path, root: Path) -> bool:
    if path.is_relative_to(root / ROOTS[0]):
        return False
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        return path.stat().st_mtime < booted_s - _CLOCK_SLACK_S
    except OSError:
        return True


def _files(root: Path) -> Iterator[Path]:
    found = 0
    for base in ROOTS:
        for path in _below(root / base, depth=3):
            # A compressed part that the kernel could not open again bears another suffix.
            if path.name.startswith("dmesg-") and not path.name.endswith(".enc.z"):
                yield path
                found += 1
                if found >= MAX_FILES:
                    return


def _below(folder: Path, *, depth: int) -> Iterable[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), depth=depth - 1)
