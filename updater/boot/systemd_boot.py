"""The boot back end for systemd-boot with counted tries, on an ESP reached as a folder.

The arrangement, and what each state that a power cut can leave means, is in docs/systemd-boot.md. In short: an entry
changes by creating the new name, flushing, deleting the old name, flushing; never by a rename, which vfat may tear. An
entry file is either listed whole, or skipped by the loader: one cut in its creation is empty or lacks its image line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from uuid import UUID

from updater.boot import entries, loader_model, obstacles
from updater.boot.artifacts import EspArtifacts, KeepsArtifacts
from updater.boot.entries import ENTRIES, EntryName, uki_path
from updater.boot.esp import EspView, look, orphaned_addons, shipped_ukis
from updater.boot.loader_model import Candidate
from updater.boot.protocol import BootFile, BootState, Entry
from updater.efivars import EfiVariables, Forgiving, read_text
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.slots import Slot
from updater.uki import read_os_release

log = logging.getLogger(__name__)

MAX_TRIES = 9


class SystemdBoot(KeepsArtifacts):
    """Arm, commit and take back trials by the files that systemd-boot reads."""

    def __init__(
        self,
        esp: Directory,
        efi: EfiVariables,
        *,
        part_uuid: UUID | None = None,
        boot_id: str = "",
        title: str = "ACL",
        takes_over: bool = False,
    ) -> None:
        """Serve the ESP in `esp`.

        `part_uuid` is that partition's UUID, for the check that the running loader came from it. `boot_id` is the
        kernel's id of this boot, empty for a disk image; it marks entries written in this boot. `takes_over` makes the
        UKIs that an image shipped in /EFI/Linux ours, each until its slot is replaced (Type #2 entries).
        """
        self._esp = esp
        self._takes_over = takes_over
        self._artifacts = EspArtifacts(esp, self._uki)
        self._efi = efi
        self._part_uuid = part_uuid
        self._boot_id = boot_id
        self._title = title

    def read(self) -> BootState:
        """Return what the loader would do; never changes anything."""
        efi = Forgiving(self._efi)
        view = self._look(efi)
        chosen = loader_model.choose(view.state)
        booted = obstacles.booted_entry(view, efi, self._boot_id)
        info = read_text(efi, "LoaderInfo") if efi.volatile else None
        found = obstacles.obstacles(view, efi, booted, self._part_uuid)
        return BootState(
            order=tuple(_entry(candidate) for candidate in loader_model.in_order(view.state)),
            next_name=chosen.file if chosen else None,
            booted_name=booted.name,
            obstacles=(*found, *efi.failures),
            loader=info or next((text for text in view.loaders.values() if text), ""),
            notes=obstacles.notes(view, efi, booted),
            blessed=obstacles.blessed_slot(view, booted, self._boot_id),
        )

    def withdraw(self, slot: Slot) -> None:
        """Take away every boot entry of `slot`, then its artifact's files and what no slot needs."""
        view = self._look()
        doomed = view.files_of_slot(slot)
        if not [entry for entry in view.of_slot(slot.other) if entry.file not in doomed and not entry.is_bad]:
            raise EnvironmentFailure(
                f"slot {slot} is not withdrawn: no good entry of slot {slot.other} would be left",
                mend=f"write one first (settle slot {slot.other})",
                reason="no-fallback",
            )
        for file in doomed:
            self._remove(file)
        self._artifacts.remove(slot)
        if self._takes_over:
            if self._uki(slot) != uki_path(slot):
                self._artifacts.remove(slot)
            for path in orphaned_addons(self._esp, slot):
                self._esp.remove(path)

    def settle(self, slot: Slot) -> None:
        """Make the proven `slot` a good, uncounted entry that can never go bad: the fallback of a trial."""
        view = self._look()
        version, generation = self._identity(view, slot)
        self._establish(view, slot, EntryName(str(slot)), version, generation, twin=_twin(slot))

    def space_needed(self, slot: Slot, files: Iterable[BootFile]) -> tuple[int, int]:
        """Return (bytes needed, bytes that will be free once `slot` is withdrawn), both on the safe side."""
        # Entries: the new one, and a twin of the fallback's while it settles.
        return self._artifacts.space_needed(slot, files, small_files=2)

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes]) -> None:
        """Write one file of the artifact of a withdrawn `slot` (addons before the UKI) and flush it.

        It goes straight to its final name: no entry refers to it, so that nothing boots a half of it.
        """
        view = self._look()
        live = view.files_of_slot(slot) or tuple(entry.file for entry in view.of_slot(slot))
        self._artifacts.place(slot, file, chunks, live_entry=live[0] if live else None)

    def arm(self, slot: Slot, version: str, *, tries: int) -> Entry:
        """Publish a counted entry for `slot` that sorts before all others; return it."""
        if not 1 <= tries <= MAX_TRIES:
            raise ValueError(f"a trial has 1 to {MAX_TRIES} tries, not {tries}")
        view = self._look()
        name = EntryName(str(slot), tries)
        self._refuse_arming(view, slot)
        armed = self._armed(view, slot, version, name)
        if armed is None:
            generation = self._next_generation(view)
            self._remove_blank(view)
            # Whatever bears this slot's name goes first: a file of the name that a count leads to stops the counting.
            for file in view.files_of_slot(slot):
                self._remove(file)
            self._write(name, self._content(slot, version, generation))
            view = self._look()
            armed = self._armed(view, slot, version, name)
        if armed is None:
            chosen = loader_model.choose(view.state)
            self._remove(name.file)
            raise EnvironmentFailure(
                f"slot {slot} is not armed: the loader would boot {chosen.file if chosen else 'nothing'} instead",
                mend="see the boot entries in `acl-updater status`",
                reason="trial-masked",
            )
        return _entry(armed)

    def commit(self, slot: Slot, *, tries: int | None) -> None:
        """Make the running `slot` the default for good: counted anew with `tries`, or uncounted when None."""
        name = EntryName(str(slot), tries)
        view = self._look()
        if tries is not None and _stops_counting(view, slot, name):
            # By way of the uncounted name: b+3-0 next to b+2-1 could not be counted down, were power cut in between.
            self._make_first(view, slot, EntryName(str(slot)), None)
            view = self._look()
        self._make_first(view, slot, name, None)

    def condemn(self, slot: Slot) -> None:
        """Take all tries from the entry of `slot`, so that the loader prefers any other."""
        view = self._look()
        listed = view.of_slot(slot)
        if not [entry for entry in listed if not entry.is_bad]:
            return
        best = listed[0]
        version, generation = best.version, obstacles.entry_generation(best)
        name = EntryName(str(slot), 0, max(entry.name.tries_done for entry in listed))
        try:
            self._establish(view, slot, name, version, generation, twin=None)
        except EnvironmentFailure as error:
            # A full ESP must not save a bad release: without any entry it cannot boot either.
            log.warning("cannot write %s (%s): removing the entries of slot %s instead", name.file, error, slot)
            for file in self._look().files_of_slot(slot):
                self._remove(file)

    def prefer(self, slot: Slot, version: str) -> None:
        """Make the proven, uncounted `slot` sort first again (a manual rollback to the other, proven slot)."""
        view = self._look()
        self._make_first(view, slot, EntryName(str(slot)), version)

    def _look(self, efi: EfiVariables | None = None) -> EspView:
        # A rotten variable must not keep a bad release from being condemned; arming judges variables by `read`.
        return look(self._esp, efi or Forgiving(self._efi), shipped_ukis(self._esp) if self._takes_over else None)

    def _uki(self, slot: Slot) -> str:
        """Return where the slot's UKI lies: the one that the image shipped, until ours takes its place."""
        if self._takes_over and self._esp.size(uki_path(slot)) is None:
            return next((path for path, owner in shipped_ukis(self._esp).items() if owner is slot), uki_path(slot))
        return uki_path(slot)

    def _make_first(self, view: EspView, slot: Slot, name: EntryName, version: str | None) -> None:
        if not self._artifacts.is_there(slot):
            raise EnvironmentFailure(
                f"slot {slot} has no UKI (/{uki_path(slot)})", mend="stage its release again", reason="artifact-missing"
            )
        known, generation = self._identity(view, slot)
        rivals = [entry for entry in view.state.candidates if entry.slot is slot.other and not entry.is_bad]
        if any(obstacles.entry_generation(entry) >= generation for entry in rivals):
            generation = self._next_generation(view)
        twin = _twin(slot, but_not=name)
        self._establish(view, slot, name, version or known, generation, twin=twin)

    def _next_generation(self, view: EspView) -> int:
        highest = view.highest_generation()
        if highest >= entries.MAX_GENERATION:
            raise EnvironmentFailure(
                f"boot entries are at generation {highest}, the last one",
                mend=f"write the good slot's entry anew with sort-key {entries.sort_key(1)} by hand",
                reason="generations-used-up",
            )
        return highest + 1

    def _identity(self, view: EspView, slot: Slot) -> tuple[str, int]:
        """Return version and generation of a proven slot's entry; of one that was lost, by the UKI's own os-release."""
        best = max(view.of_slot(slot), key=obstacles.entry_generation, default=None)
        if best is not None:
            return best.version, obstacles.entry_generation(best)
        release = read_os_release(self._esp.chunks(self._uki(slot))) if self._artifacts.is_there(slot) else None
        if release is None or "IMAGE_VERSION" not in release:
            raise EnvironmentFailure(
                f"slot {slot} has no boot entry that the loader lists, and no sound UKI to write one for",
                mend=f"stage its release again, or write /{ENTRIES}/{slot}.conf by hand (docs/systemd-boot.md)",
                reason="entry-missing",
            )
        log.warning("slot %s has lost its boot entry: writing one for release %s", slot, release["IMAGE_VERSION"])
        return release["IMAGE_VERSION"], 0

    def _establish(
        self, view: EspView, slot: Slot, name: EntryName, version: str, generation: int, *, twin: EntryName | None
    ) -> None:
        """Leave `name` as the one entry of `slot`; with a `twin` an entry of the slot is listed at every instant."""
        content = self._content(slot, version, generation)
        taken = next((file for file in view.files if file.lower() == name.file), None)
        listed = [entry.file for entry in view.of_slot(slot)]
        keep = {name.file}
        if taken is None or not self._serves(view, taken, name, version, generation):
            self._remove_blank(view)
            if twin is not None and listed == [taken]:
                # The only entry is to be rewritten in place, which a cut leaves empty: the twin stands in meanwhile.
                self._write(twin, content)
            self._write(name, content)
        for file in self._esp.names(ENTRIES):
            belongs = file in view.files_of_slot(slot) or entries.slot_of_name(file) is slot
            if belongs and file.lower() not in keep:
                self._remove(file)

    def _remove_blank(self, view: EspView) -> None:
        """Remove our files that name no image: a cut may have left them on a cluster that the next file takes.

        Its content would then be theirs as well, and a trial's entry good under another name.
        """
        for file, lines in view.files.items():
            if not lines.image and entries.slot_of_name(file) is not None:
                self._remove(file)

    def _content(self, slot: Slot, version: str, generation: int) -> bytes:
        return entries.entry_text(
            slot,
            version,
            generation,
            title=self._title,
            boot_id=self._boot_id,
            image=self._uki(slot),
            before=entries.BEFORE_SHIPPED if self._takes_over else "",
        )

    def _serves(self, view: EspView, file: str, name: EntryName, version: str, generation: int) -> bool:
        """Tell whether an entry file already says all that it should; a good fallback's is left as it is."""
        listed = next((entry for entry in view.state.candidates if entry.file == file), None)
        if listed is None or listed.slot is not Slot(name.stem) or view.files[file].generation != generation:
            return False
        # Another maker's image key is as good as ours where nothing is to be counted.
        return listed.version == version and (name.tries_left is None or listed.kind == "linux")

    def _write(self, name: EntryName, content: bytes) -> None:
        path = f"{ENTRIES}/{name.file}"
        # Linux writes a file's name, content and place in the table in any order: a cut may leave an entry that the
        # loader starts and whose cluster the table calls free, for the next file to take. So the room is durable
        # before what is in it is an entry.
        self._esp.write_new(path, [entries.no_entry(len(content))])
        self._esp.overwrite(path, content)
        if b"".join(self._esp.chunks(path)) != content:
            raise EnvironmentFailure(
                f"/{path} does not read back as it was written",
                mend="see dmesg for errors of that disk",
                reason="io-error",
            )

    def _remove(self, file: str) -> None:
        """Remove an entry file; a cut leaves it listed as it was, or not at all.

        A name may outlive the place of its file in the table: it is no entry any more before that is given up.
        """
        path = f"{ENTRIES}/{file}"
        try:
            if length_bytes := self._esp.size(path):
                self._esp.overwrite(path, entries.no_entry(length_bytes))
        except EnvironmentFailure as error:
            log.warning("%s is removed as it is: %s", path, error)
        self._esp.remove(path)

    def _armed(self, view: EspView, slot: Slot, version: str, name: EntryName) -> Candidate | None:
        """Return the trial's entry when it is there and would boot next."""
        chosen = loader_model.choose(view.state)
        if chosen is not None and chosen.slot is slot and chosen.name == name and chosen.version == version:
            return chosen
        return None

    def _refuse_arming(self, view: EspView, slot: Slot) -> None:
        found = self.read().obstacles
        if found:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: {found[0]}", mend="then finalize again", reason="boot-obstacle"
            )
        if not self._artifacts.is_there(slot):
            raise EnvironmentFailure(
                f"slot {slot} is not armed: /{uki_path(slot)} is missing", mend="stage again", reason="artifact-missing"
            )
        fallback = [
            entry
            for entry in view.of_slot(slot.other)
            if entry.name.tries_left is None and entries.slot_of_name(entry.file) is slot.other
        ]
        if not fallback:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: slot {slot.other} has no uncounted entry to fall back to",
                mend=f"settle slot {slot.other} first",
                reason="no-fallback",
            )


def _twin(slot: Slot, *, but_not: EntryName | None = None) -> EntryName:
    """Return a counted name for a stand-in of a proven slot; should it stay behind, the next commit removes it."""
    name = EntryName(str(slot), MAX_TRIES)
    return EntryName(str(slot), MAX_TRIES - 1) if name == but_not else name


def _stops_counting(view: EspView, slot: Slot, name: EntryName) -> bool:
    """Tell whether a file of the slot bears a name that counting `name` down leads to."""
    total = (name.tries_left or 0) + name.tries_done
    others = [entries.parse_name(file) for file in view.files_of_slot(slot) if file.lower() != name.file]
    return any(other.tries_left is not None and other.tries_left + other.tries_done == total for other in others)


def _entry(candidate: Candidate) -> Entry:
    name = candidate.name
    return Entry(
        name=candidate.file,
        slot=candidate.slot,
        version=candidate.version,
        generation=obstacles.entry_generation(candidate),
        tries_left=name.tries_left,
        tries_done=name.tries_done,
    )
