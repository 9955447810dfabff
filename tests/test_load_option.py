"""EFI load options: what is built is read back, and hostile bytes are nothing."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from updater.boot.load_option import (
    EspPlace,
    LoadOption,
    file_option,
    option_bytes,
    option_name,
    option_number,
    order_bytes,
    parse_number,
    parse_option,
    parse_order,
)

PLACE = EspPlace(1, 2048, 393_216, UUID("2f5e1a4c-0000-4000-8000-000000000001"))
OURS = file_option(PLACE, "EFI/acl/a.efi", "ACL 1.0.0, slot a, release 1")


def test_an_option_for_a_file_is_read_back_as_it_was_built() -> None:
    parsed = parse_option(option_bytes(OURS))
    assert parsed == OURS
    assert parsed is not None
    assert (parsed.part_uuid, parsed.path, parsed.is_active) == (PLACE.part_uuid, "EFI/acl/a.efi", True)
    assert parsed.optional == b"", "the stub would take it for a command line"


def test_the_bytes_are_those_of_the_specification() -> None:
    raw = option_bytes(file_option(PLACE, "EFI/acl/a.efi", "ACL"))
    hard_drive = "04012a00 01000000 0008000000000000 0000060000000000 4c1a5e2f000000408000000000000001 02 02"
    path = "04042200" + "\\EFI\\acl\\a.efi\0".encode("utf-16-le").hex()
    assert raw.hex() == ("01000000 5000 410043004c000000" + hard_drive + path + "7fff0400").replace(" ", "")


def test_optional_data_and_other_device_paths_are_kept_byte_for_byte() -> None:
    pci = bytes.fromhex("02010c00d041030a00000000 01010600001f 7fff0400")
    raw = option_bytes(LoadOption(1, "UEFI PXEv4", pci, b"\x4e\xac\x08\x81"))
    parsed = parse_option(raw)
    assert parsed is not None
    assert (parsed.part_uuid, parsed.path) == (None, None)
    assert option_bytes(parsed) == raw


def test_a_path_parted_over_nodes_is_one_path() -> None:
    hard_drive = OURS.device_path[:42]

    def node(text: str) -> bytes:
        content = text.encode("utf-16-le")
        return bytes([4, 4]) + (4 + len(content)).to_bytes(2, "little") + content

    parted = hard_drive + node("\\EFI\\acl\0") + node("\\b.efi\0") + bytes.fromhex("7fff0400")
    parsed = parse_option(option_bytes(LoadOption(1, "x", parted)))
    assert parsed is not None
    assert parsed.path == "EFI/acl/b.efi"


def test_a_device_path_that_leads_outside_is_no_option() -> None:
    raw = bytearray(option_bytes(OURS))
    at = raw.index(bytes.fromhex("04012a00"))
    for length in (0, 3, 0xFFFF):
        raw[at + 2 : at + 4] = length.to_bytes(2, "little")
        assert parse_option(bytes(raw)) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_an_option_that_builds_again_or_none(raw: bytes) -> None:
    option = parse_option(raw)
    assert option is None or option.device_path in raw


@given(st.data())
def test_a_damaged_option_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(option_bytes(OURS))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    parse_option(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@given(st.lists(st.integers(0, 0xFFFF), unique=True, max_size=20).map(tuple))
def test_boot_orders_survive(numbers: tuple[int, ...]) -> None:
    assert parse_order(order_bytes(numbers)) == numbers
    assert parse_order(order_bytes(numbers) + b"\x01") == numbers
    assert parse_order(order_bytes(numbers + numbers)) == numbers


def test_numbers_and_names() -> None:
    assert option_name(0x2A) == "Boot002A"
    assert option_number("Boot002A") == 0x2A
    assert [option_number(name) for name in ("BootOrder", "Boot002a", "Boot00002", "BootNext")] == [None] * 4
    assert parse_number(b"\x03\x00") == 3
    assert parse_number(b"\x03") is None
    assert parse_number(None) is None


def test_another_makers_reader_understands_our_option() -> None:
    from virt.firmware.efi.bootentry import BootEntry

    read = BootEntry(data=option_bytes(OURS))
    assert str(read.title) == "ACL 1.0.0, slot a, release 1"
    assert str(read.devicepath) == "Partition(nr=1)/FilePath(\\EFI\\acl\\a.efi)"
