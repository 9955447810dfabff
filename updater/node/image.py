"""A disk image in a plain file, updated without root and without a loop device."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from updater.blocks import Blocks
from updater.boot.choose import TableAccess, open_backend
from updater.boot.protocol import BootBackend
from updater.config import Config
from updater.efi_store import FileEfiVariables
from updater.efivars import EfiVariables, NoEfiVariables
from updater.errors import EnvironmentFailure, Refused
from updater.ext4image import Ext4Image
from updater.facts import recorded_root_hash
from updater.fatimage import FatImage
from updater.files import Below, Directory
from updater.gpt import Gpt, parse
from updater.layouts import Layout
from updater.node.disk import LayoutDisk, OnLayoutDisk
from updater.node.protocol import Running
from updater.partition import FileBlocks, WholeDisk, write_table
from updater.records import Ledger
from updater.slots import Slot
from updater.store import Store


class ImageNode(OnLayoutDisk):
    """A `Node` in a disk image: its running slot is the one that the loader's model would boot."""

    live = False
    image_id: str | None = None

    def __init__(
        self, image: Path, layout: Layout, config: Config, *, efi_vars: Path | None = None, writable: bool = True
    ) -> None:
        """Open `image`; raise EnvironmentFailure when it does not hold the layout.

        Without `writable` nothing in the file changes, not even by the replay of a file system's journal.
        """
        if not image.is_file():
            raise EnvironmentFailure(f"there is no disk image {image}", mend="give its path", reason="no-disk")
        self.layout = layout
        self.config = config
        self.architecture: str = layout.architecture
        self._image = image
        self._disk = LayoutDisk(str(image), layout, self._table, self._write_table)
        esp = self._disk.boot_partition()
        state = self._disk.partition("state")
        self.esp: Directory = FatImage(image, offset_bytes=esp.offset_bytes, length_bytes=esp.length_bytes)
        self.state: Directory = Ext4Image(
            image, offset_bytes=state.offset_bytes, base=layout.state_folder, writable=writable
        )
        self.trust: Directory = Below(self.state, "trust")
        efi: EfiVariables = (
            FileEfiVariables(efi_vars) if efi_vars is not None else NoEfiVariables("no --efi-vars was given")
        )
        self.boot: BootBackend = open_backend(
            layout,
            esp=self.esp,
            efi=efi,
            table=TableAccess(self._table, self._write_table),
            part_uuid=esp.unique_guid,
        )

    def __enter__(self) -> ImageNode:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def running(self) -> Running:
        """Return the slot that would boot now; with a trial armed that is the trial."""
        boot = self.boot.read()
        entry = boot.next_entry
        if entry is None or entry.slot is None:
            raise EnvironmentFailure(
                f"the loader of {self._image} would boot nothing of ours",
                mend=next(iter((*boot.obstacles, *boot.notes)), "see its /loader/entries"),
                reason="no-entry",
            )
        slot = entry.slot
        return Running(slot, self.root_hash_in(slot) or self._recorded_root_hash(slot), entry.version)

    def _recorded_root_hash(self, slot: Slot) -> str:
        store = Store(self.state, self.esp, self.now, read_only=True)
        return recorded_root_hash(store.ledger() or Ledger(), store.journal(), slot) or ""

    def blocks(self, slot: Slot, role: Literal["data", "hash"], *, writable: bool = False) -> Blocks:
        if writable and slot is self.running().slot:
            raise Refused(
                f"slot {slot} is the running one and is never written",
                mend="write the other slot",
                reason="running-slot",
            )
        place = self._disk.slot_place(slot, role)
        return FileBlocks(
            self._image,
            offset_bytes=place.partition.offset_bytes + place.offset_bytes,
            length_bytes=place.length_bytes,
            name=f"{self._image} partition {place.partition.number} (slot {slot}, {role})",
            writable=writable,
        )

    def boot_id(self) -> str:
        return ""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def bootstrap_roots(self) -> Sequence[Path]:
        """Return the roots named by the configuration: the image's own lie inside a file system that is not mounted."""
        folder = self.config.trusted_roots
        return sorted(Path(folder).glob("*.root.json")) if folder else []

    @property
    def partial(self) -> Path:
        """Return a folder beside the image."""
        return self._image.with_name(self._image.name + ".partial")

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="acl-updater-") as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def lock(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Lock the image as QEMU does, so that no machine runs from it and no second updater writes it."""
        with locked_image(self._image):
            yield

    def reboot(self, why: str) -> None:
        return None

    def notes(self) -> tuple[str, ...]:
        return ("this is a disk image: the running slot is the one that its loader would boot",)

    def _table(self) -> Gpt:
        with WholeDisk(self._image) as disk:
            return parse(disk.read, disk.length_bytes, disk.sector_bytes)

    def _write_table(self, table: Gpt) -> None:
        with WholeDisk(self._image, writable=True) as disk:
            write_table(disk, table)


@contextlib.contextmanager
def locked_image(image: Path) -> Iterator[None]:
    """Hold the lock on a disk image; raise Refused (reason `busy`) while a machine or another updater has it."""
    with image.open("r+b") as file:
        _lock_whole(file, image)
        yield


def _lock_whole(file: IO[bytes], image: Path) -> None:
    # Open-file-description locks over the whole file conflict with those that QEMU holds on single bytes of it.
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, request)
    except OSError as error:
        raise Refused(
            f"{image} is in use: a machine runs from it, or another updater works on it",
            mend="power the machine off, or wait for the other updater",
            reason="busy",
        ) from error
