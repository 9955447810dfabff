"""A machine's disk from outside: looked at while it runs, operated on while it is off."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from integration.lab.fat import FatReader, WatchedEsp
from integration.lab.stock import Stock
from integration.lab.terms import DEFAULT_LAYOUT
from integration.lab.timeline import DiskView
from updater import gpt
from updater.boot.choose import TableAccess, open_backend
from updater.boot.entries import ENTRIES, EntryName, is_entry_name, parse_entry, parse_name
from updater.boot.loader_model import LoaderState, candidate, in_order
from updater.boot.protocol import Entry
from updater.efi_store import FileEfiVariables
from updater.efivars import NoEfiVariables
from updater.errors import EnvironmentFailure, SlotDamaged
from updater.layouts import Layout, load_layout
from updater.run import run, search_path
from updater.slots import Slot
from updater.verity import parse_superblock

_BLOCK_BYTES = 4096
_PIECE_BYTES = 1 << 20
_FILLER = "acl-lab-filler.bin"
VARIABLES = "efi-variables.fd"


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk image; holes stay holes, and blocks are shared where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["cp", "--sparse=always", "--reflink=auto", "--", source, target], timeout_s=600)


def written_pieces(descriptor: int, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
    """Yield the MiB that are not all zero, each with its place in the range; holes are not read."""
    at = 0
    while at < length:
        try:
            data = os.lseek(descriptor, offset + at, os.SEEK_DATA) - offset
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = max(at, data // _PIECE_BYTES * _PIECE_BYTES)
        piece = os.pread(descriptor, min(_PIECE_BYTES, length - at), offset + at) if at < length else b""
        if piece.count(0) != len(piece):
            yield at, piece
        at += _PIECE_BYTES


def take_variables(stock: Stock, folder: Path) -> Path | None:
    """Return the variable store of a machine in `folder`, the factory's at first, where its loader lives by one."""
    return take_store(stock.variables, folder) if stock.variables is not None else None


