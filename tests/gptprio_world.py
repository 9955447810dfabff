"""A machine whose loader chooses slots by GPT bits: a sparse disk, an ESP, and the model of gptprio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from uuid import UUID

from tests.boot_contract import BootWorld
from tests.simulated import Instant, SimulatedDirectory
from updater.boot import gptprio_model
from updater.boot.gpt_priority import GptPriority, record_text
from updater.boot.gptprio_model import SlotBits
from updater.gpt import Gpt, parse
from updater.layouts import load_layout
from updater.new_disk import new_disk_image, new_table
from updater.partition import write_table
from updater.slots import Slot

LAYOUT = load_layout("flatcar")
LABELS = {slot: LAYOUT.partition("data", slot).label for slot in Slot}
TYPE = UUID(LAYOUT.partition("data", Slot.A).type_guid)
SECTOR = 512
FILES = {"flatcar/vmlinuz-a": b"factory", "flatcar/release-a": record_text("1")}

Sectors = dict[int, bytes]


class SparseDisk:
    """A disk of sectors in memory, all zero but the written ones; it tells of each write."""

    name = "memory"

    def __init__(self, length_bytes: int, sectors: Mapping[int, bytes], tell: Callable[[str], None]) -> None:
        """Hold `sectors` by number."""
        self.length_bytes = length_bytes
        self.sectors = dict(sectors)
        self._tell = tell
        self._writes = 0

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.length_bytes
        assert offset % SECTOR == length % SECTOR == 0
        first = offset // SECTOR
        return b"".join(self.sectors.get(at, bytes(SECTOR)) for at in range(first, first + length // SECTOR))

    def write(self, offset: int, data: bytes) -> None:
        padded = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
        for at in range(0, len(padded), SECTOR):
            self._writes += 1
            number, piece = (offset + at) // SECTOR, padded[at : at + SECTOR]
            # The same bytes again make no new state.
            if self.sectors.get(number, bytes(SECTOR)) != piece:
                self.sectors[number] = piece
                self._tell(f"write {self._writes}, to sector {number}")

    def flush(self) -> None:
        """Do nothing: every write is durable at once, in order. tests/test_gpt.py mixes the orders."""

    def table(self) -> Gpt:
        return parse(self.read, self.length_bytes, SECTOR)


class _Told(list[Instant]):
    """The ESP's own instants, which join those of the disk."""

    def __init__(self, tell: Callable[[str, Mapping[str, bytes]], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, instant: Instant) -> None:
        self._tell(instant.effect, instant.files)


class GptWorld:
    """A Flatcar disk in memory."""

    def __init__(self, files: Mapping[str, bytes], length_bytes: int, sectors: Mapping[int, bytes]) -> None:
        """Hold a state."""
        self.esp = SimulatedDirectory(files)
        self.disk = SparseDisk(length_bytes, sectors, lambda effect: self._saw(effect, self.esp.files))
        self.esp.instants = _Told(self._saw)
        self._seen: list[tuple[str, Mapping[str, bytes], Sectors]] = []

    @classmethod
    def factory(cls) -> GptWorld:
        """Return a machine whose slot a holds the proven release 1."""
        uuids = {partition.label: UUID(int=number + 1) for number, partition in enumerate(LAYOUT.partitions)}
        table = new_table(LAYOUT, disk_guid=UUID(int=99), partuuids=uuids)
        number = LAYOUT.numbers[LABELS[Slot.A]]
        table = table.with_partition(number, attributes=SlotBits(1, 0, True).into(table.partition(number).attributes))
        world = cls(FILES, table.disk_sectors * SECTOR, {})
        for offset, raw in new_disk_image(table):
            world.disk.write(offset, raw)
        world._seen.clear()
        return world

    def _saw(self, effect: str, files: Mapping[str, bytes]) -> None:
        self._seen.append((effect, files, dict(self.disk.sectors)))

    def backend(self) -> GptPriority:
        return GptPriority(
            self.esp, LABELS, read=self.disk.table, write=lambda table: void(write_table(self.disk, table))
        )

    def bits(self, slot: Slot) -> SlotBits:
        found = self.disk.table().named(LABELS[slot])
        assert found is not None
        return gptprio_model.slot_bits(found.attributes)

    def boots(self) -> Slot | None:
        chosen = gptprio_model.choose(self.disk.table(), TYPE)
        return self._slot_with_kernel(chosen.name if chosen else None)

    def power_on(self) -> Slot | None:
        for _ in self.power_on_by_sectors():
            pass
        return self._slot_with_kernel(self._started)

    def power_on_by_sectors(self) -> Iterator[GptWorld]:
        """Boot as the loader does; yield what a cut after each of its sectors leaves."""
        before = self.disk.table()
        chosen, after = gptprio_model.boot(before, TYPE)
        self._started = chosen.name if chosen else None
        if after.entries == before.entries:
            return
        for offset, raw in gptprio_model.loader_writes(after):
            for at in range(0, len(raw), SECTOR):
                self.disk.write(offset + at, raw[at : at + SECTOR])
                yield self.copy()

    def _slot_with_kernel(self, label: str | None) -> Slot | None:
        slot = next((slot for slot in Slot if LABELS[slot] == label), None)
        # A loader without the kernel's file stops: it looks no further.
        return slot if slot and self.esp.size(f"flatcar/vmlinuz-{slot}") else None

    def copy(self) -> GptWorld:
        return GptWorld(self.esp.files, self.disk.length_bytes, self.disk.sectors)

    def instants(self) -> Iterable[tuple[str, BootWorld]]:
        seen = self._seen[:]
        self._seen.clear()
        return [(effect, GptWorld(files, self.disk.length_bytes, sectors)) for effect, files, sectors in seen]


def void(_: object) -> None:
    """Return nothing."""
