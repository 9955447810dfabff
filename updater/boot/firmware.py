"""The firmware's boot options, read into the model's state together with the files that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from updater.boot import entries, firmware_model
from updater.boot.firmware_model import FirmwareState
from updater.boot.load_option import (
    EspPlace,
    LoadOption,
    option_number,
    parse_number,
    parse_option,
    parse_order,
)
from updater.boot.protocol import Entry
from updater.efivars import GLOBAL_GUID, EfiVariables
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.slots import Slot

# What arming writes at most, and what Linux keeps for the firmware itself on x86 (EFI_MIN_RESERVE, 5 KiB).
ROOM_BYTES = 6 * 1024
_WAITS_FOR_EVER = b"\xff\xff"
_BOOT_ID_LETTERS = 8
_MARK = re.compile(r"(?:.* )?(\S+), slot ([ab]), (release|trial) ([0-9]{1,9})(?:, boot ([0-9a-z]{1,8}))?")


@dataclass(frozen=True, slots=True)
class Mark:
    """What we keep in an option's description: the release, whether it is on trial, the generation.

    `boot_id` is the head of the kernel's id of the boot that armed a trial; empty for one armed on a disk image.
    """

    slot: Slot
    version: str
    is_trial: bool
    generation: int
    boot_id: str = ""

    def description(self, title: str) -> str:
        """Return the text, as `efibootmgr` and firmware menus show it."""
        kind = "trial" if self.is_trial else "release"
        armed = f", boot {self.boot_id}" if self.boot_id else ""
        return f"{title} {self.version}, slot {self.slot}, {kind} {self.generation}{armed}"


def parse_mark(description: str) -> Mark | None:
    """Read a description of ours; None for any other."""
    found = _MARK.fullmatch(description)
    if not found:
        return None
    return Mark(Slot(found[2]), found[1], found[3] == "trial", int(found[4]), found[5] or "")


def short_boot_id(boot_id: str) -> str:
    """Return the part of a boot id that a mark keeps."""
    return boot_id.replace("-", "").lower()[:_BOOT_ID_LETTERS]


@dataclass(frozen=True, slots=True)
class FirmwareView:
    """The boot options as they stand.

    `slots` tells our options, by their path on our ESP; the first in BootOrder comes first. `booted` is BootCurrent,
    where it is to be seen. `waits` says that the firmware's menu waits for a person.
    """

    state: FirmwareState
    slots: dict[int, Slot]
    booted: int | None
    boot_id: str
    waits: bool = False
    live: bool = False

    def numbers_of(self, slot: Slot) -> tuple[int, ...]:
        """Return a slot's options, the one that the firmware would take first."""
        return tuple(number for number, owner in self.slots.items() if owner is slot)

    def option_of(self, slot: Slot) -> int | None:
        """Return the slot's option that we keep."""
        return next(iter(self.numbers_of(slot)), None)

    def mark_of(self, number: int) -> Mark | None:
        """Return our mark in an option, where it is for the slot that the option starts."""
        mark = parse_mark(self.state.options[number].description)
        return mark if mark is not None and mark.slot is self.slots.get(number) else None

    def highest_generation(self) -> int:
        """Return the highest generation of our options; 0 where there is none."""
        return max((mark.generation for number in self.slots if (mark := self.mark_of(number))), default=0)

    @property
    def passed_over(self) -> int | None:
        """Return the trial that the firmware did not take: BootNext still names it, in a later boot of another."""
        number = self.state.next_number
        if number is None or not self.live or number == self.booted or number not in self.slots:
            return None
        mark = self.mark_of(number)
        return number if mark is not None and mark.is_trial and mark.boot_id != self.boot_id else None

    @property
    def expected(self) -> FirmwareState:
        """Return the state as this firmware takes it: without a BootNext that it was seen to pass over."""
        return replace(self.state, next_number=None) if self.passed_over is not None else self.state

    def order(self) -> tuple[Entry, ...]:
        """Return the options that can boot, in the order in which the firmware would try them."""
        return tuple(self.entry(number) for number in firmware_model.in_order(self.expected))

    def entry(self, number: int) -> Entry:
        """Return an option as an entry of the protocol: a trial has one try while BootNext names it."""
        option = self.state.options[number]
        slot, mark = self.slots.get(number), self.mark_of(number)
        left, done = None, 0
        if mark is not None and mark.is_trial:
            armed = self.state.next_number == number and self.passed_over is None
            left, done = int(armed), int(not armed and self.passed_over is None)
        return Entry(
            name=f"Boot{number:04X}",
            slot=slot,
            version=mark.version if mark else option.description if slot is None else "",
            generation=mark.generation if mark else 0,
            tries_left=left,
            tries_done=done,
        )

    def foreign_first(self) -> tuple[tuple[int, LoadOption], ...]:
        """Return the active options of others that stand before the first of ours in BootOrder."""
        found = []
        for number in self.state.order:
            option = self.state.options.get(number)
            if number in self.slots and option is not None and option.is_active:
                break
            if number not in self.slots and option is not None and option.is_active:
                found.append((number, option))
        return tuple(found)


