"""The loader model and the real systemd-boot agree: which entry starts, and which names are left on the ESP.

Each case boots QEMU into a loader whose "kernels" are programs of some thirty bytes: they tell their letter on QEMU's
debug port and switch the machine off.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration.images.tooltree import ToolTree, tool_tree
from integration.lab.emulator import Emulator, find_emulator
from tests.portable_executable import build_pe
from updater.boot import loader_model
from updater.boot.entries import BEFORE_SHIPPED, ENTRIES, entry_text
from updater.boot.esp import look, shipped_ukis
from updater.efi_store import FileEfiVariables
from updater.efivars import encode_text
from updater.fatimage import FatImage
from updater.run import run
from updater.slots import Slot

pytestmark = pytest.mark.qemu

A, B = Slot.A, Slot.B
BOOT_S = 300.0


def program(letter: str, name: str = "x") -> bytes:
    """Return an EFI program that writes `letter` to port 0xe9 and calls ResetSystem(EfiResetShutdown)."""
    code = bytes.fromhex("53 4883ec20 4889d3")
    code += b"\xb0" + letter.encode() + b"\xe6\xe9"
    code += bytes.fromhex("488b4358 b902000000 31d2 4531c0 4531c9 ff5068")
    release = f"ID={name}\nIMAGE_ID={name}\nNAME={name}\nIMAGE_VERSION=1\n"
    return build_pe([(".text", code), (".osrel", release.encode()), (".cmdline", b"x")])


def by(key: str, slot: Slot, generation: int, version: str = "1") -> bytes:
    """Return an entry that names its image by another key than ours."""
    return entry_text(slot, version, generation).replace(b"linux ", f"{key} ".encode())


@dataclass(frozen=True)
class Case:
    """Entry files, and whatever else decides."""

    entries: dict[str, bytes]
    conf: bytes = b"timeout 0\nreboot-on-error auto\n"
    variables: dict[str, str] = field(default_factory=dict)
    others: dict[str, bytes] = field(default_factory=dict)
    read_only: tuple[str, ...] = ()


FALLBACK = {"a.conf": entry_text(A, "9", 1)}
TRIAL = {**FALLBACK, "b+3-0.conf": entry_text(B, "8", 2)}
SHIPPED = "EFI/Linux/vmlinuz-1-azla1.efi"
SHIPPED_A = {SHIPPED: program("a", "acl")}
TAKEN_OVER = {"a.conf": entry_text(A, "9", 1, image=SHIPPED, before=BEFORE_SHIPPED)}
CASES = {
    "only the fallback": Case(FALLBACK),
    "a trial of an older version": Case(TRIAL),
    "a trial on its last try": Case({**FALLBACK, "b+1-2.conf": entry_text(B, "8", 2)}),
    "a trial that is used up": Case({**FALLBACK, "b+0-3.conf": entry_text(B, "8", 2)}),
    "all entries used up": Case({"a+0-3.conf": entry_text(A, "9", 1), "b+0-3.conf": entry_text(B, "8", 2)}),
    "counted twins": Case({"b+2-1.conf": entry_text(B, "8", 2), "b+3-0.conf": entry_text(B, "8", 2)}),
    "a damaged file of the next name": Case({**TRIAL, "b+2-1.conf": b""}),
    "a counted and an uncounted twin of one slot": Case({"a+2-1.conf": entry_text(A, "9", 1), **FALLBACK}),
    "an efi entry": Case({**FALLBACK, "b+3-0.conf": by("efi", B, 2)}),
    "a uki entry": Case({**FALLBACK, "b+3-0.conf": by("uki", B, 2)}),
    "two kinds of image": Case({**FALLBACK, "b+3-0.conf": entry_text(B, "8", 2) + b"efi /EFI/acl/b.efi\n"}),
    "a read-only trial": Case(TRIAL, read_only=("b+3-0.conf",)),
    "an empty trial": Case({**FALLBACK, "b+3-0.conf": b""}),
    "a trial cut in its image line": Case({**FALLBACK, "b+3-0.conf": entry_text(B, "8", 2)[:-5]}),
    "a trial whose image is missing": Case({**FALLBACK, "b+3-0.conf": b"sort-key acl-0\nlinux /EFI/acl/c.efi\n"}),
    "a trial behind a byte order mark": Case({**FALLBACK, "b+3-0.conf": b"\xef\xbb\xbf" + entry_text(B, "8", 2)}),
    "an entry without a sort key": Case({**FALLBACK, "zzz.conf": b"version 99\nlinux /EFI/acl/b.efi\n"}),
    "carriage returns and quotes": Case(
        {**FALLBACK, "b+3-0.conf": b'sort-key "acl-000000"\r\nlinux\t"/EFI/acl/b.efi"\r\n'}
    ),
    "equal sort keys": Case({
        "a.conf": b"sort-key k\nversion 9\nlinux /EFI/acl/a.efi\n",
        "b.conf": b"sort-key k\nversion 10~rc1\nlinux /EFI/acl/b.efi\n",
    }),
    "a default in loader.conf": Case(TRIAL, conf=b"timeout 0\ndefault A*\n"),
    "a default that matches a bad entry": Case({**FALLBACK, "b+0-3.conf": by("linux", B, 2)}, conf=b"default b*\n"),
    "a default by the name without its counter": Case(TRIAL, conf=b"default a.conf\n"),
    "a default by the trial's name without its counter": Case(
        {"a.conf": entry_text(A, "9", 5), "b+3-0.conf": entry_text(B, "8", 2)}, conf=b"default b.conf\n"
    ),
    "a preferred bad entry": Case({**FALLBACK, "b+0-3.conf": entry_text(B, "8", 2)}, conf=b"preferred b*\n"),
    "a preferred fallback": Case(TRIAL, variables={"LoaderEntryPreferred": "a.conf"}),
    "a default variable": Case(TRIAL, variables={"LoaderEntryDefault": "a.conf"}),
    "a default set": Case(TRIAL, variables={"LoaderEntryDefault": "[!-a].conf"}),
    "one shot over the default": Case(
        TRIAL, variables={"LoaderEntryOneShot": "a.conf", "LoaderEntryDefault": "b*"}
    ),
    "a sysfail entry without a failed firmware update": Case(TRIAL, variables={"LoaderEntrySysFail": "a.conf"}),
    "a foreign UKI that sorts first": Case(TRIAL, others={"EFI/Linux/other+2-1.efi": program("o", "aaa")}),
    "a foreign UKI that sorts last": Case(TRIAL, others={"EFI/Linux/other.efi": program("o", "zzz")}),
    "a shipped UKI alone": Case({}, others=SHIPPED_A),
    "a shipped UKI and its entry": Case(TAKEN_OVER, others=SHIPPED_A),
    "a trial beside a shipped UKI": Case(
        {**TAKEN_OVER, "b+3-0.conf": entry_text(B, "0.8", 2, before=BEFORE_SHIPPED)}, others=SHIPPED_A
    ),
    "a used-up trial beside a shipped UKI": Case(
        {**TAKEN_OVER, "b+0-3.conf": entry_text(B, "10", 2, before=BEFORE_SHIPPED)}, others=SHIPPED_A
    ),
    "a trial whose sort key is not before a shipped UKI's": Case(
        {"b+3-0.conf": entry_text(B, "10", 2)}, others=SHIPPED_A
    ),
    "a torn name of a shipped UKI": Case(
        {"b.conf": entry_text(B, "0.8", 2, before=BEFORE_SHIPPED)},
        others={"EFI/Linux/VMLINU~1.EFI": program("o", "acl")},
    ),
    "garbage among foreign UKIs": Case(FALLBACK, others={"EFI/Linux/aaa.efi": b"MZ garbage"}),
}  # fmt: skip


@pytest.fixture(scope="session")
def tools() -> ToolTree:
    return tool_tree()


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    return find_emulator()


# The older loader, which some machines still have, in the cases that tell the two apart.
OLDER = (
    "a trial of an older version",
    "an efi entry",
    "a uki entry",
    "two kinds of image",
    "a preferred fallback",
    "a default by the trial's name without its counter",
    "a trial beside a shipped UKI",
    "a used-up trial beside a shipped UKI",
)


def make_esp(folder: Path, case: Case, loader: Path, tools: ToolTree) -> FatImage:
    image = folder / "esp.img"
    with image.open("wb") as file:
        file.truncate(40 << 20)
    run([tools.tool("mkfs.vfat"), "-F", "32", image])
    esp = FatImage(image)
    esp.write_new("EFI/BOOT/BOOTX64.EFI", [loader.read_bytes()])
    esp.write_new("loader/loader.conf", [case.conf])
    for slot in Slot:
        esp.write_new(f"EFI/acl/{slot}.efi", [program(str(slot))])
    for path, content in case.others.items():
        esp.write_new(path, [content])
    for name, content in case.entries.items():
        esp.write_new(f"{ENTRIES}/{name}", [content])
    for name in case.read_only:
        run([tools.tool("mattrib"), "-i", image, "+r", f"::/{ENTRIES}/{name}"])
    return esp


def switch_on(folder: Path, emulator: Emulator, variables: Path) -> str:
    """Boot once and return the letter of the program that started."""
    argv = [
        *emulator.qemu,
        *("-nodefaults", "-display", "none", "-no-reboot", "-m", "256"),
        *("-machine", f"q35,accel={emulator.accelerator}"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={emulator.firmware_code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        *("-drive", f"if=none,id=esp,format=raw,file={folder / 'esp.img'}", "-device", "virtio-blk-pci,drive=esp"),
        *("-debugcon", f"file:{folder / 'letters'}"),
    ]
    run(argv, timeout_s=BOOT_S)
    return (folder / "letters").read_text()


@pytest.mark.parametrize(("loader", "name"), [*(("new", name) for name in CASES), *(("old", name) for name in OLDER)])
def test_the_model_and_the_loader_agree(
    name: str, loader: str, tools: ToolTree, emulator: Emulator, tmp_path: Path
) -> None:
    case = CASES[name]
    program_of_loader = tools.loader if loader == "new" else tools.stub.with_name("systemd-bootx64.efi")
    esp = make_esp(tmp_path, case, program_of_loader, tools)
    store = tmp_path / "vars.fd"
    shutil.copyfile(tools.firmware_variables, store)
    for variable, text in case.variables.items():
        FileEfiVariables(store).write(variable, encode_text(text))
    expected, after = loader_model.boot(look(esp, FileEfiVariables(store), shipped_ukis(esp)).state)
    assert expected is not None
    letter = switch_on(tmp_path, emulator, store)
    assert letter == (str(expected.slot) if expected.slot else "o")
    assert {entry.file for entry in look(esp, FileEfiVariables(store)).state.candidates} == {
        entry.file for entry in after.candidates
    }
    assert look(esp, FileEfiVariables(store)).state.one_shot is None
