"""The boot back end for firmware alone: a UKI and a boot option for each slot, tried once by BootNext.

docs/efi-bootnext.md tells what boots in each state. In short: both slots' options stand in BootOrder always, the
proven slot's first; the other's is inactive, and its file absent, until a staged release was proven. One variable
changes at a time, and none that says already what it should, since the store wears out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace

from updater.boot import firmware, firmware_model
from updater.boot.artifacts import EspArtifacts, KeepsArtifacts
from updater.boot.entries import ENTRIES, EntryName, uki_path
from updater.boot.firmware import FirmwareView, Mark, look
from updater.boot.load_option import (
    EspPlace,
    LoadOption,
    file_option,
    option_bytes,
    option_name,
    order_bytes,
)
from updater.boot.protocol import BootFile, BootState, Entry
from updater.efivars import GLOBAL_GUID, EfiVariables, Forgiving
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.slots import Slot
from updater.uki import read_os_release

log = logging.getLogger(__name__)

TRIES = 1
_DOUBT = "perhaps the firmware did not take BootNext, or something else used it first"
_PASSED_OVER = "the firmware did not take BootNext"


class EfiBootNext(KeepsArtifacts):
    """Arm, commit and take back trials by the firmware's own variables."""

    def __init__(
        self, esp: Directory, efi: EfiVariables, place: EspPlace, *, boot_id: str = "", title: str = "ACL"
    ) -> None:
        """Serve the ESP in `esp`, which lies at `place`; `boot_id` is the kernel's id of this boot, empty for an image.

        `title` begins every description.
        """
        self._esp = esp
        self._efi = efi
        self._place = place
        self._artifacts = EspArtifacts(esp)
        self._boot_id = boot_id
        self._title = title

    def read(self) -> BootState:
        """Return what the firmware would do; never changes anything."""
        efi = Forgiving(self._efi)
        view = self._look(efi)
        order = tuple(entry if entry.version else self._with_version(entry) for entry in view.order())
        chosen = firmware_model.choose(view.expected)
        tried = any(entry.tries_left == 0 and entry.tries_done for entry in order)
        return BootState(
            order=order,
            next_name=option_name(chosen) if chosen is not None else None,
            booted_name=option_name(view.booted) if view.booted is not None else None,
            obstacles=(*firmware.obstacles(view, self._efi), *efi.failures),
            loader="the firmware's boot manager",
            notes=firmware.notes(view, efi),
            doubt=_PASSED_OVER if view.passed_over is not None else _DOUBT if tried else "",
        )

    def withdraw(self, slot: Slot) -> None:
        """Make the slot's option inactive, then remove its artifact's files and what no slot needs."""
        view = self._look()
        if not self._good(view, slot.other):
            raise EnvironmentFailure(
                f"slot {slot} is not withdrawn: no good entry of slot {slot.other} would be left",
                mend=f"write one first (settle slot {slot.other})",
                reason="no-fallback",
            )
        self._put_in_order(slot.other)
        self._forget_next(slot)
        self._put_option(slot, self._empty(slot))
        self._remove_twins(slot)
        # What a loader at the removable path started on the first boot: it would not wait for a trial.
        self._esp.remove(f"{ENTRIES}/{EntryName(str(slot)).file}")
        self._artifacts.remove(slot)

    def settle(self, slot: Slot) -> None:
        """Make the proven `slot` the default: first in BootOrder, its option active and not on trial."""
        self._make_default(slot, None)

    def space_needed(self, slot: Slot, files: Iterable[BootFile]) -> tuple[int, int]:
        """Return (bytes needed, bytes that will be free once `slot` is withdrawn), both on the safe side."""
        return self._artifacts.space_needed(slot, files, small_files=0)

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes]) -> None:
        """Write one file of the artifact of a withdrawn `slot` (addons before the UKI) and flush it."""
        view = self._look()
        live = [number for number in view.numbers_of(slot) if view.state.options[number].is_active]
        self._artifacts.place(slot, file, chunks, live_entry=option_name(live[0]) if live else None)

    def arm(self, slot: Slot, version: str, *, tries: int) -> Entry:
        """Have the next boot, and that one alone, start `slot`; return its entry.

        The firmware counts no tries: `tries` is 1.
        """
        if tries != TRIES:
            raise ValueError(f"BootNext gives a trial one try, not {tries}")
        view = self._look()
        self._refuse_arming(view, slot)
        armed = self._armed(view, slot, version)
        if armed is not None:
            return armed
        generation = view.highest_generation() + 1
        before = self._snapshot(view, slot)
        try:
            number = self._put_option(slot, before or self._empty(slot))
            self._put_in_order(slot.other)
            # BootNext before the option's mark: a cut in between leaves an inactive option, or the trial as before.
            self._write("BootNext", order_bytes((number,)))
            boot_id = firmware.short_boot_id(self._boot_id)
            self._put_option(slot, self._active(slot, Mark(slot, version, True, generation, boot_id)))
            view = self._look()
            armed = self._armed(view, slot, version)
        except EnvironmentFailure:
            self._take_back(slot, before)
            raise
        if armed is None:
            chosen = firmware_model.choose(view.expected)
            self._take_back(slot, before)
            raise EnvironmentFailure(
                f"slot {slot} is not armed: the firmware would boot {firmware.describe(view, chosen)} instead",
                mend="see the boot entries in `acl-updater status`",
                reason="trial-masked",
            )
        return armed

    def commit(self, slot: Slot, *, tries: int | None) -> None:
        """Make the running `slot` the default for good; `tries` is of no account, since the firmware counts none."""
        self._make_default(slot, None)

    def condemn(self, slot: Slot) -> None:
        """Have the firmware prefer the other slot, and never start `slot` by BootNext."""
        view = self._look()
        number = view.option_of(slot)
        if number is None or number not in view.state.loadable:
            return
        other_is_good = self._good(view, slot.other)
        try:
            self._forget_next(slot)
            if view.option_of(slot.other) in view.state.loadable:
                self._put_in_order(slot.other)
            mark = self._mark(view, slot)
            self._put_option(slot, self._active(slot, replace(mark, is_trial=True)))
        except EnvironmentFailure as error:
            chosen = firmware_model.choose(self._look().expected)
            if not other_is_good or chosen is None or view.slots.get(chosen) is not slot:
                log.warning("the boot option of slot %s keeps its mark: %s", slot, error)
                return
            # A store that takes no change must not save a bad release: without its file it cannot boot either.
            log.warning("cannot change the boot order (%s): removing the boot files of slot %s instead", error, slot)
            self._artifacts.remove(slot)

    def prefer(self, slot: Slot, version: str) -> None:
        """Make the proven `slot` the default again (a manual rollback to the other, proven slot)."""
        self._make_default(slot, version)

    # -- within --------------------------------------------------------------------------------------------------

    def _look(self, efi: EfiVariables | None = None) -> FirmwareView:
        return look(self._esp, efi or self._efi, self._place, self._boot_id)

    def _good(self, view: FirmwareView, slot: Slot) -> bool:
        entries = [entry for entry in view.order() if entry.slot is slot]
        return any(not entry.is_bad for entry in entries)

    def _make_default(self, slot: Slot, version: str | None) -> None:
        if not self._artifacts.is_there(slot):
            raise EnvironmentFailure(
                f"slot {slot} has no UKI (/{uki_path(slot)})", mend="stage its release again", reason="artifact-missing"
            )
        view = self._look()
        mark = self._mark(view, slot)
        if view.option_of(slot) is None:
            self._put_option(slot, self._active(slot, replace(mark, version=version or mark.version, is_trial=False)))
        # First the order: cut after it, this slot boots, and whoever looks sees that it is not marked as proven yet.
        self._put_in_order(slot)
        rival = view.option_of(slot.other)
        other = view.mark_of(rival) if rival is not None else None
        generation = mark.generation
        if other is not None and other.generation >= generation:
            generation = view.highest_generation() + 1
        proven = Mark(slot, version or mark.version, False, generation)
        self._put_option(slot, self._active(slot, proven))
        self._forget_next(slot)
        self._remove_twins(slot)
        if rival is None:
            # Both slots' options stand in BootOrder from the beginning: what is added later may be put first.
            self._put_option(slot.other, self._empty(slot.other))

    def _mark(self, view: FirmwareView, slot: Slot) -> Mark:
        """Return the slot's mark; of an option without one, by the UKI's own os-release."""
        number = view.option_of(slot)
        mark = view.mark_of(number) if number is not None else None
        if mark is not None:
            return mark
        version = self._version_of_uki(slot)
        if not version:
            raise EnvironmentFailure(
                f"slot {slot} has no boot option of ours, and no sound UKI to write one for",
                mend="stage its release again, or write one with `efibootmgr` (docs/efi-bootnext.md)",
                reason="entry-missing",
            )
        return Mark(slot, version, False, 1)

    def _version_of_uki(self, slot: Slot) -> str:
        release = read_os_release(self._esp.chunks(uki_path(slot))) if self._artifacts.is_there(slot) else None
        return (release or {}).get("IMAGE_VERSION", "")

    def _with_version(self, entry: Entry) -> Entry:
        return replace(entry, version=self._version_of_uki(entry.slot)) if entry.slot is not None else entry

    def _empty(self, slot: Slot) -> LoadOption:
        return file_option(self._place, uki_path(slot), f"{self._title} slot {slot}, empty", active=False)

    def _active(self, slot: Slot, mark: Mark) -> LoadOption:
        return file_option(self._place, uki_path(slot), mark.description(self._title))

    def _snapshot(self, view: FirmwareView, slot: Slot) -> LoadOption | None:
        number = view.option_of(slot)
        return view.state.options[number] if number is not None else None

    def _put_option(self, slot: Slot, option: LoadOption) -> int:
        """Give the slot's option this value, in BootOrder from its beginning; return its number."""
        view = self._look()
        number = view.option_of(slot)
        if number is None:
            taken = set(self._efi.names(GLOBAL_GUID))
            number = next(n for n in range(0x10000) if option_name(n) not in taken and n not in view.state.order)
        self._write(option_name(number), option_bytes(option))
        if number not in view.state.order:
            ours = [at for at, known in enumerate(view.state.order) if known in view.slots]
            at = ours[-1] + 1 if ours else 0
            self._write("BootOrder", order_bytes((*view.state.order[:at], number, *view.state.order[at:])))
        return number

    def _put_in_order(self, first: Slot) -> None:
        """Put the options of `first` before the other slot's, within the places that ours have in BootOrder."""
        view = self._look()
        ours = [number for number in view.state.order if number in view.slots]
        wanted = iter(sorted(ours, key=lambda number: view.slots[number] is not first))
        order = tuple(next(wanted) if number in view.slots else number for number in view.state.order)
        lost = [number for number in view.numbers_of(first) if number not in order]
        if lost:
            # Firmware that drops options leaves their number out first: ours come before what it put there.
            order = (*lost, *order)
        if order != view.state.order:
            self._write("BootOrder", order_bytes(order))

    def _remove_twins(self, slot: Slot) -> None:
        view = self._look()
        twins = view.numbers_of(slot)[1:]
        if twins:
            self._write("BootOrder", order_bytes(tuple(n for n in view.state.order if n not in twins)))
            for number in twins:
                self._efi.delete(option_name(number), GLOBAL_GUID)

    def _forget_next(self, slot: Slot) -> None:
        view = self._look()
        if view.state.next_number in view.numbers_of(slot):
            self._efi.delete("BootNext", GLOBAL_GUID)

    def _take_back(self, slot: Slot, before: LoadOption | None) -> None:
        """Undo a half-done arming as far as the store lets us; the fallback stands first in any case."""
        with contextlib.suppress(EnvironmentFailure):
            self._forget_next(slot)
        with contextlib.suppress(EnvironmentFailure):
            self._put_option(slot, before or self._empty(slot))

    def _write(self, name: str, value: bytes) -> None:
        """Set a variable of the firmware's unless it says so already, and read it back."""
        if self._efi.read(name, GLOBAL_GUID) == value:
            return
        self._efi.write(name, value, GLOBAL_GUID)
        if self._efi.read(name, GLOBAL_GUID) != value:
            raise EnvironmentFailure(
                f"the EFI variable {name} does not read back as it was written",
                mend="update the machine's firmware, or use a layout that needs no EFI variables",
                reason="efi-variables-unreliable",
            )

    def _armed(self, view: FirmwareView, slot: Slot, version: str) -> Entry | None:
        """Return the trial's entry when it is there and would boot next."""
        chosen = firmware_model.choose(view.expected)
        if chosen is None or view.slots.get(chosen) is not slot or view.state.next_number != chosen:
            return None
        entry = view.entry(chosen)
        return entry if entry.version == version and entry.tries_left == TRIES else None

    def _refuse_arming(self, view: FirmwareView, slot: Slot) -> None:
        found = self.read().obstacles
        if found:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: {found[0]}", mend="then finalize again", reason="boot-obstacle"
            )
        if not self._artifacts.is_there(slot):
            raise EnvironmentFailure(
                f"slot {slot} is not armed: /{uki_path(slot)} is missing", mend="stage again", reason="artifact-missing"
            )
        fallback = firmware_model.choose(replace(view.state, next_number=None))
        if fallback is None or view.slots.get(fallback) is not slot.other or view.entry(fallback).is_bad:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: without BootNext the firmware would boot "
                f"{firmware.describe(view, fallback) if fallback is not None else 'nothing'}, not slot {slot.other}",
                mend=f"settle slot {slot.other} first",
                reason="no-fallback",
            )


def factory_variables(place: EspPlace, version: str, slot: Slot = Slot.A, *, title: str = "ACL") -> dict[str, bytes]:
    """Return the firmware's variables of a new machine whose one proven release lies in `slot`."""
    proven = file_option(place, uki_path(slot), Mark(slot, version, False, 1).description(title))
    empty = file_option(place, uki_path(slot.other), f"{title} slot {slot.other}, empty", active=False)
    return {
        option_name(0): option_bytes(proven),
        option_name(1): option_bytes(empty),
        "BootOrder": order_bytes((0, 1)),
    }
