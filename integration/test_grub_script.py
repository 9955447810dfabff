"""The model of GRUB's script and the real GRUB on a BIOS agree: which slot starts, and what both blocks say afterwards.

Each case boots QEMU into GRUB, whose start files tell their slot on the serial console instead of starting a kernel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import pytest

from integration.images.grub import install
from integration.images.tooltree import ToolTree, tool_tree
from integration.lab.emulator import Emulator, find_emulator
from updater.boot import grub_model
from updater.boot.grub_block import Block, SlotState, block_bytes, parse_block
from updater.boot.grub_env import BLOCKS, CONFIG, SCRIPT, shipped_script, start_path
from updater.boot.grub_model import GrubState
from updater.fatimage import FatImage
from updater.layouts import load_layout
from updater.new_disk import new_disk_image, new_table
from updater.partition import FileBlocks
from updater.run import run
from updater.slots import Slot

pytestmark = pytest.mark.qemu

A, B = Slot.A, Slot.B
BOOT_S = 120.0
GOOD = SlotState("good", 0, 1, "1.0.0")
TRIAL = SlotState(3, 3, 2, "2.0.0")
NONE = SlotState()
LOST = bytes(512) + b"#" * 512
STARTS = b"echo STARTED %s $acl_tries_left\nreboot\n"
LOADS_NOT = b"linux /absent\ninitrd /absent\n"


@dataclass(frozen=True)
class Case:
    """What lies on the disk: a block, or both as bytes; the slots whose start files are there, and whose fail."""

    a: SlotState = GOOD
    b: SlotState = NONE
    raw: tuple[bytes | None, bytes | None] | None = None
    starting: frozenset[Slot] = frozenset(Slot)
    failing: frozenset[Slot] = frozenset()
    read_only: bool = False
    boots: int = 1

    @property
    def blocks(self) -> tuple[bytes | None, bytes | None]:
        if self.raw is not None:
            return self.raw
        block = block_bytes(Block(self.a, self.b))
        return block, block

    @property
    def state(self) -> GrubState:
        return GrubState(self.blocks, self.starting - self.failing, self.read_only)


def armed(tries: int = 3) -> bytes:
    return block_bytes(Block(GOOD, replace(TRIAL, tries=tries)))


CASES = {
    "only the fallback": Case(),
    "a trial until it is used up": Case(b=TRIAL, boots=5),
    "a trial of nine tries": Case(b=replace(TRIAL, tries=9, given=9), boots=3),
    "a condemned trial": Case(b=replace(TRIAL, tries=0)),
    "a committed release that is counted": Case(b=replace(TRIAL, tries=3), boots=2),
    "two good slots": Case(b=SlotState("good", 0, 2, "2.0.0")),
    "the other slot preferred": Case(a=replace(GOOD, generation=3), b=SlotState("good", 0, 2, "2.0.0")),
    "a counted slot a": Case(a=SlotState(2, 3, 7, "3.0.0"), b=SlotState("good", 0, 2, "2.0.0"), boots=3),
    "both used up": Case(a=replace(GOOD, tries=0), b=replace(TRIAL, tries=0)),
    "equal generations": Case(a=GOOD, b=replace(GOOD, version="2")),
    "generations of different length": Case(a=replace(GOOD, generation=99), b=replace(TRIAL, generation=100)),
    "a trial without its start file": Case(b=TRIAL, starting=frozenset({A})),
    "a trial that does not load": Case(b=TRIAL, failing=frozenset({B})),
    "a fallback that does not load, and a used-up trial": Case(b=replace(TRIAL, tries=0), failing=frozenset({A})),
    "the first block lost": Case(raw=(LOST, armed()), boots=4),
    "the first block missing": Case(raw=(None, armed()), boots=2),
    "the first block empty": Case(raw=(b"", armed())),
    "the first block without its end": Case(raw=(armed().replace(b"acl_end=1\n", b"##########"), armed(2))),
    "a stale copy": Case(raw=(armed(1), armed(3)), boots=2),
    "both blocks lost": Case(raw=(LOST, LOST), starting=frozenset({A})),
    "both blocks lost after an armed trial": Case(raw=(LOST, None)),
    "tries that are no number": Case(raw=(armed().replace(b"b_tries=3", b"b_tries=x"), armed())),
    "a medium that takes no writes": Case(b=TRIAL, read_only=True, boots=2),
    "a medium that takes no writes, and no good slot": Case(a=replace(GOOD, tries=0), b=TRIAL, read_only=True),
}


@dataclass
class Bios:
    """A machine without UEFI and its disk."""

    tools: ToolTree
    emulator: Emulator
    disk: Path
    boot: FatImage = field(init=False)

    def __post_init__(self) -> None:
        layout = load_layout("grub-bios")
        uuids = {partition.label: UUID(int=number + 1) for number, partition in enumerate(layout.partitions)}
        table = new_table(layout, disk_guid=UUID(int=99), partuuids=uuids)
        with self.disk.open("wb") as file:
            file.truncate(table.disk_sectors * 512)
            for offset, raw in new_disk_image(table):
                file.seek(offset)
                file.write(raw)
        core, boot = table.named("bios-boot"), table.named("boot")
        assert core is not None
        assert boot is not None
        install(
            self.disk,
            self.tools,
            core_lba=core.first_lba,
            core_sectors=core.last_lba - core.first_lba + 1,
            boot_number=boot.number,
        )
        kib = str(boot.length_bytes // 1024)
        run([self.tools.tool("mkfs.vfat"), "-F32", "-s4", f"--offset={boot.first_lba}", self.disk, kib])
        self.boot = FatImage(self.disk, offset_bytes=boot.offset_bytes, length_bytes=boot.length_bytes)
        self.boot.write_new(SCRIPT, [shipped_script()])
        self.boot.write_new(CONFIG, [b"serial --unit=0\nterminal_output serial\nsource $prefix/acl.cfg\n"])

    def lay(self, case: Case) -> None:
        for path, raw in zip(BLOCKS, case.blocks, strict=True):
            self.boot.remove(path)
            if raw is not None:
                self.boot.write_new(path, [raw])
        for slot in Slot:
            self.boot.remove(start_path(slot))
            if slot in case.starting:
                text = LOADS_NOT if slot in case.failing else STARTS % str(slot).encode()
                self.boot.write_new(start_path(slot), [text])

    def power_on(self, *, read_only: bool) -> tuple[Slot | None, str]:
        """Boot once; return the slot whose start file ran, and what it was told."""
        drive = f"file={self.disk},format=raw,if=virtio,readonly={'on' if read_only else 'off'}"
        shown = run(
            [
                *self.emulator.qemu,
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
                *("-machine", f"q35,accel={self.emulator.accelerator}", "-m", "128", "-drive", drive),
            ],
            timeout_s=BOOT_S,
        ).stdout.decode("latin-1")
        found = re.findall(r"STARTED ([ab]) (\w+)", shown)
        return (Slot(found[-1][0]), found[-1][1]) if found else (None, "")


@pytest.fixture(scope="module")
def bios(tmp_path_factory: pytest.TempPathFactory) -> Bios:
    return Bios(tool_tree(), find_emulator(), tmp_path_factory.mktemp("grub") / "disk.raw")


@pytest.mark.parametrize("name", CASES)
def test_grub_does_what_the_model_says(bios: Bios, name: str) -> None:
    case = CASES[name]
    bios.lay(case)
    state = case.state
    for number in range(case.boots):
        slot, told, state = grub_model.boot(state)
        assert bios.power_on(read_only=case.read_only) == (slot, str(told)), f"boot {number + 1}"
        left = tuple(bios.boot.read(path) for path in BLOCKS)
        assert left == state.blocks, f"boot {number + 1}"


def test_grub_s_own_tool_reads_the_block(bios: Bios, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes(armed())
    listed = run([bios.tools.tool("grub-editenv"), path, "list"]).stdout.decode().splitlines()
    assert listed[0] == "acl_a_tries=good"
    assert "acl_b_tries=3" in listed
    assert listed[-1] == "acl_end=1"
    run([bios.tools.tool("grub-editenv"), path, "set", "acl_b_tries=2"])
    assert path.read_bytes() == armed(2)


def test_blocks_that_an_operator_makes_by_hand_are_believed(bios: Bios, tmp_path: Path) -> None:
    path = tmp_path / "env"
    for words in (
        ("create",),
        ("set", "acl_a_tries=good", "acl_a_given=0", "acl_a_generation=1", "acl_a_version=1.0.0"),
        ("set", "acl_b_tries=", "acl_b_given=0", "acl_b_generation=0", "acl_b_version=", "acl_end=1"),
    ):
        run([bios.tools.tool("grub-editenv"), path, *words])
    raw = path.read_bytes()
    assert parse_block(raw) == Block(GOOD, NONE)
    bios.lay(Case(raw=(raw, raw)))
    assert bios.power_on(read_only=False) == (A, "good")


def test_the_script_is_sound_to_grub_s_own_checker(bios: Bios, tmp_path: Path) -> None:
    path = tmp_path / "acl.cfg"
    path.write_bytes(shipped_script())
    run([bios.tools.tool("grub-script-check"), path])


def test_the_partition_table_of_a_disk_with_grub_stays_sound(bios: Bios) -> None:
    with FileBlocks(bios.disk) as disk:
        first = disk.read(0, 4096)
    assert first[510:512] == b"\x55\xaa"
    assert first[446 + 4] == 0xEE
    assert first[512:520] == b"EFI PART"
