"""A model of systemd-boot: which entry it would boot from given files and variables, and what it changes by that.

Pure, and written after the behaviour of systemd's src/boot/boot.c, version 262 (`config_load_all_entries`,
`boot_entry_compare`, `config_select_default_entry`, `boot_entry_bump_counters`), with the older behaviour where
versions below 258 differ. Not modelled: the menu and its keys, XBOOTLDR partitions, entries from SMBIOS.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from updater.boot.entries import EntryName, LoaderConf, Type1, parse_entry, parse_name
from updater.slots import Slot

# Entries began to name UKIs by `uki`, and `efi` ones stopped being counted.
FIRST_WITH_UKI_KEY = 258
# Ids lose their counters (systemd pull request 38897, carried back as far as 257.13).
FIRST_WITH_BARE_IDS = 257
FIRST_WITH_PREFERRED = 260
_INT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry that the loader found: a Type #1 file, or a UKI in /EFI/Linux (`kind` is then `type2`).

    `shipped` is the slot of an image in /EFI/Linux that the back end took over.
    """

    file: str
    kind: str
    path: str
    version: str = ""
    sort_key: str | None = None
    machine_id: str = ""
    title: str = ""
    profile: int = 0
    read_only: bool = False
    shipped: Slot | None = None

    @property
    def name(self) -> EntryName:
        """Return the file's name taken apart."""
        return parse_name(self.file, ".efi" if self.kind == "type2" else ".conf")

    @property
    def is_bad(self) -> bool:
        """Tell whether no tries are left."""
        return self.name.tries_left == 0

    @property
    def slot(self) -> Slot | None:
        """Return the slot whose UKI it starts, or None for a foreign entry."""
        return Type1(image=((self.kind, self.path),), shipped=self.shipped).slot


@dataclass(frozen=True, slots=True)
class LoaderState:
    """All that the loader's choice depends on; `candidates` stand in the order of the folder.

    `taken` are the other file names in /loader/entries, which stand in the way of a rename. `last_booted` is the
    variable LoaderEntryLastBooted, which `@saved` means. `sysfail_occurred` is the firmware's report of a failed
    firmware update: only then is `sysfail` looked at.
    """

    candidates: tuple[Candidate, ...]
    taken: frozenset[str] = frozenset()
    conf: LoaderConf = field(default_factory=LoaderConf)
    version: int = 262
    one_shot: str | None = None
    preferred: str | None = None
    default: str | None = None
    sysfail: str | None = None
    last_booted: str | None = None
    sysfail_occurred: bool = False


def candidate(file: str, raw: bytes, *, version: int = 262, read_only: bool = False) -> Candidate | None:
    """Return what the loader makes of a Type #1 file, or None when it does not list it.

    The caller checks that the image at `path` exists: the loader drops an entry whose image is missing.
    """
    entry = parse_entry(raw)
    image = [pair for pair in entry.image if version >= FIRST_WITH_UKI_KEY or pair[0] in ("linux", "efi")]
    # Two kinds of image in one entry: version 258 refuses it, older ones take the last line.
    if not image or (version >= FIRST_WITH_UKI_KEY and len({key for key, _ in image}) > 1):
        return None
    key, path = image[-1]
    return Candidate(
        file=file,
        kind=key,
        path=path,
        version=entry.version or "",
        sort_key=entry.sort_key,
        machine_id=entry.machine_id or "",
        title=entry.title,
        profile=entry.profile,
        read_only=read_only,
    )


def entry_id(entry: Candidate, version: int) -> str:
    """Return the id that patterns are matched with."""
    return entry.name.bare_id if version >= FIRST_WITH_BARE_IDS else entry.file.lower()


