"""The files of systemd-boot on an ESP, read into the loader model's state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from updater.boot import entries, loader_model
from updater.boot.entries import ENTRIES, Type1
from updater.boot.loader_model import Candidate, LoaderState
from updater.efivars import EfiVariables, read_text
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.slots import Slot
from updater.uki import read_os_release

# Where firmware finds a loader: the removable-media path, and the one that a boot option names.
LOADER_FOLDERS = ("EFI/BOOT", "EFI/systemd")
_LOADER_NAME = re.compile(r"(boot|systemd-boot)(x64|aa64)\.efi", re.IGNORECASE)
# The build puts this text into a section of its own, so that loaders can tell one another (SD_MAGIC in boot.c).
_MAGIC = re.compile(rb"#### LoaderInfo: (systemd-boot [ -~]{1,60}?) ####")
_VERSION = re.compile(r"systemd-boot ([0-9]{1,6})")
_MAX_LOADER_BYTES = 8 << 20
_MAX_CONF_BYTES = 64 * 1024
# What firmware's FAT driver or a cut leaves of our names when their long halves are lost.
_TORN_NAME = re.compile(r"[ab](_[0-9]+-[0-9]+)?~[0-9]+\.con", re.IGNORECASE)
# How images name what belongs to one slot: Azure Container Linux its addons, Trident its UKIs.
SHIPPED = "EFI/Linux"
_SLOT_ADDON = re.compile(r"slot-([ab])\b.*\.addon\.efi$")
_SLOT_NAME = re.compile(r"azl([ab])[0-9]*\.efi$")
_RECOVERED_NAME = re.compile(r"fsck[0-9]{4}\.rec", re.IGNORECASE)
_SHORT_NAME = re.compile(r"[A-Z0-9_~-]{1,8}(\.[A-Z0-9_~-]{1,3})?|[a-z0-9_~-]{1,8}(\.[a-z0-9_~-]{1,3})?")
_NEWEST_KNOWN = 262


@dataclass(frozen=True, slots=True)
class EspView:
    """What lies on an ESP, for the model and for whoever changes it.

    `files` holds every readable file in /loader/entries with its lines; `unlisted` those that the loader skips
    (damaged, or without an image); `loaders` the loaders found, path to version text; `broken` what could not be read;
    `names` all that lies in /loader/entries; `before` begins the sort keys of ours.
    """

    state: LoaderState
    files: dict[str, Type1]
    unlisted: tuple[str, ...]
    loaders: dict[str, str]
    broken: tuple[str, ...]
    names: tuple[str, ...] = ()
    before: str = ""

    def of_slot(self, slot: Slot) -> tuple[Candidate, ...]:
        """Return the entries that start `slot`, in the loader's order."""
        return tuple(entry for entry in loader_model.in_order(self.state) if entry.slot is slot)

    def files_of_slot(self, slot: Slot) -> tuple[str, ...]:
        """Return the names of all entry files of a slot, by name or by content, also damaged ones."""
        by_content = {file for file, lines in self.files.items() if lines.slot is slot}
        return tuple(file for file in self.names if file in by_content or entries.slot_of_name(file) is slot)

    def highest_generation(self) -> int:
        """Return the highest generation of any entry file, listed or not; 0 where there is none."""
        return max((lines.generation or 0 for lines in self.files.values()), default=0)


def look(esp: Directory, efi: EfiVariables, shipped: Mapping[str, Slot] | None = None) -> EspView:
    """Read an ESP and the loader's variables; never changes anything.

    `shipped` tells the slots of UKIs in /EFI/Linux that are ours, by path; None: all of them are somebody else's.
    """
    broken: list[str] = []
    ours = {entries.clean_path(path): slot for path, slot in (shipped or {}).items()}
    loaders = _loaders(esp)
    info = read_text(efi, "LoaderInfo") if efi.volatile else None
    version = loader_version(info) or min(filter(None, map(loader_version, loaders.values())), default=_NEWEST_KNOWN)
    files: dict[str, Type1] = {}
    listed: list[Candidate] = []
    unlisted = []
    names = esp.names(ENTRIES)
    for file in names:
        if not entries.is_entry_name(file):
            continue
        path = f"{ENTRIES}/{file}"
        try:
            raw = esp.read(path, limit_bytes=entries.MAX_ENTRY_BYTES)
            if raw is None:
                continue
            found = loader_model.candidate(file, raw, version=version, read_only=esp.is_read_only(path))
        except EnvironmentFailure as error:
            broken.append(f"/{path}: {error.message}")
            continue
        files[file] = entries.parse_entry(raw)
        owner = ours.get(entries.clean_path(files[file].image[-1][1])) if files[file].image else None
        if owner is not None:
            files[file] = replace(files[file], shipped=owner)
            found = replace(found, shipped=owner) if found is not None else None
        if found is not None and _exists(esp, found.path):
            listed.append(found)
        else:
            unlisted.append(file)
    listed += [replace(item, shipped=ours.get(entries.clean_path(item.path))) for item in _type2(esp, broken)]
    state = LoaderState(
        candidates=tuple(listed),
        taken=frozenset(names) - {entry.file for entry in listed},
        conf=entries.parse_loader_conf(_conf(esp, broken)),
        version=version,
        one_shot=read_text(efi, "LoaderEntryOneShot"),
        preferred=read_text(efi, "LoaderEntryPreferred"),
        default=read_text(efi, "LoaderEntryDefault"),
        sysfail=read_text(efi, "LoaderEntrySysFail"),
        last_booted=read_text(efi, "LoaderEntryLastBooted"),
        sysfail_occurred=efi.volatile and read_text(efi, "LoaderSysFailReason") is not None,
    )
    before = entries.BEFORE_SHIPPED if shipped is not None else ""
    return EspView(state, files, tuple(unlisted), loaders, tuple(broken), tuple(names), before)