def take_store(fresh: Path, folder: Path) -> Path:
    """Return the variable store of a machine in `folder`, a copy of `fresh` at first."""
    store = folder / VARIABLES
    if not store.exists():
        shutil.copyfile(fresh, store)
    return store


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw disk image, read through a layout; `variables` is the machine's store, for loaders that live by it.

    Entries of other loaders than systemd-boot bear the names that its entry files would have: `b+0-1.conf` is slot b
    on trial, with no try left and one done.
    """

    path: Path
    layout: Layout = field(default_factory=lambda: load_layout(DEFAULT_LAYOUT))
    variables: Path | None = None

    def table(self) -> gpt.Gpt:
        """Return its partition table."""
        with self.path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)

            return gpt.parse(read, self.path.stat().st_size)

    def partition(self, label: str) -> gpt.Partition:
        """Return the partition with this label; raise EnvironmentFailure when there is none."""
        found = next((p for p in self.table().partitions if p.name == label), None)
        if found is None:
            raise EnvironmentFailure(
                f"{self.path} has no partition {label}", mend="build the disk anew", reason="lab-disk"
            )
        return found

    def esp(self) -> FatReader:
        """Return its ESP."""
        return FatReader(self.path, self.partition(self.layout.boot_partition.label).offset_bytes)

    def held(self, slot: Slot) -> str | None:
        """Return the first 128 bits of the root hash that a slot holds, or None where that cannot be told.

        Where the layout writes it into the table, that is what the kernel goes by; else it is the digest of the top of
        the slot's hash tree.
        """
        data = self.layout.partition("data", slot)
        if data.partuuid == "root-hash-head":
            return self.partition(data.label).unique_guid.hex
        inline = data.hash_offset_bytes
        tree = data if inline is not None else self.layout.partition("hash", slot)
        at = self.partition(tree.label).offset_bytes + (inline or 0)
        with self.path.open("rb") as file:
            try:
                salt = bytes.fromhex(parse_superblock(os.pread(file.fileno(), _BLOCK_BYTES, at)).salt)
            except SlotDamaged:
                return None
            return hashlib.sha256(salt + os.pread(file.fileno(), _BLOCK_BYTES, at + _BLOCK_BYTES)).hexdigest()[:32]

    def look(self) -> DiskView:
        """Return which root hash lies in which slot, and the boot entries; also while a guest writes to the disk."""
        slots = {head: slot.value for slot in Slot if (head := self.held(slot)) is not None}
        if self.layout.boot.backend != "systemd-boot":
            entries = {_name_of(entry): entry.generation for entry in self.order()}
            return DiskView(slots, tuple(entries), {name.file: number for name, number in entries.items()})
        esp = self.esp()
        names = [name for name in esp.names(ENTRIES) if is_entry_name(name)]
        generations = {name: parse_entry(esp.read(f"{ENTRIES}/{name}") or b"").generation for name in names}
        return DiskView(slots, tuple(parse_name(name) for name in names), generations)

    def entry_names(self) -> list[str]:
        """Return the names of the boot entries' files."""
        return [name for name in self.esp().names(ENTRIES) if is_entry_name(name)]

    def loader_order(self) -> list[str]:
        """Return the entry files in the order in which the loader's model sorts them."""
        if self.layout.boot.backend != "systemd-boot":
            return [_name_of(entry).file for entry in self.order()]
        esp = self.esp()
        found = [candidate(name, esp.read(f"{ENTRIES}/{name}") or b"") for name in self.entry_names()]
        # The loader drops an entry whose image is missing.
        there = [one for one in found if one is not None and esp.read(one.path.strip("/"), limit_bytes=1) is not None]
        return [one.file for one in in_order(LoaderState(candidates=tuple(there)))]

    def order(self) -> list[Entry]:
        """Return our entries as the loader's back end reads them."""
        esp = self.partition(self.layout.boot_partition.label)
        efi = FileEfiVariables(self.variables) if self.variables is not None else NoEfiVariables()
        backend = open_backend(
            self.layout,
            esp=WatchedEsp(FatReader(self.path, esp.offset_bytes)),
            efi=efi,
            table=TableAccess(self.table, _refuse),
            part_uuid=esp.unique_guid,
        )
        return [entry for entry in backend.read().order if entry.slot is not None]

    def slot_digest(self, slot: str) -> str:
        """Return a SHA-256 over all that makes a slot: its partitions, UKI and addons, and the table's entries."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for wanted in self.layout.partitions:
                if wanted.slot is not Slot(slot):
                    continue
                partition = self.partition(wanted.label)
                digest.update(repr((partition.unique_guid, partition.attributes)).encode())
                for at, piece in written_pieces(file.fileno(), partition.offset_bytes, partition.length_bytes):
                    digest.update(at.to_bytes(8) + piece)
        esp, uki = self.esp(), f"EFI/acl/{slot}.efi"
        for path in (uki, *(f"{uki}.extra.d/{name}" for name in sorted(esp.names(f"{uki}.extra.d")))):
            digest.update(esp.read(path) or b"absent")
        return digest.hexdigest()

    # -- surgery, with the machine off ---------------------------------------------------------------------------

    def flip_block(self, slot: str, block: int, role: Literal["data", "hash"] = "data") -> None:
        """Invert one byte in a 4096-byte block of a slot's data partition, or of its hash tree's."""
        label = self.layout.partition(role, Slot(slot)).label
        self._flip(self.partition(label).offset_bytes + block * _BLOCK_BYTES + 17)

    def copy_slot(self, source: str, target: str) -> None:
        """Give a slot the data and the hash tree of the other one; its UKI and its partitions keep their names."""
        with self.path.open("r+b") as file:
            for role in ("data", "hash"):
                old, new = (self.partition(self.layout.partition(role, Slot(slot)).label) for slot in (source, target))
                for at in range(0, min(old.length_bytes, new.length_bytes), _PIECE_BYTES):
                    file.seek(old.offset_bytes + at)
                    piece = file.read(min(_PIECE_BYTES, old.length_bytes - at, new.length_bytes - at))
                    file.seek(new.offset_bytes + at)
                    if file.read(len(piece)) != piece:
                        file.seek(new.offset_bytes + at)
                        file.write(piece)

    def flip_file(self, path: str, at_byte: int) -> None:
        """Invert one byte of a file on the ESP."""
        offset = self.esp().offset_of(path, at_byte)
        if offset is None:
            raise EnvironmentFailure(
                f"the ESP has no {path} of that length", mend="mend the scenario", reason="lab-disk"
            )
        self._flip(offset)

    def truncate_file(self, path: str, length: int) -> None:
        """Cut a file on the ESP short."""
        content = self.esp().read(path)
        if content is None or len(content) <= length:
            raise EnvironmentFailure(
                f"the ESP has no {path} longer than {length} bytes", mend="mend the scenario", reason="lab-disk"
            )
        self._put(path, content[:length])

    def rename_file(self, path: str, name: str) -> None:
        """Give a file on the ESP another name in its folder."""
        run([_tool("mren"), "-i", self._esp_image(), f"::{path}", name])

    def rewrite_file(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Give a file on the ESP another content."""
        content = self.esp().read(path)
        if content is None:
            raise EnvironmentFailure(f"the ESP has no {path}", mend="mend the scenario", reason="lab-disk")
        self._put(path, change(content))

    def remove_file(self, path: str) -> None:
        """Take a file from the ESP."""
        run([_tool("mdel"), "-i", self._esp_image(), f"::{path}"])

    def protect_file(self, path: str) -> None:
        """Give a file on the ESP the attribute `read-only`."""
        run([_tool("mattrib"), "+r", "-i", self._esp_image(), f"::{path}"])

    def lose_clusters(self, path: str) -> None:
        """Zero one sector of the ESP's first allocation table: the one that leads on from the middle of a file."""
        esp = self.esp()
        found = esp.link_sector_of(path, (esp.length_bytes(path) or 0) // 2)
        if found is None:
            raise EnvironmentFailure(f"the ESP has no {path}", mend="mend the scenario", reason="lab-disk")
        offset, length = found
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(length))

    def zero(self, label: str, at_byte: int, length: int) -> None:
        """Overwrite a part of a partition with zeros."""
        partition = self.partition(label)
        if at_byte + length > partition.length_bytes:
            raise EnvironmentFailure(f"{label} is not that long", mend="mend the scenario", reason="lab-disk")
        with self.path.open("r+b") as file:
            file.seek(partition.offset_bytes + at_byte)
            file.write(bytes(length))

    def fill_esp(self, leave_bytes: int) -> int:
        """Fill the ESP up to `leave_bytes`; return how long the filler is."""
        free = self._esp_free_bytes() - leave_bytes
        if free > 0:
            self._put(_FILLER, bytes(free))
        return max(0, free)

    def free_esp(self) -> None:
        """Take the filler away again."""
        run([_tool("mdel"), "-i", self._esp_image(), f"::{_FILLER}"])

    def _esp_free_bytes(self) -> int:
        listing = run([_tool("mdir"), "-i", self._esp_image(), "::"]).stdout.decode()
        words = next(line for line in reversed(listing.splitlines()) if "bytes free" in line)
        return int("".join(c for c in words.partition("bytes free")[0] if c.isdigit()))

    def _put(self, path: str, content: bytes) -> None:
        run([_tool("mcopy"), "-o", "-i", self._esp_image(), "-", f"::{path}"], stdin=content, timeout_s=300)

    def _esp_image(self) -> str:
        return f"{self.path}@@{self.partition(self.layout.boot_partition.label).offset_bytes}"

    def _flip(self, offset: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            old = file.read(1)
            file.seek(offset)
            file.write(bytes([old[0] ^ 0xFF]))


def _name_of(entry: Entry) -> EntryName:
    return EntryName(str(entry.slot), entry.tries_left, entry.tries_done)


def _refuse(_: gpt.Gpt) -> None:
    raise EnvironmentFailure("the lab only looks at a machine's disk", mend="report this", reason="lab-disk")


def _tool(name: str) -> str:
    found = shutil.which(name, path=search_path())
    if found is not None:
        return found
    from integration.images.tooltree import tool_tree

    return str(tool_tree().tool(name))