def compare_versions(one: str, other: str) -> int:
    """Compare as UAPI.10 says (`strverscmp_improved`): negative when `one` is older."""
    a, b = one, other
    while True:
        a, b = _strip_invalid(a), _strip_invalid(b)
        if a.startswith("~") or b.startswith("~"):
            if a.startswith("~") != b.startswith("~"):
                return -1 if a.startswith("~") else 1
            a, b = a[1:], b[1:]
        if not a or not b:
            return (a > b) - (a < b)
        for mark in "-^.":
            if a.startswith(mark) or b.startswith(mark):
                if a.startswith(mark) != b.startswith(mark):
                    return -1 if a.startswith(mark) else 1
                a, b = a[1:], b[1:]
        digits = a[:1] in _DIGITS or b[:1] in _DIGITS
        kind = _DIGITS if digits else _LETTERS
        first, a = _leading(a, kind)
        second, b = _leading(b, kind)
        if digits:
            if bool(first) != bool(second):
                return 1 if first else -1
            first, second = first.lstrip("0"), second.lstrip("0")
            order = (len(first) > len(second)) - (len(first) < len(second)) or (first > second) - (first < second)
        else:
            order = (first > second) - (first < second)
        if order:
            return order


_DIGITS = frozenset("0123456789")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_VALID = _DIGITS | _LETTERS | frozenset("~-^.")


def _strip_invalid(text: str) -> str:
    return text.lstrip("".join(set(text) - _VALID)) if text and text[0] not in _VALID else text


def _leading(text: str, kind: frozenset[str]) -> tuple[str, str]:
    length = next((index for index, letter in enumerate(text) if letter not in kind), len(text))
    return text[:length], text[length:]


def in_order(state: LoaderState) -> tuple[Candidate, ...]:
    """Return the entries as the loader sorts them; ones that compare equal keep the folder's order."""

    def compare(one: Candidate, other: Candidate) -> int:
        return _compare(one, other, state.version)

    return tuple(sorted(state.candidates, key=functools.cmp_to_key(compare)))


def _compare(one: Candidate, other: Candidate, version: int) -> int:
    """Order two entries as `boot_entry_compare` does."""
    first, second = one.name, other.name
    order = _signum(one.is_bad, other.is_bad) or _signum(one.sort_key is None, other.sort_key is None)
    if not order and one.sort_key is not None and other.sort_key is not None:
        order = (
            _signum(one.sort_key, other.sort_key)
            or _signum(one.machine_id, other.machine_id)
            or -compare_versions(one.version, other.version)
            or _signum(one.profile, other.profile)
        )
    order = order or -compare_versions(entry_id(one, version), entry_id(other, version))
    if order or first.tries_left is None or second.tries_left is None:
        return order
    return _signum(second.tries_left, first.tries_left) or _signum(first.tries_done, second.tries_done)


def _signum(one: str | int | bool, other: str | int | bool) -> int:
    return (one > other) - (one < other)  # type: ignore[operator]


def matches(pattern: str, text: str) -> bool:
    """Tell whether a loader's glob matches (`efi_fnmatch`: `*`, `?`, `[a-z]`, backslash; no negation)."""
    starts = {0}
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "*":
            starts = set(range(min(starts), len(text) + 1)) if starts else starts
            at += 1
            continue
        accepted, at = _accepted(pattern, at)
        starts = {index + 1 for index in starts if index < len(text) and accepted(text[index])}
        if not starts:
            return False
    return len(text) in starts


class _Set:
    """The letters that one place of a glob accepts."""

    def __init__(self, ranges: Sequence[tuple[str, str]], any_letter: bool = False) -> None:
        self.ranges = tuple(ranges)
        self.any_letter = any_letter

    def __call__(self, letter: str) -> bool:
        return self.any_letter or any(low <= letter <= high for low, high in self.ranges)


