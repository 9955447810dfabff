"""EFI variables: one contract for memory, efivarfs and a store in a file."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulated_variables import SimulatedEfiVariables
from updater.efi_store import FileEfiVariables
from updater.efivars import (
    GLOBAL_GUID,
    EfiVariables,
    LiveEfiVariables,
    LoaderFeature,
    NoEfiVariables,
    boot_count_file,
    decode_text,
    encode_text,
    read_features,
    read_text,
)
from updater.errors import EnvironmentFailure

STORE_BYTES = 0x20000


def empty_store(path: Path) -> Path:
    """Write an empty edk2 variable store: a firmware volume with one store of authenticated variables."""
    volume = bytes(16) + UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    volume += struct.pack("<QLLHHHBB", STORE_BYTES, 0x4856465F, 0, 72, 0, 0, 0, 2)
    volume += struct.pack("<LLLL", STORE_BYTES // 4096, 4096, 0, 0)
    header = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le + struct.pack("<LBBHL", 0xE000, 0x5A, 0xFE, 0, 0)
    path.write_bytes((volume + header).ljust(STORE_BYTES, b"\xff"))
    return path


def in_memory(folder: Path) -> EfiVariables:
    return SimulatedEfiVariables()


def in_efivarfs(folder: Path) -> EfiVariables:
    return LiveEfiVariables(folder)


def in_a_store(folder: Path) -> EfiVariables:
    return FileEfiVariables(empty_store(folder / "vars.fd"))


every_kind = pytest.mark.parametrize("make", [in_memory, in_efivarfs, in_a_store])
Make = Callable[[Path], EfiVariables]


@every_kind
def test_what_was_written_is_read_back_until_it_is_deleted(make: Make, tmp_path: Path) -> None:
    variables = make(tmp_path)
    assert variables.read("LoaderEntryDefault") is None
    variables.write("LoaderEntryDefault", encode_text("a.conf"))
    variables.write("LoaderEntryDefault", encode_text("b.conf"))
    assert read_text(variables, "LoaderEntryDefault") == "b.conf"
    assert variables.present
    assert variables.writable() is None
    variables.delete("LoaderEntryDefault")
    variables.delete("LoaderEntryDefault")
    assert variables.read("LoaderEntryDefault") is None


@every_kind
def test_vendors_do_not_see_one_another(make: Make, tmp_path: Path) -> None:
    variables = make(tmp_path)
    variables.write("BootOrder", b"\x01\x00", GLOBAL_GUID)
    assert variables.read("BootOrder") is None
    assert variables.read("BootOrder", GLOBAL_GUID) == b"\x01\x00"


@every_kind
def test_an_empty_value_is_refused_since_firmware_takes_it_for_a_deletion(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no value"):
        make(tmp_path).write("LoaderEntryDefault", b"")


def test_values_in_a_store_survive_being_opened_again(tmp_path: Path) -> None:
    in_a_store(tmp_path).write("LoaderEntryDefault", encode_text("a.conf"))
    assert read_text(FileEfiVariables(tmp_path / "vars.fd"), "LoaderEntryDefault") == "a.conf"
    assert (tmp_path / "vars.fd").stat().st_size == STORE_BYTES
    assert [path.name for path in tmp_path.iterdir()] == ["vars.fd"]


def test_a_store_never_loses_another_vendors_variable_of_the_same_name(tmp_path: Path) -> None:
    variables = in_a_store(tmp_path)
    variables.write("BootOrder", b"\x01\x00", GLOBAL_GUID)
    before = (tmp_path / "vars.fd").read_bytes()
    with pytest.raises(EnvironmentFailure, match="several vendors"):
        variables.write("BootOrder", b"\x02\x00")
    assert (tmp_path / "vars.fd").read_bytes() == before


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "vars.fd").write_bytes(b"\0" * 4096)
    with pytest.raises(EnvironmentFailure, match=r"vars\.fd is no store"):
        FileEfiVariables(tmp_path / "vars.fd")


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match=r"vars\.fd is no store"):
        FileEfiVariables(tmp_path / "vars.fd")


@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_a_damaged_store_is_refused_or_read_and_nothing_else(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    in_a_store(tmp_path).write("LoaderEntryDefault", encode_text("a.conf"))
    content = bytearray((tmp_path / "vars.fd").read_bytes())
    for position, value in flips:
        content[position] = value
    (tmp_path / "vars.fd").write_bytes(content[: len(content) - cut * 300])
    try:
        FileEfiVariables(tmp_path / "vars.fd").read("LoaderEntryDefault")
    except EnvironmentFailure as error:
        assert "vars.fd" in error.message  # noqa: PT017


def test_without_virt_firmware_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "virt" or name.startswith("virt.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "virt", None)
    with pytest.raises(EnvironmentFailure, match=r"acl-updater\[lab\]"):
        FileEfiVariables(empty_store(tmp_path / "vars.fd"))


def test_efivarfs_files_begin_with_the_attributes(tmp_path: Path) -> None:
    LiveEfiVariables(tmp_path).write("LoaderEntryDefault", b"a\0")
    raw = (tmp_path / "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f").read_bytes()
    assert raw == b"\x07\0\0\0a\0"


def test_a_machine_without_efi_says_so(tmp_path: Path) -> None:
    variables = LiveEfiVariables(tmp_path / "absent")
    assert not variables.present
    assert variables.read("LoaderInfo") is None
    assert "did not boot by UEFI" in (variables.writable() or "")


def test_no_variables_read_as_absent_and_refuse_to_change() -> None:
    variables = NoEfiVariables("no --efi-vars was given")
    assert variables.read("LoaderInfo") is None
    assert not variables.present
    variables.delete("LoaderInfo")
    with pytest.raises(EnvironmentFailure, match="no --efi-vars was given"):
        variables.write("LoaderInfo", b"x")


def test_locked_variables_refuse_to_change_with_the_reason() -> None:
    variables = SimulatedEfiVariables({"LoaderEntryDefault": b"x"}, locked="efivarfs is mounted read-only")
    with pytest.raises(EnvironmentFailure, match="mounted read-only"):
        variables.delete("LoaderEntryDefault")
    assert variables.read("LoaderEntryDefault") == b"x"


def test_texts_end_at_their_first_nul() -> None:
    assert decode_text(encode_text("a+2-1.conf") + b"garbage!") == "a+2-1.conf"
    assert decode_text(b"\0\0") is None
    assert decode_text(None) is None


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_some_text_or_none(raw: bytes) -> None:
    text = decode_text(raw)
    assert text is None or text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60))
def test_texts_survive_encoding(text: str) -> None:
    assert decode_text(encode_text(text)) == text


def test_boot_counting_is_bit_4_of_the_loaders_features() -> None:
    features = read_features(SimulatedEfiVariables({"LoaderFeatures": (0x10).to_bytes(8, "little")}))
    assert features == LoaderFeature.BOOT_COUNTING
    assert read_features(SimulatedEfiVariables({"LoaderFeatures": b"\x10"})) is None


def test_the_counted_file_is_given_with_slashes() -> None:
    path = encode_text("\\loader\\entries\\b+2-1.conf")
    assert boot_count_file(SimulatedEfiVariables({"LoaderBootCountPath": path})) == "loader/entries/b+2-1.conf"


@every_kind
def test_names_are_listed_by_vendor(make: Make, tmp_path: Path) -> None:
    variables = make(tmp_path)
    variables.write("Boot0001", b"x", GLOBAL_GUID)
    variables.write("BootOrder", b"\x01\x00", GLOBAL_GUID)
    variables.write("LoaderEntryDefault", encode_text("a.conf"))
    assert variables.names(GLOBAL_GUID) == ["Boot0001", "BootOrder"]
    assert variables.names() == ["LoaderEntryDefault"]


def test_a_store_file_tells_its_room_and_memory_only_when_it_has_a_limit(tmp_path: Path) -> None:
    stored = in_a_store(tmp_path)
    before = stored.free_bytes()
    stored.write("Boot0001", bytes(1000), GLOBAL_GUID)
    after = stored.free_bytes()
    assert before is not None
    assert after is not None
    assert 1000 <= before - after <= 1100
    assert SimulatedEfiVariables().free_bytes() is None
    assert LiveEfiVariables(tmp_path).free_bytes() is None


def test_a_full_store_refuses_a_change_and_keeps_the_old_value() -> None:
    variables = SimulatedEfiVariables({"LoaderEntryDefault": b"old"}, room_bytes=150)
    with pytest.raises(EnvironmentFailure, match="the store is full"):
        variables.write("LoaderEntryDefault", bytes(100))
    assert variables.read("LoaderEntryDefault") == b"old"
