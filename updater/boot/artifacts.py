"""The boot files of both slots on an ESP: a UKI each, and the addons beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from updater.boot.entries import uki_path
from updater.boot.esp import leftovers
from updater.boot.protocol import BootFile
from updater.errors import EnvironmentFailure
from updater.files import Directory
from updater.slots import Slot

UKI_NAME = "uki.efi"
# The largest cluster of any FAT: a file may take that much more than its length.
_CLUSTER_BYTES = 32 * 1024


class EspArtifacts:
    """Write, prove and remove the boot files of a slot; which of them boots is the back end's affair."""

    def __init__(self, esp: Directory, uki: Callable[[Slot], str] = uki_path) -> None:
        """Serve the ESP in `esp`; `uki` says where a slot's UKI lies, in a folder of whatever loader looks there."""
        self._esp = esp
        self._uki = uki

    def path(self, slot: Slot, name: str) -> str:
        """Return where a file of a slot's artifact lies: `uki.efi`, or an addon by its name."""
        return self._uki(slot) if name == UKI_NAME else f"{self.addons_path(slot)}/{name}"

    def addons_path(self, slot: Slot) -> str:
        """Return the folder of a slot's addons, which the stub finds by the UKI's own name."""
        return f"{self._uki(slot)}.extra.d"

    def names(self, slot: Slot) -> tuple[str, ...]:
        """Return the names of the files that are there: addons, then the UKI."""
        return (*self._esp.names(self.addons_path(slot)), *([UKI_NAME] if self.is_there(slot) else []))

    def is_there(self, slot: Slot) -> bool:
        """Tell whether the slot has a UKI."""
        return self._esp.size(self._uki(slot)) is not None

    def remove(self, slot: Slot) -> None:
        """Remove the files of a slot, and what no slot needs."""
        # The reverse of placing: without its UKI an addon is nothing, and a UKI without its addons might boot.
        uki, addons = self._uki(slot), self.addons_path(slot)
        self._esp.remove(uki)
        self._esp.remove(addons)
        for path in leftovers(self._esp):
            self._esp.remove(path)

    def space_needed(self, slot: Slot, files: Iterable[BootFile], *, small_files: int) -> tuple[int, int]:
        """Return (bytes needed, bytes that will be free once `slot` is removed), both on the safe side.

        `small_files` is how many files of the back end itself are written meanwhile.
        """
        needed = 0
        folders = 1
        for file in files:
            needed += -(-file.length_bytes // _CLUSTER_BYTES) * _CLUSTER_BYTES
            folders += file.name != UKI_NAME
        needed += (min(folders, 2) + small_files) * _CLUSTER_BYTES
        freed = self._esp.size(self._uki(slot)) or 0
        freed += sum(
            self._esp.size(f"{self.addons_path(slot)}/{name}") or 0 for name in self._esp.names(self.addons_path(slot))
        )
        freed += sum(self._esp.size(path) or 0 for path in leftovers(self._esp))
        return needed, self._esp.free_bytes() + freed

    def place(self, slot: Slot, file: BootFile, chunks: Iterable[bytes], *, live_entry: str | None) -> None:
        """Write a file and flush it; refuse while the slot has a boot entry."""
        if live_entry is not None:
            raise EnvironmentFailure(
                f"slot {slot} still has the boot entry {live_entry}: its files are not replaced",
                mend=f"withdraw slot {slot} first",
                reason="slot-not-withdrawn",
            )
        self._esp.write_new(self.path(slot, file.name), chunks)

    def verify(self, slot: Slot, files: Iterable[BootFile]) -> tuple[str, ...]:
        """Read the files back from the medium; return one sentence for each that is missing or differs."""
        complaints = []
        expected = set()
        for file in files:
            expected.add(file.name.lower())
            try:
                complaint = self._complaint(self.path(slot, file.name), file)
            except EnvironmentFailure as error:
                # A chain that a cut left too short reads as an I/O error: the file is placed anew.
                complaint = error.message
            if complaint:
                complaints.append(complaint)
        # The stub loads every addon that it finds, so that a stray one changes the command line.
        for name in self._esp.names(self.addons_path(slot)):
            if name.lower() not in expected:
                complaints.append(f"/{self.addons_path(slot)}/{name} does not belong to the release")
        return tuple(complaints)

    def chunks(self, slot: Slot, name: str) -> Iterator[bytes]:
        """Yield the bytes of one file, read from the medium."""
        return self._esp.chunks(self.path(slot, name))

    def _complaint(self, path: str, file: BootFile) -> str:
        length = self._esp.size(path)
        if length is None:
            return f"/{path} is missing"
        if length != file.length_bytes:
            return f"/{path} has {length} bytes instead of {file.length_bytes}"
        digest = hashlib.sha256()
        for chunk in self._esp.chunks(path):
            digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            return f"/{path} differs from the manifest (sha256 {digest.hexdigest()})"
        return ""


class KeepsArtifacts:
    """What every back end answers alike whose boot files lie in `EspArtifacts`."""

    _artifacts: EspArtifacts

    def verify(self, slot: Slot, files: Iterable[BootFile]) -> tuple[str, ...]:
        """Read the artifact's files back from the medium; return one sentence for each that is missing or differs."""
        return self._artifacts.verify(slot, files)

    def artifact_names(self, slot: Slot) -> tuple[str, ...]:
        """Return the names of the files of the slot's artifact that are there: addons, then the UKI."""
        return self._artifacts.names(slot)

    def artifact_chunks(self, slot: Slot, name: str) -> Iterator[bytes]:
        """Yield the bytes of one file of the slot's artifact, read from the medium."""
        return self._artifacts.chunks(slot, name)
