"""The boot back end for GRUB with the script that ships here, for machines with or without UEFI.

What lies where, and what a power cut leaves, is in docs/grub.md. In short: all that decides is in one sector of an
environment block, overwritten in place and kept twice; a slot that was never armed has no start file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from updater.boot import grub_model
from updater.boot.artifacts import UKI_NAME, EspArtifacts, KeepsArtifacts
from updater.boot.entries import uki_path
from updater.boot.grub_block import BLOCK_BYTES, MAX_GENERATION, Block, SlotState, block_bytes, parse_block
from updater.boot.grub_model import GrubState
from updater.boot.grub_start import start_text
from updater.boot.protocol import BootFile, BootState, Entry
from updater.errors import EnvironmentFailure, InvalidDocument
from updater.files import Directory
from updater.slots import Slot
from updater.uki import read_os_release

BLOCKS = ("acl/env-1", "acl/env-2")
SCRIPT = "grub/acl.cfg"
CONFIG = "grub/grub.cfg"
MAX_TRIES = 9
_SHIPPED = Path(__file__).parent / "grub/acl.cfg"
_CALL = re.compile(rb"^[ \t]*source [^\n]*acl\.cfg[ \t\"]*$", re.MULTILINE)
_TOLD = re.compile(r"acl\.(slot|tries_left)=([a-z0-9]+)")
_MOST_SCRIPT_BYTES = 64 * 1024


_NO_ENTRIES = Block(SlotState(), SlotState())


def shipped_script() -> bytes:
    """Return the GRUB script that this back end goes with."""
    return _SHIPPED.read_bytes()


def start_path(slot: Slot) -> str:
    """Return where the lines lie by which GRUB starts a slot."""
    return f"acl/{slot}.cfg"


def grub_uki_path(slot: Slot) -> str:
    """Return where a slot's UKI lies: where systemd-boot's would, so that one folder serves both."""
    return uki_path(slot)


class GrubEnv(KeepsArtifacts):
    """Arm, commit and take back trials by GRUB's environment block."""

    def __init__(self, files: Directory, *, command_line: str = "") -> None:
        """Serve GRUB's FAT partition; `command_line` is the running kernel's, empty for a disk image."""
        self._files = files
        self._command_line = command_line
        self._artifacts = EspArtifacts(files, grub_uki_path)

    def read(self) -> BootState:
        """Return what the loader would do; never changes anything."""
        state = self._state()
        block = state.block
        entries = [block.of(slot).entry(slot) for slot in block.order] if block else []
        order = sorted((entry for entry in entries if entry), key=lambda entry: entry.is_bad)
        chosen = grub_model.choose(state)
        return BootState(
            order=tuple(order),
            next_name=next((entry.name for entry in order if entry.slot is chosen), None),
            booted_name=self._booted_name(block),
            obstacles=self._obstacles(state),
            loader="GRUB",
            notes=self._notes(state),
        )

    def withdraw(self, slot: Slot) -> None:
        """Take away the slot's entry, then its start file and its artifact: nothing boots it any more."""
        block = self._block()
        if block.of(slot.other).tries is None or not block.of(slot.other).is_bootable:
            raise EnvironmentFailure(
                f"slot {slot} is not withdrawn: no good entry of slot {slot.other} would be left",
                mend=f"write one first (settle slot {slot.other})",
                reason="no-fallback",
            )
        self._write(block.with_slot(slot, SlotState()))
        self._files.remove(start_path(slot))
        self._artifacts.remove(slot)

    def settle(self, slot: Slot) -> None:
        """Make the proven `slot` a good, uncounted entry that can never go bad: the fallback of a trial."""
        block = self._state().block or _NO_ENTRIES
        self._ensure_start(slot, rewrite=False)
        self._write(block.with_slot(slot, replace(self._identified(block, slot), tries="good", given=0)))

    def space_needed(self, slot: Slot, files: Iterable[BootFile]) -> tuple[int, int]:
        """Return (bytes needed, bytes that will be free once `slot` is withdrawn), both on the safe side."""
        return self._artifacts.space_needed(slot, files, small_files=1)

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes]) -> None:
        """Write one file of the artifact of a withdrawn `slot` (addons before the UKI) and flush it."""
        entry = self._block().of(slot).entry(slot)
        self._artifacts.place(slot, file, chunks, live_entry=entry.name if entry else None)

    def verify(self, slot: Slot, files: Iterable[BootFile]) -> tuple[str, ...]:
        """Read the artifact's files back from the medium; return one sentence for each that GRUB cannot use."""
        complaints = self._artifacts.verify(slot, files)
        if complaints:
            return complaints
        try:
            self._start_text(slot)
        except InvalidDocument as error:
            return (error.message,)
        return ()

    def arm(self, slot: Slot, version: str, *, tries: int) -> Entry:
        """Publish a counted entry for `slot` that sorts before all others; return it."""
        if not 1 <= tries <= MAX_TRIES:
            raise ValueError(f"a trial has 1 to {MAX_TRIES} tries, not {tries}")
        self._refuse_arming(slot)
        self._ensure_start(slot, rewrite=True)
        block = self._block()
        present = block.of(slot)
        if (present.tries, present.given, present.version) != (tries, tries, version) or block.order[0] is not slot:
            self._write(_first(block, slot, SlotState(tries, tries, 0, version), rise=True))
        entry = self.read().next_entry
        if entry is None or entry.slot is not slot or entry.tries_left != tries:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: GRUB would boot {entry.name if entry else 'nothing'} instead",
                mend="see the boot entries in `acl-updater status`",
                reason="trial-masked",
            )
        return entry

    def commit(self, slot: Slot, *, tries: int | None) -> None:
        """Make the running `slot` the default for good: counted anew with `tries`, or uncounted when None."""
        self._make_first(slot, SlotState("good" if tries is None else tries, tries or 0))

    def condemn(self, slot: Slot) -> None:
        """Take all tries from the entry of `slot`, so that GRUB prefers any other."""
        block = self._state().block
        if block is None:
            # Whatever else has a start file was proven once: it was this trial's fallback.
            self.settle(slot.other)
            return
        state = block.of(slot)
        if state.is_bootable:
            done = max(0, state.given - state.tries) if isinstance(state.tries, int) else 0
            self._write(block.with_slot(slot, replace(state, tries=0, given=done)))

    def prefer(self, slot: Slot, version: str) -> None:
        """Make the proven, uncounted `slot` sort first again (a manual rollback to the other, proven slot)."""
        self._make_first(slot, SlotState("good", 0, 0, version))

    # -- the block -----------------------------------------------------------------------------------------------

    def _make_first(self, slot: Slot, wanted: SlotState) -> None:
        self._require_uki(slot, "is not made the first to boot")
        self._ensure_start(slot, rewrite=False)
        block = self._state().block or _NO_ENTRIES
        version = wanted.version or self._identified(block, slot).version
        self._write(_first(block, slot, replace(wanted, version=version)))

    def _raw(self, path: str) -> bytes | None:
        try:
            return self._files.read(path, limit_bytes=BLOCK_BYTES)
        except EnvironmentFailure:
            return None

    def _state(self) -> GrubState:
        loadable = frozenset(
            slot for slot in Slot if self._files.size(start_path(slot)) is not None and self._artifacts.is_there(slot)
        )
        return GrubState((self._raw(BLOCKS[0]), self._raw(BLOCKS[1])), loadable)

    def _block(self) -> Block:
        block = self._state().block
        if block is None:
            raise EnvironmentFailure(
                f"neither /{BLOCKS[0]} nor /{BLOCKS[1]} is a sound environment block",
                mend="write them anew as docs/grub.md shows, for the slot that runs",
                reason="grub-block-lost",
            )
        return block

    def _write(self, block: Block) -> None:
        raw = block_bytes(block)
        # GRUB counts in the first block, and goes by the second only where the first is lost. A lost one is written
        # first, so that a cut never finds both without a sound state.
        for path in sorted(BLOCKS, key=lambda path: parse_block(self._raw(path)) is not None):
            if self._raw(path) == raw:
                continue
            if self._files.size(path) == BLOCK_BYTES:
                self._files.overwrite(path, raw)
            else:
                self._files.write_new(path, [raw])
            if b"".join(self._files.chunks(path)) != raw:
                raise EnvironmentFailure(
                    f"/{path} does not read back as it was written",
                    mend="see dmesg for errors of that disk",
                    reason="io-error",
                )

    def _identified(self, block: Block, slot: Slot) -> SlotState:
        """Return a proven slot's state; of one that lost its entry, with the version that its UKI names."""
        state = block.of(slot)
        if state.version:
            return state
        release = read_os_release(self._artifacts.chunks(slot, UKI_NAME)) if self._artifacts.is_there(slot) else None
        if release is None or "IMAGE_VERSION" not in release:
            raise EnvironmentFailure(
                f"slot {slot} has no entry in GRUB's environment block, and no sound UKI to write one for",
                mend="stage its release again",
                reason="entry-missing",
            )
        return replace(state, version=release["IMAGE_VERSION"])

    # -- the start file ------------------------------------------------------------------------------------------

    def _start_text(self, slot: Slot) -> bytes:
        folder = self._artifacts.addons_path(slot)
        addons = [(name, partial(self._files.chunks, f"{folder}/{name}")) for name in self._files.names(folder)]
        return start_text(slot, grub_uki_path(slot), partial(self._artifacts.chunks, slot, UKI_NAME), addons)

    def _ensure_start(self, slot: Slot, *, rewrite: bool) -> None:
        """Write the slot's start file when it is missing, or with `rewrite` when it differs; prove it."""
        present = self._files.size(start_path(slot))
        if present is not None and not rewrite:
            return
        wanted = self._start_text(slot)
        if present is None or self._present_start(slot) != wanted:
            self._files.write_new(start_path(slot), [wanted])
        if b"".join(self._files.chunks(start_path(slot))) != wanted:
            raise EnvironmentFailure(
                f"/{start_path(slot)} does not read back as it was written",
                mend="see dmesg for errors of that disk",
                reason="io-error",
            )

    def _present_start(self, slot: Slot) -> bytes | None:
        try:
            return b"".join(self._files.chunks(start_path(slot)))
        except EnvironmentFailure:
            # What a cut left of it may end before its length: it is written anew.
            return None

    def _require_uki(self, slot: Slot, what: str) -> None:
        if not self._artifacts.is_there(slot):
            raise EnvironmentFailure(
                f"slot {slot} {what}: /{grub_uki_path(slot)} is missing",
                mend="stage its release again",
                reason="artifact-missing",
            )

    def _refuse_arming(self, slot: Slot) -> None:
        state = self._state()
        found = self._obstacles(state)
        if found:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: {found[0]}", mend="then finalize again", reason="boot-obstacle"
            )
        self._require_uki(slot, "is not armed")
        if self._block().of(slot.other).tries != "good" or slot.other not in state.loadable:
            raise EnvironmentFailure(
                f"slot {slot} is not armed: slot {slot.other} has no uncounted entry to fall back to",
                mend=f"settle slot {slot.other} first",
                reason="no-fallback",
            )

    # -- what stands in the way ------------------------------------------------------------------------------------

    def _obstacles(self, state: GrubState) -> tuple[str, ...]:
        found = []
        if state.block is None:
            found.append(f"neither /{BLOCKS[0]} nor /{BLOCKS[1]} is a sound environment block: write them anew")
        if self._files.read(SCRIPT, limit_bytes=_MOST_SCRIPT_BYTES) != shipped_script():
            found.append(f"/{SCRIPT} is not the script that this acl-updater knows: copy {_SHIPPED} over it")
        if not _CALL.search(self._files.read(CONFIG, limit_bytes=_MOST_SCRIPT_BYTES) or b""):
            found.append(f"/{CONFIG} does not read acl.cfg: end it with the line `source $prefix/acl.cfg`")
        for path in BLOCKS:
            if self._files.size(path) is not None and self._files.is_read_only(path):
                found.append(f"/{path} is read-only: no try would be counted by the updater (mattrib -r, chmod 0644)")
        if self._command_line and self._told() is None:
            found.append(
                "this boot did not come through GRUB's script, so nobody knows what the next one does: let the "
                "firmware boot this disk's own GRUB first"
            )
        return tuple(found)

    def _notes(self, state: GrubState) -> tuple[str, ...]:
        notes = []
        told = self._told()
        if told is not None and told[1] == "last":
            notes.append("neither slot was good when this boot began: GRUB took this one as its last resort")
        if state.block is not None and any(parse_block(raw) is None for raw in state.blocks):
            notes.append("one of GRUB's two environment blocks is damaged; the next change of an entry mends it")
        return tuple(notes)

    def _told(self) -> tuple[Slot, str] | None:
        """Return what the script told the running kernel: its slot, and the tries that it had left."""
        told: dict[str, str] = {}
        for word in self._command_line.split():
            if found := _TOLD.fullmatch(word):
                told[found[1]] = found[2]
        if told.get("slot") not in ("a", "b") or "tries_left" not in told:
            return None
        return Slot(told["slot"]), told["tries_left"]

    def _booted_name(self, block: Block | None) -> str | None:
        told = self._told()
        if told is None or block is None:
            return None
        slot, left = told
        if not left.isdigit():
            return str(slot)
        entry = SlotState(int(left), block.of(slot).given).entry(slot)
        return entry.name if entry else None


def _first(block: Block, slot: Slot, wanted: SlotState, *, rise: bool = False) -> Block:
    """Return the block with `slot` in a new state before the other's; with `rise` also above its own of before."""
    rival = block.of(slot.other)
    generation = max(block.of(slot).generation + rise, rival.generation + 1)
    if generation <= MAX_GENERATION:
        return block.with_slot(slot, replace(wanted, generation=generation))
    # Both in one write: their order is never in doubt.
    return block.with_slot(slot.other, replace(rival, generation=1)).with_slot(slot, replace(wanted, generation=2))