def _accepted(pattern: str, at: int) -> tuple[_Set, int]:
    letter = pattern[at]
    if letter == "?":
        return _Set((), any_letter=True), at + 1
    if letter == "\\":
        escaped = pattern[at + 1 : at + 2]
        return _Set([(escaped, escaped)] if escaped else ()), at + 2
    if letter != "[":
        return _Set([(letter, letter)]), at + 1
    ranges: list[tuple[str, str]] = []
    at += 1
    first, can_range = True, True
    while at < len(pattern) and (pattern[at] != "]" or first):
        if pattern[at] == "\\":
            at += 1
            ranges += [(pattern[at], pattern[at])] if at < len(pattern) else []
            can_range = True
        elif pattern[at] == "-" and can_range and not first and pattern[at + 1 : at + 2] not in ("]", ""):
            low = pattern[at - 1]
            at += 1
            if pattern[at] == "\\":
                at += 1
            if at < len(pattern):
                ranges.append((low, pattern[at]))
            can_range = False
        else:
            ranges.append((pattern[at], pattern[at]))
            can_range = True
        first = False
        at += 1
    if at >= len(pattern):
        # A set that is never closed matches nothing.
        return _Set(()), len(pattern)
    return _Set(ranges), at + 1


def choose(state: LoaderState) -> Candidate | None:
    """Return the entry that would boot now (`config_select_default_entry`), or None: the firmware goes on."""
    order = in_order(state)
    saved = state.last_booted
    wanted: list[tuple[str | None, bool]] = []
    if state.sysfail_occurred:
        wanted.append((state.sysfail, False))
    wanted.append((state.one_shot, False))
    if state.version >= FIRST_WITH_PREFERRED:
        wanted += [(_resolved(state.preferred, saved), True), (_resolved(state.conf.preferred, saved), True)]
    wanted += [(_resolved(state.default, saved), False), (_resolved(state.conf.default, saved), False)]
    for pattern, only_with_tries in wanted:
        found = _first_match(order, pattern, state.version, only_with_tries)
        if found is not None:
            return found
    return next((entry for entry in order if entry.profile == 0), None)


def _resolved(pattern: str | None, saved: str | None) -> str | None:
    return saved if pattern is not None and pattern.lower() == "@saved" else pattern


def _first_match(
    order: Iterable[Candidate], pattern: str | None, version: int, only_with_tries: bool
) -> Candidate | None:
    if pattern is None:
        return None
    low = pattern.lower()
    for entry in order:
        if matches(low, entry_id(entry, version)) and not (only_with_tries and entry.is_bad):
            return entry
    return None


def is_counted(entry: Candidate, version: int) -> bool:
    """Tell whether the loader takes a try from this entry when it starts it.

    A file with the FAT read-only attribute is not counted, silently; `efi` entries are not from version 258 on.
    """
    kinds = ("linux", "uki", "type2") if version >= FIRST_WITH_UKI_KEY else ("linux", "efi", "type2")
    return entry.name.tries_left is not None and entry.kind in kinds and not entry.read_only


def boot(state: LoaderState) -> tuple[Candidate | None, LoaderState]:
    """Return the entry that boots, with its new name, and the state that the loader leaves behind."""
    chosen = choose(state)
    after = replace(state, one_shot=None)
    if chosen is None:
        return None, after
    started = _counted(chosen, state)
    entries = tuple(started if entry is chosen else entry for entry in state.candidates)
    uses_saved = "@saved" in ((state.default or "").lower(), (state.conf.default or "").lower())
    last_booted = entry_id(chosen, state.version) if uses_saved else None
    return started, replace(after, candidates=entries, last_booted=last_booted)


def _counted(entry: Candidate, state: LoaderState) -> Candidate:
    """Return the entry under its next name; under its old one where counting fails, since it boots all the same."""
    if not is_counted(entry, state.version):
        return entry
    name = entry.name
    left, done = max(0, (name.tries_left or 0) - 1), min(name.tries_done + 1, _INT_MAX)
    following = replace(name, tries_left=left, tries_done=done).file
    folder = {other.file.lower() for other in state.candidates if (other.kind == "type2") == (entry.kind == "type2")}
    # The firmware refuses to rename over a file that exists (seen on OVMF), damaged or not.
    if following.lower() in folder | {name.lower() for name in state.taken}:
        return entry
    return replace(entry, file=following)
