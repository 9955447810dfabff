"""What the lab reads from a serial console."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from integration.lab.serial import Console, Mark, plain, read_command_line

HASH = "0123456789abcdef" * 4
BOOT = (
    b'\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)\r\n'
    b'BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)\r\n'
    b"EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path\r\n"
    b"[    0.000000] Linux version 6.12.0-cloud-amd64 (debian-kernel@lists.debian.org)\r\n"
    b"[    0.000000] Command line: roothash=" + HASH.encode() + b" panic=1 acl.lab.fault=2:panic\r\n"
    b"[    3.100000] systemd[1]: Running in initrd.\r\n"
    b"[    4.000000] device-mapper: verity: 252:2: data block 7 is corrupted\r\n"
    b"         Starting initrd-switch-root.service - Switch Root...\r\n"
    b"[    9.000000] systemd[1]: systemd 257.13 running in system mode (+PAM)\r\n"
    b"\x1b[0;1;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m - Multi-User System.\r\n"
    b"Debian GNU/Linux 13 acl-node ttyS0\r\n\r\nacl-node login: "
)
SEEN = [
    Mark.FIRMWARE,
    Mark.LOADER,
    Mark.STUB,
    Mark.KERNEL,
    Mark.COMMAND_LINE,
    Mark.INITRD,
    Mark.VERITY,
    Mark.SWITCH_ROOT,
    Mark.USERSPACE,
    Mark.MULTI_USER,
    Mark.LOGIN,
]


def marks(pieces: list[bytes]) -> list[Mark]:
    console = Console()
    for at, piece in enumerate(pieces):
        console.feed(piece, float(at))
    return [sighting.mark for sighting in console.sightings]


def test_every_stage_of_a_boot_is_seen_in_order() -> None:
    assert marks([BOOT]) == SEEN


@given(st.lists(st.integers(min_value=0, max_value=len(BOOT)), max_size=12))
def test_the_same_marks_are_seen_in_whatever_pieces_the_console_comes(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BOOT)]
    pieces = [BOOT[a:b] for a, b in itertools.pairwise(edges)]
    assert marks(pieces) == SEEN


@given(st.binary(max_size=600))
def test_garbage_on_the_console_is_never_fatal(noise: bytes) -> None:
    console = Console()
    console.feed(noise + b"\n", 1.0)
    console.feed(b"[    1.0] Kernel panic - not syncing: Attempted to kill init!\n", 2.0)
    assert any(sighting.mark is Mark.PANIC for sighting in console.sightings)


def test_the_command_line_tells_the_root_hash_and_the_faults() -> None:
    line = read_command_line(f"roothash={HASH} panic=1 acl.lab.fault=2:panic acl.lab.fault=3:hang")
    assert (line.root_hash, line.faults) == (HASH, ("2:panic", "3:hang"))


def test_the_last_root_hash_of_a_command_line_wins() -> None:
    assert read_command_line(f"roothash={'0' * 64} roothash={HASH}").root_hash == HASH


def test_a_root_hash_of_the_wrong_length_is_none() -> None:
    assert read_command_line("roothash=abc xroothash=" + HASH).root_hash is None


def test_the_hash_of_a_usr_image_tells_the_release_too() -> None:
    assert read_command_line(f"console=ttyS0 usrhash={HASH} acl.slot=b").root_hash == HASH


def test_escape_sequences_leave_the_words() -> None:
    assert plain("\x1b[0;1;31mFAILED\x1b[0m]\x1b[K now\r") == "FAILED] now"


def test_a_panic_keeps_its_words() -> None:
    console = Console()
    console.feed(b"[   12.3] Kernel panic - not syncing: dm-verity device corrupted\r\n", 12.0)
    panic = console.first(Mark.PANIC)
    assert panic is not None
    assert (panic.text, panic.at_s) == ("dm-verity device corrupted", 12.0)


def test_a_console_without_newlines_does_not_grow_for_ever() -> None:
    console = Console()
    for _ in range(100):
        console.feed(b"x" * 1000, 0.0)
    assert len(console._pending) <= 9192
