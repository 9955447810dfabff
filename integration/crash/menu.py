"""What would be started from an ESP and a variable store, in order, by systemd-boot or by the firmware alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from integration.crash.esp import Damaged, Esp
from integration.crash.variables import Name
from updater.boot import firmware_model
from updater.boot.entries import ENTRIES, EntryName, is_entry_name, parse_loader_conf, parse_name, slot_of_image
from updater.boot.firmware import parse_mark
from updater.boot.firmware_model import FirmwareState, Manner
from updater.boot.load_option import LoadOption, option_name, option_number, parse_number, parse_option, parse_order
from updater.boot.loader_model import Candidate, LoaderState, candidate, choose, in_order
from updater.efivars import GLOBAL_GUID, LOADER_GUID

_WANTED = ("LoaderEntryOneShot", "LoaderEntryPreferred", "LoaderEntryDefault")
# UEFI 2.10, 3.1.3: the firmware starts options of another category than 0 only when a person asks for them.
_CATEGORY = 0x1F00
# UEFI 2.10, 10.3.5.7: a device path that begins with a firmware volume. What lies there needs no disk.
_FIRMWARE_VOLUME = b"\x04\x07"

Values = Mapping[Name, bytes]


@dataclass(frozen=True, slots=True)
class Item:
    """What may be started: its entry file's name (or what that would be), its UKI's path, the release that it names.

    `version` is empty where it names none. `files` are all files of the ESP that it consists of.
    """

    file: str
    path: str
    version: str
    files: tuple[str, ...]

    @property
    def name(self) -> EntryName:
        """Return the name taken apart."""
        return parse_name(self.file)

    @property
    def is_bad(self) -> bool:
        """Tell whether no tries are left."""
        return self.name.tries_left == 0


@dataclass(frozen=True, slots=True)
class Menu:
    """All that may be started, in order; what would be started now; all names, also of what is not started."""

    order: tuple[Item, ...] = ()
    chosen: Item | None = None
    names: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


def chosen_by(values: Values, *, firmware: bool) -> Values:
    """Return the variables on which a menu depends."""
    if not firmware:
        return {(LOADER_GUID, name): values[LOADER_GUID, name] for name in _WANTED if (LOADER_GUID, name) in values}
    return {key: value for key, value in values.items() if key[0] == GLOBAL_GUID and _is_of_boot(key[1])}


def read_menu(esp: Esp, values: Values, *, firmware: bool) -> Menu:
    """Return what the firmware would start without a loader, or else what systemd-boot would."""
    return _firmware_menu(esp, values) if firmware else _loader_menu(esp, values)


def content(esp: Esp, path: str) -> bytes | None:
    """Return a file's bytes, None also where its clusters do not reach its end."""
    try:
        return esp.read(path)
    except Damaged:
        return None


# -- systemd-boot ----------------------------------------------------------------------------------------------------


def _loader_menu(esp: Esp, values: Values) -> Menu:
    one_shot, preferred, default = (_text(values, name) for name in _WANTED)
    state = LoaderState(
        candidates=tuple(entry for name in esp.names(ENTRIES) if (entry := _listed(esp, name)) is not None),
        conf=parse_loader_conf(esp.read("loader/loader.conf")),
        one_shot=one_shot,
        preferred=preferred,
        default=default,
    )
    chosen = choose(state)
    return Menu(
        tuple(map(_item, in_order(state))),
        _item(chosen) if chosen is not None else None,
        tuple(sorted(esp.names(ENTRIES))),
    )


def _listed(esp: Esp, name: str) -> Candidate | None:
    if not is_entry_name(name):
        return None
    path = f"{ENTRIES}/{name}"
    entry = candidate(name, content(esp, path) or b"", read_only=esp.files[path.lower()].read_only)
    return entry if entry is not None and entry.path.strip("/").lower() in esp.files else None


def _item(entry: Candidate) -> Item:
    path = entry.path.strip("/")
    return Item(entry.file, path, entry.version, (f"{ENTRIES}/{entry.file}", path))


def _text(values: Values, name: str) -> str | None:
    value = values.get((LOADER_GUID, name))
    return value.decode("utf-16-le", "replace").rstrip("\0") if value else None


# -- the firmware alone ----------------------------------------------------------------------------------------------


def _firmware_menu(esp: Esp, values: Values) -> Menu:
    options = dict(_options(values))
    order = parse_order(values.get((GLOBAL_GUID, "BootOrder")))
    following = parse_number(values.get((GLOBAL_GUID, "BootNext")))
    items = {number: item for number, option in options.items() if (item := _of_slot(number, option, following))}
    there = {number for number, item in items.items() if item.path.lower() in esp.files}
    built_in = {number for number, option in options.items() if option.device_path.startswith(_FIRMWARE_VOLUME)}
    # OVMF starts what BootNext names though it be inactive (integration/test_firmware_model.py).
    state = FirmwareState(options, order, following, frozenset(there | built_in))
    numbers = firmware_model.in_order(state, Manner.STARTS_INACTIVE)
    first = next(iter(numbers), None)
    complaints = [f"{option_name(first)} of the firmware's own stands first"] if first in built_in else []
    found = tuple(items[number] for number in numbers if number in there)
    beside = sorted(options[number].description for number in items.keys() - set(numbers))
    return Menu(
        found,
        items.get(first) if first is not None else None,
        (*(item.file for item in found), *beside),
        tuple(complaints),
    )


def _options(values: Values) -> Iterator[tuple[int, LoadOption]]:
    for (_, name), value in values.items():
        number, option = option_number(name), parse_option(value)
        if number is not None and option is not None and not option.attributes & _CATEGORY:
            yield number, option


def _of_slot(number: int, option: LoadOption, following: int | None) -> Item | None:
    """Return the item of a boot option that starts a slot's UKI: one whose mark says trial has its try in BootNext."""
    slot = slot_of_image(option.path) if option.path is not None else None
    if slot is None or option.path is None:
        return None
    mark = parse_mark(option.description)
    name, path = EntryName(slot.value), option.path.strip("/")
    if (mark is not None and mark.is_trial) or not option.is_active:
        left = int(number == following)
        name = replace(name, tries_left=left, tries_done=1 - left)
    return Item(name.file, path, mark.version if mark is not None else "", (path,))


def _is_of_boot(name: str) -> bool:
    return name in ("BootOrder", "BootNext") or option_number(name) is not None
