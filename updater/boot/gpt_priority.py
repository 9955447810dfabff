"""The boot back end for loaders that choose a slot by GPT priority, tries and successful (Flatcar, ChromeOS).

What each state means, and what these loaders cannot do, is in docs/gpt-priority.md. In short: both slots' bits change
in one write of the table, which is old or new at every cut; a withdrawn slot has no bits and no kernel; a counted slot
has tries and is not successful; a good one is successful and has no tries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from updater.boot import gptprio_model
from updater.boot.artifacts import UKI_NAME, EspArtifacts, KeepsArtifacts
from updater.boot.gptprio_model import HIGHEST, SlotBits, slot_bits
from updater.boot.protocol import BootFile, BootState, Entry
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.gpt import Gpt, Partition
from updater.slots import Slot

log = logging.getLogger(__name__)

FOLDER = "flatcar"  # where Flatcar's GRUB looks
_MOST_RECORD_BYTES = 512


class GptPriority(KeepsArtifacts):
    """Arm, commit and take back trials by the attributes of the slots' data partitions."""

    def __init__(
        self,
        files: Directory,
        labels: Mapping[Slot, str],
        *,
        read: Callable[[], Gpt],
        write: Callable[[Gpt], None],
    ) -> None:
        """Serve the FAT partition `files` and the disk's table.

        `labels` name the two partitions that bear the bits; `read` returns the table as it is now, `write` makes a
        changed one durable, one copy after the other.
        """
        self._files = files
        self._labels = labels
        self._read = read
        self._write = write
        self._artifacts = EspArtifacts(files, kernel_path)

    def read(self) -> BootState:
        """Return what the loader would do; never changes anything."""
        table = self._read()
        entries = [self._entry(table, slot) for slot in Slot]
        order = sorted((entry for entry in entries if entry), key=lambda entry: (entry.is_bad, -entry.generation))
        partition = self._partition(table, Slot.A)
        chosen = gptprio_model.choose(table, partition.type_guid)
        slot = self._slot_of(table, chosen)
        return BootState(
            order=tuple(order),
            next_name=next((entry.name for entry in order if entry.slot is slot), None) if slot else None,
            obstacles=self._obstacles(table),
            loader="GPT priority",
            notes=self._notes(table),
        )

    def withdraw(self, slot: Slot) -> None:
        """Take away the slot's bits, then its artifact's files: nothing boots it any more."""
        table = self._read()
        other = self._bits(table, slot.other)
        if not other.is_bootable:
            raise EnvironmentFailure(
                f"slot {slot} is not withdrawn: no good entry of slot {slot.other} would be left",
                mend=f"write one first (settle slot {slot.other})",
                reason="no-fallback",
            )
        # Alone, the other slot needs no high priority: the next trials have room above it.
        self._change({slot: SlotBits(), slot.other: replace(other, priority=1)})
        self._artifacts.remove(slot)
        self._files.remove(record_path(slot))

    def settle(self, slot: Slot) -> None:
        """Make the proven `slot` a good, uncounted entry that can never go bad: the fallback of a trial."""
        bits = self._bits(self._read(), slot)
        self._change({slot: SlotBits(max(1, bits.priority), 0, True)})

    def space_needed(self, slot: Slot, files: Iterable[BootFile]) -> tuple[int, int]:
        """Return (bytes needed, bytes that will be free once `slot` is withdrawn), both on the safe side."""
        return self._artifacts.space_needed(slot, files, small_files=1)

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes]) -> None:
        """Write one file of the artifact of a withdrawn `slot` (addons before the UKI) and flush it."""
        live = self._entry(self._read(), slot)
        self._artifacts.place(slot, file, chunks, live_entry=live.name if live else None)

    def arm(self, slot: Slot, version: str, *, tries: int) -> Entry:
        """Give `slot` tries and the highest priority; return its entry."""
        if not 1 <= tries <= HIGHEST:
            raise ValueError(f"a trial has 1 to {HIGHEST} tries, not {tries}")
        table = self._read()
        self._refuse_arming(table, slot)
        bits, rival = self._bits(table, slot), self._bits(table, slot.other)
        armed = SlotBits(bits.priority, tries, False)
        if bits != armed or bits.priority <= rival.priority or self._record(slot) != (version, tries):
            self._write_record(slot, version, tries)
            self._put_first(slot, armed, rise=True)
        entry = self.read().next_entry
        if entry is None or entry.slot is not slot or entry.tries_left != tries:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: the loader would boot {entry.name if entry else 'nothing'} instead",
                mend="see the boot entries in `acl-updater status`",
                reason="trial-masked",
            )
        return entry

    def commit(self, slot: Slot, *, tries: int | None) -> None:
        """Make the running `slot` the default for good: counted anew with `tries`, or uncounted when None."""
        self._require_kernel(slot, "is not committed")
        if not self._bits(self._read(), slot.other).is_good:
            # Two counted slots could both run out of tries, and then the loader boots nothing.
            tries = None
        version, given = self._record(slot)
        if tries is not None and given != tries:
            self._write_record(slot, version, tries)
        self._put_first(slot, SlotBits(0, tries or 0, tries is None))

    def condemn(self, slot: Slot) -> None:
        """Take all tries from the entry of `slot`, so that the loader prefers any other."""
        table = self._read()
        bits, other = self._bits(table, slot), self._bits(table, slot.other)
        if not bits.is_bootable:
            return
        if other.is_bootable:
            version, given = self._record(slot)
            self._change({slot: SlotBits(bits.priority, 0, False)})
            if given is not None and bits.tries:
                self._write_record(slot, version, max(0, given - bits.tries))
            return
        # With nothing bootable the loader stops at its prompt: a slot that may come up is better than that.
        log.warning("slot %s is condemned, but nothing else can boot: it stays as the last resort", slot)
        self._change({slot: SlotBits(1, 0, True)})

    def prefer(self, slot: Slot, version: str) -> None:
        """Make the proven, uncounted `slot` first again (a manual rollback to the other, proven slot)."""
        self._require_kernel(slot, "is not preferred")
        known, _ = self._record(slot)
        if known != version:
            self._write_record(slot, version, None)
        self._put_first(slot, SlotBits(0, 0, True))

    def _require_kernel(self, slot: Slot, what: str) -> None:
        if not self._artifacts.is_there(slot):
            raise EnvironmentFailure(
                f"slot {slot} {what}: /{self._artifacts.path(slot, UKI_NAME)} is missing",
                mend="stage its release again",
                reason="artifact-missing",
            )

    # -- the table -----------------------------------------------------------------------------------------------

    def _partition(self, table: Gpt, slot: Slot) -> Partition:
        found = table.named(self._labels[slot])
        if found is None:
            raise EnvironmentFailure(
                f"the disk has no partition labelled {self._labels[slot]!r}, which bears the boot bits of slot {slot}",
                mend="name the layout of this disk in the configuration (`layout:`)",
                reason="layout-mismatch",
            )
        return found

    def _bits(self, table: Gpt, slot: Slot) -> SlotBits:
        return slot_bits(self._partition(table, slot).attributes)

    def _slot_of(self, table: Gpt, partition: Partition | None) -> Slot | None:
        return next((slot for slot in Slot if partition and self._partition(table, slot) == partition), None)

    def _put_first(self, slot: Slot, wanted: SlotBits, *, rise: bool = False) -> None:
        """Give `slot` these bits with a priority above the other's, and with `rise` above its own of before."""
        table = self._read()
        rival = self._bits(table, slot.other)
        priority = max(self._bits(table, slot).priority + rise, rival.priority + 1)
        if priority <= HIGHEST:
            self._change({slot: replace(wanted, priority=priority)})
        else:
            # Both in one write: their order is never in doubt.
            low = min(1, rival.priority)
            self._change({slot: replace(wanted, priority=low + 1), slot.other: replace(rival, priority=low)})

    def _change(self, wanted: Mapping[Slot, SlotBits]) -> None:
        table = changed = self._read()
        for slot, bits in wanted.items():
            partition = self._partition(changed, slot)
            changed = changed.with_partition(partition.number, attributes=bits.into(partition.attributes))
        if changed.entries != table.entries or not table.consistent:
            self._write(changed)

    # -- reading -------------------------------------------------------------------------------------------------

    def _entry(self, table: Gpt, slot: Slot) -> Entry | None:
        bits = self._bits(table, slot)
        if not bits.priority:
            return None
        version, given = self._record(slot)
        left = None if bits.is_good else bits.tries
        done = max(0, (given or 0) - bits.tries) if left is not None else 0
        name = str(slot) if left is None else f"{slot}+{left}-{done}"
        return Entry(name, slot, version, bits.priority, left, done)

    def _obstacles(self, table: Gpt) -> tuple[str, ...]:
        found = []
        kind = self._partition(table, Slot.A).type_guid
        ours = {self._partition(table, slot).number for slot in Slot}
        for partition in table.partitions:
            bits = slot_bits(partition.attributes)
            if partition.type_guid == kind and partition.number not in ours and bits.is_bootable:
                found.append(
                    f"partition {partition.number} ({partition.name}) is bootable with priority {bits.priority} and is "
                    f"no slot: take its priority away (cgpt add -i {partition.number} -P 0 DISK)"
                )
        for slot in Slot:
            bits = self._bits(table, slot)
            if bits.successful and bits.tries:
                found.append(
                    f"slot {slot} is marked successful and has {bits.tries} tries: it would never fall back: "
                    f"take them away (cgpt add -i {self._partition(table, slot).number} -T 0 DISK)"
                )
        return tuple(found)

    def _notes(self, table: Gpt) -> tuple[str, ...]:
        if table.spare_array_lba is None:
            return (
                "the partition table has no room for a second list of entries before the first partition: a power cut "
                "while it is written leaves its backup only, which Linux reads only with `gpt` on its command line",
            )
        return ()

    # -- the record of a slot's release --------------------------------------------------------------------------

    def _record(self, slot: Slot) -> tuple[str, int | None]:
        """Return version and given tries as recorded beside the kernel; nothing at boot depends on it."""
        try:
            raw = self._files.read(record_path(slot), limit_bytes=_MOST_RECORD_BYTES)
        except EnvironmentFailure:
            raw = None
        words = (raw or b"").decode("ascii", "replace").split()
        if len(words) != 3 or words[2] != "." or not words[1].isdigit():
            return "", None
        return words[0], int(words[1])

    def _write_record(self, slot: Slot, version: str, tries: int | None) -> None:
        self._files.write_new(record_path(slot), [record_text(version, tries or 0)])

    def _refuse_arming(self, table: Gpt, slot: Slot) -> None:
        found = self._obstacles(table)
        if found:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: {found[0]}", mend="then finalize again", reason="boot-obstacle"
            )
        self._require_kernel(slot, "is not armed")
        if not self._bits(table, slot.other).is_good:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: slot {slot.other} has no uncounted entry to fall back to",
                mend=f"settle slot {slot.other} first",
                reason="no-fallback",
            )


def kernel_path(slot: Slot) -> str:
    """Return where the loader looks for a slot's kernel or UKI."""
    return f"{FOLDER}/vmlinuz-{slot}"


def record_path(slot: Slot) -> str:
    """Return where the release of a slot is recorded; nothing at boot depends on it."""
    return f"{FOLDER}/release-{slot}"


def record_text(version: str, tries: int = 0) -> bytes:
    """Return the record of a slot's release: its version, the tries that it was given, and a dot that ends it."""
    return f"{version} {tries} .\n".encode()
