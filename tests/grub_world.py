"""A machine on GRUB: a FAT partition in memory, and the model of the script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.boot_contract import BootWorld
from tests.portable_executable import build_uki
from tests.simulated import SimulatedDirectory
from updater.boot import grub_model
from updater.boot.grub_block import BLOCK_BYTES, SECTOR_BYTES, factory_block
from updater.boot.grub_env import BLOCKS, CONFIG, SCRIPT, GrubEnv, grub_uki_path, shipped_script, start_path
from updater.boot.grub_model import GrubState
from updater.boot.grub_start import start_text
from updater.slots import Slot

FACTORY_UKI = build_uki("1")


def factory_files() -> dict[str, bytes]:
    """Return the files of a new disk whose slot a holds the proven release 1."""
    path = grub_uki_path(Slot.A)
    return {
        SCRIPT: shipped_script(),
        CONFIG: b"serial --unit=0\nsource $prefix/acl.cfg\n",
        **dict.fromkeys(BLOCKS, factory_block("1")),
        path: FACTORY_UKI,
        start_path(Slot.A): start_text(Slot.A, path, lambda: iter([FACTORY_UKI]), []),
    }


class GrubWorld:
    """A FAT partition whose blocks GRUB counts in."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        """Hold a state; that of a new disk without `files`."""
        self.files = SimulatedDirectory(factory_files() if files is None else files)
        self.told: grub_model.Told | None = None

    def backend(self, command_line: str = "") -> GrubEnv:
        return GrubEnv(self.files, command_line=command_line)

    def state(self) -> GrubState:
        present = self.files.files
        loadable = frozenset(s for s in Slot if start_path(s) in present and grub_uki_path(s) in present)
        return GrubState((present.get(BLOCKS[0]), present.get(BLOCKS[1])), loadable)

    def boots(self) -> Slot | None:
        return grub_model.choose(self.state())

    def power_on(self) -> Slot | None:
        slot, self.told, after = grub_model.boot(self.state())
        for path, raw in zip(BLOCKS, after.blocks, strict=True):
            old = self.files.files.get(path)
            if raw is not None and old != raw:
                assert old is not None
                assert len(old) == BLOCK_BYTES
                assert old[SECTOR_BYTES:] == raw[SECTOR_BYTES:], "GRUB's write is one sector"
                self.files.overwrite(path, raw)
        return slot

    def copy(self) -> GrubWorld:
        return GrubWorld(self.files.files)

    def instants(self) -> Iterable[tuple[str, BootWorld]]:
        seen = self.files.instants
        self.files.instants = []
        return [(instant.effect, GrubWorld(instant.files)) for instant in seen]
