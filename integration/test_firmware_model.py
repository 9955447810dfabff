"""The firmware model and real firmware (OVMF) agree: which boot option starts, and which variables are left.

Each case boots QEMU into programs of some thirty bytes, which tell their letter on QEMU's debug port and switch the
machine off. Boot options of OVMF's own making are left out of the comparison.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from integration.images.tooltree import ToolTree, tool_tree
from integration.lab.emulator import Emulator, find_emulator
from integration.test_loader_model import BOOT_S, program
from updater.boot import firmware_model
from updater.boot.efi_bootnext import EfiBootNext, factory_variables
from updater.boot.firmware import look
from updater.boot.firmware_model import Manner
from updater.boot.load_option import (
    EspPlace,
    LoadOption,
    file_option,
    option_bytes,
    option_name,
    option_number,
    order_bytes,
)
from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID
from updater.fatimage import FatImage
from updater.run import run
from updater.slots import Slot

pytestmark = pytest.mark.qemu

A, B = Slot.A, Slot.B
ESP_BYTES = 40 << 20
FIRST_SECTOR = 2048
PLACE = EspPlace(1, FIRST_SECTOR, ESP_BYTES // 512, UUID("2f5e1a4c-0000-4000-8000-000000000001"))
REMOVABLE = "EFI/BOOT/BOOTX64.EFI"

# What OVMF of Debian 13 does beside the specification. It keeps orphans, and options whose file is missing.
OVMF = Manner.STARTS_INACTIVE | Manner.DROPS_UNREADABLE


def option(path: str, description: str = "x", *, active: bool = True) -> bytes:
    return option_bytes(file_option(PLACE, path, description, active=active))


UKI_A, UKI_B = "EFI/acl/a.efi", "EFI/acl/b.efi"
BOTH = {"Boot0000": option(UKI_A), "Boot0001": option(UKI_B), "BootOrder": order_bytes((0, 1))}


@dataclass(frozen=True)
class Case:
    """Variables, the files that are missing or damaged, and the letter that starts."""

    variables: dict[str, bytes]
    starts: str
    missing: tuple[str, ...] = ()
    damaged: dict[str, bytes] = field(default_factory=dict)


NEXT_B = {"BootNext": order_bytes((1,))}
CASES = {
    "the first in BootOrder": Case(BOTH, "a"),
    "BootNext before BootOrder": Case({**BOTH, **NEXT_B}, "b"),
    "BootNext without its file": Case({**BOTH, **NEXT_B}, "a", missing=(UKI_B,)),
    "BootNext without its option": Case({**BOTH, "BootNext": order_bytes((7,))}, "a"),
    "BootNext of an inactive option": Case({**BOTH, **NEXT_B, "Boot0001": option(UKI_B, active=False)}, "b"),
    "BootNext of an orphan": Case({**BOTH, **NEXT_B, "BootOrder": order_bytes((0,))}, "b"),
    "the first without its file": Case(BOTH, "b", missing=(UKI_A,)),
    "the first with a damaged file": Case(BOTH, "b", damaged={UKI_A: b"MZ garbage"}),
    "the first with a file cut short": Case(BOTH, "b", damaged={UKI_A: program("a")[:300]}),
    "the first without its file, the second inactive": Case(
        {**BOTH, "Boot0001": option(UKI_B, active=False)}, "r", missing=(UKI_A,)
    ),
    "an orphan": Case({**BOTH, "Boot0009": option("EFI/acl/o.efi")}, "a"),
    "garbage before ours": Case({**BOTH, "Boot0005": b"\x01\0\0", "BootOrder": order_bytes((5, 0, 1))}, "a"),
    "a number without an option before ours": Case({**BOTH, "BootOrder": order_bytes((6, 1, 0))}, "b"),
    "an option for another disk before ours": Case(
        {
            **BOTH,
            "Boot0005": option_bytes(
                file_option(EspPlace(1, FIRST_SECTOR, 9999, UUID(int=5)), UKI_B, "another disk's", active=True)
            ),
            "BootOrder": order_bytes((5, 0, 1)),
        },
        "a",
    ),
    "optional data": Case(
        {
            **BOTH,
            "Boot0000": option_bytes(
                LoadOption(1, "x", file_option(PLACE, UKI_A, "x").device_path, "hello\0".encode("utf-16-le"))
            ),
        },
        "a",
    ),
    "no variable at all": Case({}, "r"),
}


@pytest.fixture(scope="session")
def tools() -> ToolTree:
    return tool_tree()


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    return find_emulator()


class OvmfMachine:
    """A disk with an ESP, a variable store, and the power button."""

    def __init__(self, folder: Path, tools: ToolTree, emulator: Emulator) -> None:
        self.folder = folder
        self.emulator = emulator
        self.store = folder / "vars.fd"
        shutil.copyfile(emulator.firmware_variables, self.store)
        self.disk = folder / "disk.img"
        esp = folder / "esp.img"
        with esp.open("wb") as file:
            file.truncate(ESP_BYTES)
        run([tools.tool("mkfs.vfat"), "-F", "32", esp])
        with self.disk.open("wb") as file:
            file.truncate(ESP_BYTES + 4 * FIRST_SECTOR * 512)
        lines = f"label: gpt\nfirst-lba: {FIRST_SECTOR}\n"
        lines += f"start={FIRST_SECTOR}, size={PLACE.sectors}, type=U, uuid={PLACE.part_uuid}\n"
        run([tools.tool("sfdisk"), "--quiet", self.disk], stdin=lines.encode())
        with self.disk.open("r+b") as file, esp.open("rb") as content:
            file.seek(FIRST_SECTOR * 512)
            shutil.copyfileobj(content, file, 1 << 20)
        esp.unlink()
        self.esp = FatImage(self.disk, offset_bytes=FIRST_SECTOR * 512, length_bytes=ESP_BYTES)
        for path, letter in {UKI_A: "a", UKI_B: "b", "EFI/acl/o.efi": "o", REMOVABLE: "r"}.items():
            self.esp.write_new(path, [program(letter)])

    @property
    def efi(self) -> FileEfiVariables:
        return FileEfiVariables(self.store)

    def set(self, variables: dict[str, bytes]) -> None:
        for name, value in variables.items():
            self.efi.write(name, value, GLOBAL_GUID)

    def backend(self) -> EfiBootNext:
        return EfiBootNext(self.esp, self.efi, PLACE)

    def switch_on(self) -> str:
        """Boot once and return the letter of the program that started."""
        letters = self.folder / "letters"
        argv = [
            *self.emulator.qemu,
            *("-nodefaults", "-display", "none", "-no-reboot", "-m", "256"),
            *("-machine", f"q35,accel={self.emulator.accelerator}"),
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={self.emulator.firmware_code}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={self.store}"),
            # No bootindex: OVMF would order BootOrder by it.
            *("-drive", f"if=none,id=disk,format=raw,file={self.disk}", "-device", "virtio-blk-pci,drive=disk"),
            *("-debugcon", f"file:{letters}"),
        ]
        run(argv, timeout_s=BOOT_S)
        return letters.read_text()


@pytest.fixture
def machine(tmp_path: Path, tools: ToolTree, emulator: Emulator) -> OvmfMachine:
    return OvmfMachine(tmp_path, tools, emulator)


@pytest.mark.parametrize("name", CASES)
def test_the_model_and_the_firmware_agree(name: str, machine: OvmfMachine) -> None:
    case = CASES[name]
    machine.set(case.variables)
    for path in case.missing:
        machine.esp.remove(path)
    for path, content in case.damaged.items():
        machine.esp.write_new(path, [content])
    state = look(machine.esp, machine.efi, PLACE, "").state
    broken = {number for number, known in state.options.items() if known.path in case.damaged}
    state = firmware_model.FirmwareState(state.options, state.order, state.next_number, state.loadable - broken)
    expected, after = firmware_model.boot(state, OVMF)

    assert machine.switch_on() == case.starts
    letters = {UKI_A: "a", UKI_B: "b", None: "r"}
    assert letters[state.options[expected].path if expected is not None else None] == case.starts

    left = look(machine.esp, machine.efi, PLACE, "").state
    assert left.next_number is None, "BootNext is taken once"
    mine = [number for name in case.variables if (number := option_number(name)) is not None]
    order = [number for number in left.order if number in mine]
    assert order == [number for number in after.order if number in mine]
    kept = {number: known for number, known in left.options.items() if number in mine}
    assert kept == {number: known for number, known in after.options.items() if number in mine}


def test_a_life_on_real_firmware(machine: OvmfMachine) -> None:
    machine.esp.remove(UKI_B)
    machine.set(factory_variables(PLACE, "1"))
    assert machine.switch_on() == "a"
    for _ in range(2):
        # Twice in vain, then to the end.
        machine.backend().settle(A)
        machine.backend().withdraw(B)
        machine.esp.write_new(UKI_B, [program("b")])
        assert machine.switch_on() == "a", "staged is not armed"
        machine.backend().arm(B, "2", tries=1)
        assert machine.switch_on() == "b"
        assert [entry.tries_left for entry in machine.backend().read().entries_of(B)] == [0]
        assert machine.switch_on() == "a", "a trial has one try"
    machine.backend().arm(B, "2", tries=1)
    assert machine.switch_on() == "b"
    machine.backend().commit(B, tries=1)
    assert [machine.switch_on() for _ in range(2)] == ["b", "b"]
    machine.backend().prefer(A, "1")
    assert machine.switch_on() == "a"
    state = machine.backend().read()
    assert [entry.slot for entry in state.order[:2]] == [A, B]
    assert option_name(0) == state.next_name