def shipped_ukis(esp: Directory) -> dict[str, Slot]:
    """Return the UKIs in /EFI/Linux of which an image maker said which slot they start, by path.

    It is said by an addon for one slot (`slot-a…addon.efi` in the UKI's `.extra.d`), or by a name that ends in the
    slot's letter and a number after `azl`. Two UKIs of one slot say nothing.
    """
    found: dict[Slot, list[str]] = {slot: [] for slot in Slot}
    for file in esp.names(SHIPPED):
        slot = _shipped_slot(esp, file) if file.lower().endswith(".efi") else None
        if slot is not None:
            found[slot].append(f"{SHIPPED}/{file}")
    return {paths[0]: slot for slot, paths in found.items() if len(paths) == 1}


def orphaned_addons(esp: Directory, slot: Slot) -> tuple[str, ...]:
    """Return the folders of a slot's addons in /EFI/Linux whose UKI a cut removal took away already."""
    names = esp.names(SHIPPED)
    known = {name.lower() for name in names}
    folders = [name for name in names if name.lower().endswith(".efi.extra.d")]
    alone = [name for name in folders if name.lower().removesuffix(".extra.d") not in known]
    return tuple(f"{SHIPPED}/{name}" for name in alone if _shipped_slot(esp, name[: -len(".extra.d")]) is slot)


def _shipped_slot(esp: Directory, file: str) -> Slot | None:
    addons = (_SLOT_ADDON.match(name.lower()) for name in esp.names(f"{SHIPPED}/{file}.extra.d"))
    letters = {match[1] for match in addons if match}
    by_name = _SLOT_NAME.search(file.lower())
    if not letters and by_name:
        letters = {by_name[1]}
    return Slot(letters.pop()) if len(letters) == 1 else None


def loader_version(text: str | None) -> int | None:
    """Return the major version in `systemd-boot 262-1`, or None for another loader."""
    found = _VERSION.match(text or "")
    return int(found[1]) if found else None


def folder_records(names: Iterable[str]) -> list[int]:
    """Return how many 32-byte records FAT keeps for each name: one for a short name, else one more per 13 letters."""
    return [1 if _SHORT_NAME.fullmatch(name) else 1 + -(-len(name) // 13) for name in names]


def leftovers(esp: Directory) -> tuple[str, ...]:
    """Return paths of what no slot needs: torn halves of our own entry names, and chains recovered by fsck."""
    torn = [f"{ENTRIES}/{name}" for name in esp.names(ENTRIES) if _TORN_NAME.fullmatch(name)]
    return (*torn, *(name for name in esp.names() if _RECOVERED_NAME.fullmatch(name)))


def _exists(esp: Directory, path: str) -> bool:
    clean = re.sub(r"/+", "/", path.replace("\\", "/")).strip("/")
    try:
        return bool(clean) and esp.size(clean) is not None
    except ValueError:
        return False


def _conf(esp: Directory, broken: list[str]) -> bytes | None:
    try:
        return esp.read(entries.LOADER_CONF_PATH, limit_bytes=_MAX_CONF_BYTES)
    except EnvironmentFailure as error:
        broken.append(f"/{entries.LOADER_CONF_PATH}: {error.message}")
        return None


def _loaders(esp: Directory) -> dict[str, str]:
    found = {}
    for folder in LOADER_FOLDERS:
        for name in esp.names(folder):
            if not _LOADER_NAME.fullmatch(name):
                continue
            path = f"{folder}/{name}"
            try:
                magic = _MAGIC.search(esp.read(path, limit_bytes=_MAX_LOADER_BYTES) or b"")
            except EnvironmentFailure:
                magic = None
            found[path] = magic[1].decode() if magic else ""
    return found


def _type2(esp: Directory, broken: list[str]) -> list[Candidate]:
    """List UKIs that the loader finds by itself in /EFI/Linux; none of them is ours."""
    listed = []
    for file in esp.names("EFI/Linux"):
        low = file.lower()
        if not low.endswith(".efi") or low.startswith((".", "auto-")):
            continue
        path = f"EFI/Linux/{file}"
        try:
            release = read_os_release(esp.chunks(path))
        except EnvironmentFailure as error:
            broken.append(f"/{path}: {error.message}")
            continue
        listed += _type2_entry(file, release)
    return listed


def _type2_entry(file: str, release: Mapping[str, str] | None) -> list[Candidate]:
    """Return the entry that a UKI makes by its own os-release (`bootspec_pick_name_version_sort_key`), or none."""
    if release is None:
        return []
    title = _first(release, "PRETTY_NAME", "IMAGE_ID", "NAME", "ID")
    key = _first(release, "IMAGE_ID", "ID")
    if not title:
        return []
    version = _first(release, "IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID")
    return [Candidate(file, "type2", f"/EFI/Linux/{file}", version=version, sort_key=key or None, title=title)]


def _first(release: Mapping[str, str], *keys: str) -> str:
    return next((release[key] for key in keys if release.get(key)), "")
