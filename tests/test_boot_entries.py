"""Entry files and loader.conf as hostile text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.boot import entries
from updater.boot.entries import EntryName, key_values, parse_entry, parse_loader_conf, parse_name
from updater.slots import Slot


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a.conf", EntryName("a")),
        ("a+3.conf", EntryName("a", 3, 0)),
        ("a+3-0.conf", EntryName("a", 3, 0)),
        ("a+2-1.CONF", EntryName("a", 2, 1)),
        ("b+c+1-2.conf", EntryName("b+c", 1, 2)),
        ("a+-1.conf", EntryName("a+-1")),
        ("a+3-.conf", EntryName("a+3-")),
        ("a+3-0.x.conf", EntryName("a+3-0.x")),
        ("a+99999999999.conf", EntryName("a+99999999999")),
        ("a+³.conf", EntryName("a+³")),
    ],
)
def test_names_are_taken_apart_as_the_loader_does(file: str, expected: EntryName) -> None:
    assert parse_name(file) == expected


@given(st.sampled_from(["a", "b", "x+y"]), st.none() | st.integers(0, 99), st.integers(0, 99))
def test_names_survive_printing(stem: str, left: int | None, done: int) -> None:
    name = EntryName(stem, left, done if left is not None else 0)
    assert parse_name(name.file) == name


@given(st.text(max_size=40))
def test_any_name_is_taken_apart_somehow(file: str) -> None:
    assert parse_name(file).tries_done >= 0
    entries.slot_of_name(file)
    entries.is_entry_name(file)


def test_all_our_names_have_thirteen_letters_at_most() -> None:
    # One long-name record holds 13: entries of two records each never straddle a sector.
    longest = EntryName("a", 9, 999).file
    assert len(longest) <= 13


def test_an_entry_survives_being_written() -> None:
    found = parse_entry(entries.entry_text(Slot.B, "202606.29.0", 41, boot_id="0f0f"))
    assert (found.version, found.generation, found.slot) == ("202606.29.0", 41, Slot.B)
    assert found.image == (("linux", "/EFI/acl/b.efi"),)
    assert found.comments == ("written in boot 0f0f",)


def test_a_higher_generation_has_an_earlier_sort_key() -> None:
    keys = [entries.sort_key(generation) for generation in (0, 1, 2, 99, 100, 999_999)]
    assert keys == sorted(keys, reverse=True)
    with pytest.raises(ValueError, match="no generation"):
        entries.sort_key(1_000_000)


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        ("/EFI/acl/a.efi", Slot.A),
        ("\\EFI\\ACL\\B.EFI", Slot.B),
        ("EFI//acl/a.efi", Slot.A),
        ("/EFI/acl/c.efi", None),
        ("/EFI/acl/a.efi.extra.d", None),
        ("/other/a.efi", None),
    ],
)
def test_a_slot_is_known_by_the_path_of_its_image(path: str, slot: Slot | None) -> None:
    assert entries.slot_of_image(path) is slot


def test_of_keys_that_stand_twice_the_last_counts() -> None:
    assert parse_entry(b"version 1\nlinux /x\nversion 2\n").version == "2"


def test_lines_end_at_carriage_returns_and_files_at_nul() -> None:
    assert parse_entry(b"version 1\r\nlinux /EFI/acl/a.efi\r\n").slot is Slot.A
    assert parse_entry(b"version 1\0\nlinux /EFI/acl/a.efi\n").image == ()


def test_a_byte_order_mark_hides_the_first_key_as_it_does_for_the_loader() -> None:
    assert parse_entry(b"\xef\xbb\xbflinux /EFI/acl/a.efi\nversion 1\n").image == ()


def test_values_may_be_quoted_and_comments_are_skipped() -> None:
    assert key_values(b'# x 1\n  title\t "A b"  \nlone\n') == [("title", "A b")]


def test_a_sort_key_of_another_form_has_no_generation() -> None:
    for key in ("acl-0", "acl-0000001", "acl-00000x", "acl", "xacl-000001"):
        assert parse_entry(f"sort-key {key}\n".encode()).generation is None


def test_loader_conf_keeps_what_decides_the_boot() -> None:
    conf = parse_loader_conf(b"timeout menu-force\ndefault a*\ndefault @weird\npreferred @SAVED\nreboot-on-error no\n")
    assert (conf.default, conf.preferred, conf.timeout, conf.reboot_on_error) == ("a*", "@SAVED", "menu-force", "no")
    assert parse_loader_conf(None).default is None


def test_the_factory_loader_conf_names_no_default() -> None:
    conf = parse_loader_conf(entries.LOADER_CONF)
    assert (conf.default, conf.preferred, conf.timeout, conf.reboot_on_error) == (None, None, "0", "auto")


@given(st.binary(max_size=400))
def test_any_bytes_are_read_as_some_entry(raw: bytes) -> None:
    found = parse_entry(raw)
    assert found.generation is None or 0 <= found.generation <= entries.MAX_GENERATION
    parse_loader_conf(raw)
