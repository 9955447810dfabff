"""What the crash proof reads of a state: folders of an ESP, variables of a store, and what a node remembers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from integration.crash.esp import Damaged, Esp
from integration.crash.memory import Memory, MemoryReader, body_of, untrue
from integration.crash.menu import Menu, chosen_by, read_menu
from integration.crash.variables import read_variables
from updater.boot.firmware import Mark
from updater.boot.load_option import ACTIVE, EspPlace, LoadOption, file_option, option_bytes, option_name, order_bytes
from updater.efivars import GLOBAL_GUID
from updater.fatimage import FatImage
from updater.run import find_tool, run
from updater.slots import Slot

PLACE = EspPlace(1, 2048, 81920, UUID(int=1))
GUID = UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
ADDED, LEAVING, GONE, HALF = 0x3F, 0x3E, 0x3C, 0x7F


class FatFolder:
    """A small FAT file system in a file, written by mtools."""

    def __init__(self, image: Path) -> None:
        self.image = image
        with image.open("wb") as file:
            file.truncate(16 << 20)
        run([find_tool("mkfs.vfat", package="dosfstools"), "-F", "16", "-s", "4", image])

    def write(self, path: str, content: bytes) -> None:
        FatImage(self.image).write_new(path, [content])

    def content(self) -> bytes:
        return self.image.read_bytes()

    def read(self, offset: int, length: int) -> bytes:
        return self.content()[offset : offset + length]

    def poke(self, offset: int, data: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def end_chain(self, cluster: int, mark: bytes = b"\xff\xff") -> None:
        reserved = struct.unpack_from("<H", self.read(0, 512), 14)[0]
        self.poke(reserved * 512 + cluster * 2, mark)


def variable(name: str, value: bytes, state: int) -> bytes:
    text = name.encode("utf-16-le") + b"\0\0"
    head = struct.pack("<HBxI8x16xI", 0x55AA, state, 7, 0) + struct.pack("<II", len(text), len(value))
    body = head + GUID.bytes_le + text + value
    return body + b"\xff" * (-len(body) % 4)


def store(*variables: bytes) -> bytes:
    volume = bytearray(72)
    volume[40:44] = b"_FVH"
    volume[48:50] = (72).to_bytes(2, "little")
    content = b"".join(variables).ljust(4096 - 72 - 28, b"\xff")
    head = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le + struct.pack("<IBBHI", 4096 - 72, 0x5A, 0xFE, 0, 0)
    return bytes(volume) + head + content


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        (ADDED, None, b"old"),
        (LEAVING, HALF, b"old"),
        (LEAVING, ADDED, b"new"),
        (GONE, ADDED, b"new"),
        (GONE, None, None),
    ],
)
def test_a_variable_has_its_old_or_its_new_value_at_each_change_of_state(
    before: int, after: int | None, value: bytes | None
) -> None:
    new = [variable("BootOrder", b"new", after)] if after is not None else []
    found = read_variables(store(variable("Other", b"x", ADDED), variable("BootOrder", b"old", before), *new))
    assert found.whole
    assert found.values.get((GUID, "BootOrder")) == value
    assert found.values[(GUID, "Other")] == b"x"


def test_a_store_that_is_being_packed_anew_is_not_whole() -> None:
    assert not read_variables(b"\xff" * 4096).whole
    broken = bytearray(store())
    broken[72 + 20] = 0xFF
    assert not read_variables(bytes(broken)).whole


def test_files_are_found_by_long_and_short_names(tmp_path: Path) -> None:
    folder = FatFolder(tmp_path / "esp.img")
    folder.write("loader/entries/b+3-0.conf", b"x" * 3000)
    folder.write("EFI/ACL/A.EFI", b"uki")
    esp = Esp(folder.read)
    assert esp.names("loader/entries") == ["b+3-0.conf"]
    assert esp.read("LOADER/entries/B+3-0.conf") == b"x" * 3000
    assert esp.read("EFI/ACL/A.EFI") == b"uki"
    assert esp.read("absent") is None
    assert esp.names("efi/acl") == ["A.EFI"]


def test_a_long_name_that_lost_its_short_one_is_nobodys(tmp_path: Path) -> None:
    folder = FatFolder(tmp_path / "esp.img")
    folder.write("a long name.conf", b"x")
    at = folder.content().index(b"ALONGN~1CON")
    folder.poke(at, b"OTHER   TXT")
    assert "OTHER.TXT" in Esp(folder.read).names("")


def test_a_chain_that_ends_too_early_is_told_and_harms_no_other_file(tmp_path: Path) -> None:
    folder = FatFolder(tmp_path / "esp.img")
    folder.write("one", b"1" * 9000)
    folder.write("two", b"2" * 9000)
    esp = Esp(folder.read)
    folder.end_chain(esp.files["one"].cluster)
    cut = Esp(folder.read)
    assert esp.is_owner(esp.files["one"])
    assert not cut.is_owner(cut.files["one"])
    assert cut.is_owner(cut.files["two"])
    with pytest.raises(Damaged, match="one end"):
        cut.read("one")
    assert cut.read("two") == b"2" * 9000
    assert cut.structure != esp.structure


def test_a_file_whose_cluster_the_table_calls_free_does_not_own_it(tmp_path: Path) -> None:
    folder = FatFolder(tmp_path / "esp.img")
    folder.write("loader/entries/b.conf", b"linux /b.efi")
    file = Esp(folder.read).files["loader/entries/b.conf"]
    folder.end_chain(file.cluster, b"\0\0")
    cut = Esp(folder.read)
    assert cut.read("loader/entries/b.conf") == b"linux /b.efi"
    assert not cut.is_owner(cut.files["loader/entries/b.conf"])


def ledger(serial: int, *proven: tuple[str, str], armed: tuple[str, str] | None = None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "serial": serial,
        "proven": [{"slot": slot, "release": {"version": version}} for slot, version in proven],
    }
    if armed is not None:
        document["armed"] = {"slot": armed[0], "release": {"version": armed[1]}}
    return document


A, B = ("a", "1.0.0"), ("b", "2.0.0")


@pytest.mark.parametrize(
    ("boots", "trials", "memory", "esp", "wrong"),
    [
        (A, (), Memory("idle", None, (ledger(1, A),)), (), 0),
        (B, (B,), Memory("armed", B, (ledger(2, A, armed=B),)), (), 0),
        (B, (B,), Memory("staged", B, (ledger(2, A),)), (ledger(3, A, armed=B),), 0),
        (B, (), Memory("committing", B, (ledger(3, A),)), (ledger(4, A, B),), 0),
        (B, (), Memory("committing", B, (ledger(3, A, armed=B),)), (), 0),
        (B, (), Memory("armed", B, (ledger(3, A, armed=B),)), (), 1),
        (B, (B,), Memory("idle", None, (ledger(2, A),)), (), 1),
        (B, (B,), Memory("armed", A, (ledger(2, A),)), (), 1),
        (B, (), Memory("idle", None, (ledger(5, A),)), (ledger(4, A, B),), 1),
    ],
)
def test_what_would_boot_must_be_known_as_a_trial_or_as_proven(
    boots: tuple[str, str],
    trials: tuple[tuple[str, str], ...],
    memory: Memory,
    esp: tuple[dict[str, Any], ...],
    wrong: int,
) -> None:
    assert len(list(untrue(boots, trials, memory, esp))) == wrong


def test_a_document_is_taken_out_of_a_whole_envelope_only() -> None:
    assert body_of(json.dumps({"body": {"phase": "idle"}}).encode()) == {"phase": "idle"}
    for raw in (None, b"", b"{", b"[]", b'{"body": 3}', b"\0" * 40):
        assert body_of(raw) is None


def option_of(slot: Slot, version: str = "", *, trial: bool = False) -> bytes:
    mark = Mark(slot, version, trial, 1).description("ACL")
    text = mark if version else f"ACL slot {slot}, empty"
    return option_bytes(file_option(PLACE, f"EFI/acl/{slot}.efi", text, active=bool(version)))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Esp:
    """Return an ESP with the UKIs of both slots, and nothing else."""
    folder = FatFolder(tmp_path_factory.mktemp("esp") / "esp.img")
    for slot in Slot:
        folder.write(f"EFI/acl/{slot}.efi", b"uki")
    return Esp(folder.read)


def menu_of(esp: Esp, order: tuple[int, ...], following: int | None, *options: bytes) -> Menu:
    values = {option_name(number): value for number, value in enumerate(options)} | {"BootOrder": order_bytes(order)}
    if following is not None:
        values["BootNext"] = order_bytes((following,))
    found = {(GLOBAL_GUID, name): value for name, value in values.items()} | {(GUID, "LoaderEntryDefault"): b"x"}
    return read_menu(esp, chosen_by(found, firmware=True), firmware=True)


A_GOOD, B_TRIAL, B_EMPTY = option_of(Slot.A, "1"), option_of(Slot.B, "2", trial=True), option_of(Slot.B)


@pytest.mark.parametrize(
    ("order", "following", "b", "files", "chosen"),
    [
        ((0, 1), None, B_EMPTY, ["a.conf"], "a.conf"),
        ((0, 1), 1, B_EMPTY, ["b+1-0.conf", "a.conf"], "b+1-0.conf"),
        ((0, 1), 1, B_TRIAL, ["b+1-0.conf", "a.conf"], "b+1-0.conf"),
        ((0, 1), None, B_TRIAL, ["a.conf", "b+0-1.conf"], "a.conf"),
        ((1, 0), None, B_TRIAL, ["b+0-1.conf", "a.conf"], "b+0-1.conf"),
        ((1, 0), None, option_of(Slot.B, "2"), ["b.conf", "a.conf"], "b.conf"),
        ((1,), None, B_EMPTY, [], None),
    ],
)
def test_the_firmwares_menu_is_its_boot_options_in_their_order(
    both: Esp, order: tuple[int, ...], following: int | None, b: bytes, files: list[str], chosen: str | None
) -> None:
    menu = menu_of(both, order, following, A_GOOD, b)
    assert [item.file for item in menu.order] == files
    assert (menu.chosen.file if menu.chosen else None) == chosen
    assert not menu.complaints


def test_an_option_whose_uki_is_gone_is_not_on_the_firmwares_menu(tmp_path: Path) -> None:
    folder = FatFolder(tmp_path / "esp.img")
    folder.write("EFI/acl/a.efi", b"uki")
    menu = menu_of(Esp(folder.read), (0, 1), 1, A_GOOD, B_TRIAL)
    assert [item.file for item in menu.order] == ["a.conf"]
    assert any("slot b, trial" in name for name in menu.names)


@pytest.mark.parametrize(("attributes", "wrong"), [(ACTIVE, 1), (0, 0), (ACTIVE | 0x100, 0)])
def test_what_the_firmware_brings_itself_must_not_stand_before_ours(both: Esp, attributes: int, wrong: int) -> None:
    shell = option_bytes(LoadOption(attributes, "EFI Internal Shell", b"\x04\x07\x04\x00\x7f\xff\x04\x00"))
    assert len(menu_of(both, (1, 0), None, A_GOOD, shell).complaints) == wrong
    assert not menu_of(both, (0, 1), None, A_GOOD, shell).complaints


SUPERBLOCK, WRITTEN_AT = 1024, 0x30


@pytest.fixture
def partition(tmp_path: Path) -> Path:
    """Return a state partition with a journal, large enough for a backup of its superblock."""
    image, journal = tmp_path / "partition", tmp_path / "journal.json"
    with image.open("wb") as file:
        file.truncate(160 << 20)
    run([tool("mke2fs"), "-t", "ext4", "-q", "-b", "4096", image])
    journal.write_text(json.dumps({"body": {"phase": "armed"}}))
    words = f"mkdir lib\nmkdir lib/acl-updater\nwrite {journal} lib/acl-updater/journal.json\n"
    run([tool("debugfs"), "-w", "-f", "-", image], stdin=words.encode())
    return image


def tool(name: str) -> Path | str:
    return find_tool(name, package="e2fsprogs")


def reader(tmp_path: Path) -> MemoryReader:
    (tmp_path / "scratch").mkdir()
    return MemoryReader(tool, tmp_path / "scratch")


def test_what_a_whole_state_partition_holds_is_remembered(partition: Path, tmp_path: Path) -> None:
    memories = reader(tmp_path)
    assert memories.read(1, partition) == Memory("armed", None, ())
    assert memories.repaired == 0


def test_half_a_superblock_is_repaired_as_a_node_repairs_it(partition: Path, tmp_path: Path) -> None:
    """Its first sector was written, its second with the checksum was not: replaying the journal does not mend that."""
    with partition.open("r+b") as file:
        file.seek(SUPERBLOCK + WRITTEN_AT)
        file.write(struct.pack("<I", 1_800_000_000))
    memories = reader(tmp_path)
    assert memories.read(1, partition) == Memory("armed", None, ())
    assert memories.repaired == 1


def test_a_state_partition_without_any_superblock_is_lost(partition: Path, tmp_path: Path) -> None:
    with partition.open("r+b") as file:
        file.write(bytes(160 << 20))
    found = reader(tmp_path).read(1, partition)
    assert found.phase == "lost"
    assert "gives up" in found.complaints[0]
