"""UKIs and addons as hostile PE files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.portable_executable import COMMAND_LINE, ROOT_HASH, build_pe, build_uki, os_release, uki_sections
from updater.errors import InvalidDocument
from updater.uki import check_addon, check_uki, parse, parse_os_release, read_os_release, words


@dataclass(frozen=True)
class Release:
    version: str = "2"


def placed(folder: Path, content: bytes, name: str = "uki.efi") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def pieces(content: bytes, size: int = 700) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def test_a_sound_uki_of_its_release_passes(tmp_path: Path) -> None:
    uki = check_uki(placed(tmp_path, build_uki()), Release(), "x86-64")
    assert uki.command_line == COMMAND_LINE
    assert uki.os_release["IMAGE_VERSION"] == "2"
    assert [section.name for section in uki.sections] == [".text", ".osrel", ".cmdline", ".linux", ".initrd"]


def test_a_uki_cut_at_any_section_boundary_is_refused(tmp_path: Path) -> None:
    content = build_uki()
    boundaries = [section.offset_bytes for section in parse(content, "uki").sections]
    for length in (*boundaries, boundaries[0] - 100, len(content) - 1):
        with pytest.raises(InvalidDocument):
            check_uki(placed(tmp_path, content[:length]), Release(), "x86-64")


def test_a_uki_whose_signature_is_cut_off_is_refused(tmp_path: Path) -> None:
    content = build_pe(uki_sections(), certificates=b"C" * 256)
    check_uki(placed(tmp_path, content), Release(), "x86-64")
    with pytest.raises(InvalidDocument, match="signature is cut off"):
        check_uki(placed(tmp_path, content[:-1]), Release(), "x86-64")


@pytest.mark.parametrize("missing", [".linux", ".initrd", ".cmdline", ".osrel"])
def test_a_uki_without_a_required_section_is_refused(tmp_path: Path, missing: str) -> None:
    content = build_pe([section for section in uki_sections() if section[0] != missing])
    with pytest.raises(InvalidDocument, match=rf"{missing}: the section is missing"):
        check_uki(placed(tmp_path, content), Release(), "x86-64")


def test_a_uki_with_an_empty_initrd_is_refused(tmp_path: Path) -> None:
    sections = [(name, b"" if name == ".initrd" else content) for name, content in uki_sections()]
    with pytest.raises(InvalidDocument, match="empty"):
        check_uki(placed(tmp_path, build_pe(sections)), Release(), "x86-64")


def test_a_uki_with_profiles_is_refused_since_its_command_line_is_ambiguous(tmp_path: Path) -> None:
    content = build_pe([*uki_sections(), (".profile", b"ID=x"), (".cmdline", b"roothash=" + b"6" * 64)])
    with pytest.raises(InvalidDocument, match="profiles are not supported"):
        check_uki(placed(tmp_path, content), Release(), "x86-64")


def test_a_uki_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="this release is for arm64"):
        check_uki(placed(tmp_path, build_uki()), Release(), "arm64")
    check_uki(placed(tmp_path, build_pe(uki_sections(), machine=0xAA64)), Release(), "arm64")


def test_a_program_that_is_no_efi_application_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="no 64-bit EFI application"):
        check_uki(placed(tmp_path, build_pe(uki_sections(), subsystem=3)), Release(), "x86-64")


def test_a_uki_of_another_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="it names release 1 instead of 2"):
        check_uki(placed(tmp_path, build_uki("1")), Release(), "x86-64")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="empty"):
        check_uki(placed(tmp_path, b""), Release(), "x86-64")


def test_text_sections_of_any_size_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="too many for text"):
        check_uki(placed(tmp_path, build_uki(command_line=COMMAND_LINE + " x" * 40_000)), Release(), "x86-64")


def test_sections_that_overlap_in_the_file_are_refused(tmp_path: Path) -> None:
    content = bytearray(build_uki())
    table = 64 + 4 + 20 + 240
    first = struct.unpack_from("<L", content, table + 20)[0]
    struct.pack_into("<L", content, table + 40 + 20, first)
    with pytest.raises(InvalidDocument, match="overlaps"):
        check_uki(placed(tmp_path, bytes(content)), Release(), "x86-64")


def test_an_entry_point_outside_all_sections_is_refused(tmp_path: Path) -> None:
    content = bytearray(build_uki())
    struct.pack_into("<L", content, 64 + 4 + 20 + 16, 0x10)
    with pytest.raises(InvalidDocument, match="entry point"):
        check_uki(placed(tmp_path, bytes(content)), Release(), "x86-64")


def test_a_sound_addon_passes(tmp_path: Path) -> None:
    addon = check_addon(placed(tmp_path, build_pe([(".text", b"\xc3"), (".cmdline", b"fips=1")])), "x86-64")
    assert addon.command_line == "fips=1"


@pytest.mark.parametrize("line", ["roothash=00", "root=/dev/sda", "systemd.verity=no", 'fips=1 "usrhash=0"'])
def test_an_addon_that_changes_the_root_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InvalidDocument, match="would change what the UKI proves"):
        check_addon(placed(tmp_path, build_pe([(".text", b"\xc3"), (".cmdline", line.encode())])), "x86-64")


def test_only_an_addon_of_one_slot_may_carry_verity_words(tmp_path: Path) -> None:
    content = build_pe([(".text", b"\xc3"), (".cmdline", f"usrhash={ROOT_HASH} systemd.verity_usr_data=x".encode())])
    with pytest.raises(InvalidDocument, match="would change what the UKI proves"):
        check_addon(placed(tmp_path, content), "x86-64")
    check_addon(placed(tmp_path, content), "x86-64", of_slot=True)
    for line in (b"root=/dev/sda", b"systemd.verity=no"):
        with pytest.raises(InvalidDocument, match="would change what the UKI proves"):
            check_addon(placed(tmp_path, build_pe([(".text", b"\xc3"), (".cmdline", line)])), "x86-64", of_slot=True)


def test_an_addon_with_a_kernel_or_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="carries no kernel"):
        check_addon(placed(tmp_path, build_uki()), "x86-64")
    with pytest.raises(InvalidDocument, match="nothing that the stub reads"):
        check_addon(placed(tmp_path, build_pe([(".text", b"\xc3")])), "x86-64")


def test_the_os_release_of_a_stream_is_found_wherever_it_lies() -> None:
    early = build_pe([(".text", b"\xc3"), (".osrel", os_release("7"))])
    late = build_pe([(".text", b"\xc3"), (".linux", b"k" * 200_000), (".osrel", os_release("8"))])
    assert (read_os_release(pieces(early)) or {})["IMAGE_VERSION"] == "7"
    assert (read_os_release(pieces(late)) or {})["IMAGE_VERSION"] == "8"
    assert read_os_release(pieces(late[:100_000])) is None
    assert read_os_release(pieces(b"no PE file" * 100)) is None
    assert read_os_release(iter(())) is None


def test_words_of_a_command_line_are_parted_as_the_kernel_does() -> None:
    assert words("a=\"b c\" d  e='f g'") == ["a=b c", "d", "e='f", "g'"]
    assert words('a="b c') == ["a=b c"]


def test_os_release_values_lose_their_quotes() -> None:
    assert parse_os_release('# x\nNAME="A B"\nID=\'c\'\nbroken\n=x\nBAD="\n') == {"NAME": "A B", "ID": "c"}


@given(st.binary(max_size=3000))
def test_garbage_is_refused_by_our_own_error(content: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse(content, "uki")
    assert read_os_release([content]) is None


SOUND = build_uki()


@given(
    flips=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.integers(0, len(SOUND)),
)
@settings(max_examples=300, deadline=None)
def test_a_damaged_uki_is_parsed_or_refused_by_our_own_error(flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(SOUND)
    for position, value in flips:
        content[position] = value
    for damaged in (bytes(content), bytes(content[:length])):
        try:
            parse(damaged, "uki")
        except InvalidDocument as error:
            assert error.source == "uki"  # noqa: PT017
        read_os_release(pieces(damaged))


@given(length=st.integers(0, len(SOUND) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_truncated_uki_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(InvalidDocument):
        check_uki(placed(tmp_path, SOUND[:length]), Release(), "x86-64")
