"""Panic dumps that the kernel left in EFI variables (pstore), put together again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# systemd-pstore(8) moves dumps from the first to the second, below folders of its own.
ROOTS = (Path("sys/fs/pstore"), Path("var/lib/systemd/pstore"))

MAX_FILES = 2000
MAX_PART_BYTES = 1 << 16
MAX_DUMP_BYTES = 1 << 18

# drivers/firmware/efi/efi-pstore.c: the id is (time * 100 + part) * 1000 + count, in decimal. The driver was once
# called "efi".
_EFI = re.compile(r"dmesg-efi(?:_pstore)?-(\d+)(\d{2})(\d{3})")
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


def read_dumps(root: Path, known: frozenset[str]) -> list[Dump]:
    """Return the dumps that are not among the `known` names, oldest first, each whole and in the order of its lines."""
    groups: dict[tuple[str, str], dict[int, Path]] = {}
    for path in _files(root):
        if path.name in known:
            continue
        efi = _EFI.fullmatch(path.name)
        key, part = ((efi[1].zfill(24), efi[3]), int(efi[2])) if efi else ((path.name, ""), 0)
        groups.setdefault(key, {}).setdefault(part, path)
    dumps = (_joined(parts) for _, parts in sorted(groups.items()))
    return [dump for dump in dumps if dump is not None]


def _joined(parts: dict[int, Path]) -> Dump | None:
    reason = ""
    texts = []
    # The kernel writes the newest lines first: part 1 is the end of the log.
    for _, path in sorted(parts.items(), reverse=True):
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
    return Dump(tuple(sorted(path.name for path in parts.values())), reason, "\n".join(texts)[-MAX_DUMP_BYTES:])


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