def look(esp: Directory, efi: EfiVariables, place: EspPlace, boot_id: str) -> FirmwareView:
    """Read the boot options and the files that they name; never changes anything."""
    order = parse_order(efi.read("BootOrder", GLOBAL_GUID))
    options = dict(_options(efi))
    ours: dict[int, Slot] = {}
    loadable = set()
    for number in (*order, *options):
        option = options.get(number)
        if option is None or option.path is None or option.part_uuid != place.part_uuid:
            # Another disk's: whether it starts cannot be told from here, and so far it has not.
            continue
        slot = entries.slot_of_image(option.path)
        if slot is not None:
            ours[number] = slot
        if _exists(esp, entries.uki_path(slot) if slot else option.path):
            loadable.add(number)
    return FirmwareView(
        state=FirmwareState(
            options=options,
            order=order,
            next_number=parse_number(efi.read("BootNext", GLOBAL_GUID)),
            loadable=frozenset(loadable),
        ),
        slots=ours,
        booted=parse_number(efi.read("BootCurrent", GLOBAL_GUID)) if efi.volatile else None,
        boot_id=short_boot_id(boot_id),
        waits=efi.read("Timeout", GLOBAL_GUID) == _WAITS_FOR_EVER,
        live=efi.volatile,
    )


def obstacles(view: FirmwareView, efi: EfiVariables) -> tuple[str, ...]:
    """Return one sentence with its mend for each reason not to arm a trial."""
    return tuple(_obstacles(view, efi))


def _obstacles(view: FirmwareView, efi: EfiVariables) -> Iterator[str]:
    reason = efi.writable()
    if reason is not None:
        yield f"EFI variables cannot be changed: {reason}; mount efivarfs for writing, or give --efi-vars for an image"
        return
    room = efi.free_bytes()
    if room is not None and room < ROOM_BYTES:
        yield (
            f"the store of EFI variables has {room} bytes left, a trial needs {ROOM_BYTES}; "
            "remove stale boot options (`efibootmgr -b XXXX -B`) or crash dumps (dump-type0-* in efivarfs), then reboot"
        )
    if view.live and (view.booted is None or view.booted not in view.slots):
        yield (
            f"this boot did not come from a boot option of ours but from {describe(view, view.booted)}: the firmware "
            "has not shown yet that it follows BootOrder; reboot once, and see `efibootmgr -v`"
        )
    following = view.state.next_number
    if following is not None and following not in view.slots:
        yield (
            f"BootNext names {describe(view, following)}, which the next boot would take; reboot once, or clear it "
            "with `efibootmgr -N`"
        )
    for number, _ in view.foreign_first():
        if number in view.state.loadable:
            yield (
                f"{describe(view, number)} lies on this ESP and stands before ours in BootOrder; put it behind them "
                "with `efibootmgr -o`, or make it inactive with `efibootmgr -b XXXX -A`"
            )
    if view.waits:
        yield "the firmware's boot menu waits for a person (Timeout 65535); set it with `efibootmgr -t 0`"


def notes(view: FirmwareView, efi: EfiVariables) -> tuple[str, ...]:
    """Return what is worth knowing and no reason to refuse."""
    return tuple(_notes(view, efi))


def _notes(view: FirmwareView, efi: EfiVariables) -> Iterator[str]:
    if view.passed_over is not None:
        yield (
            f"the firmware did not take BootNext: it still names {describe(view, view.passed_over)}, armed before this "
            "boot"
        )
    for number, _ in view.foreign_first():
        if number not in view.state.loadable:
            yield f"{describe(view, number)} stands before ours in BootOrder: the firmware tries it first"
    for slot in Slot:
        kept = view.option_of(slot)
        if kept is None:
            yield f"slot {slot} has no boot option; the next healthy boot or update writes one"
            continue
        if len(view.numbers_of(slot)) > 1:
            yield f"slot {slot} has {len(view.numbers_of(slot))} boot options; the next update leaves one"
        if kept not in view.state.order:
            yield f"{describe(view, kept)} is not in BootOrder: firmware may drop it"
        if view.state.options[kept].is_active and view.mark_of(kept) is None:
            yield f"{describe(view, kept)} bears no mark of ours: it counts as proven"
    if efi.volatile and efi.free_bytes() is None:
        yield "this kernel or firmware does not tell how much room the store of EFI variables has"


def describe(view: FirmwareView, number: int | None) -> str:
    """Name an option for a person."""
    if number is None:
        return "an unknown one (no BootCurrent)"
    option = view.state.options.get(number)
    return f"Boot{number:04X}" + (f" ({option.description})" if option else " (which is not there)")


def _exists(esp: Directory, path: str) -> bool:
    try:
        return esp.size(path) is not None
    except ValueError:
        return False


def _options(efi: EfiVariables) -> Iterator[tuple[int, LoadOption]]:
    for name in efi.names(GLOBAL_GUID):
        number = option_number(name)
        try:
            raw = efi.read(name, GLOBAL_GUID) if number is not None else None
        except EnvironmentFailure:
            # One rotten option must not keep a bad release from being condemned; `read` tells of it.
            continue
        option = parse_option(raw) if raw else None
        if number is not None and option is not None:
            yield number, option
