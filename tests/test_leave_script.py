"""PID 1's deadlines end a boot that another release stands behind, and spare any other."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from updater.boot import grub_env
from updater.boot.entries import uki_path
from updater.boot.firmware import Mark
from updater.boot.load_option import EspPlace, file_option, option_bytes, option_name, order_bytes
from updater.efivars import GLOBAL_GUID, LOADER_GUID, NON_VOLATILE
from updater.records import Journal, Kept, Phase, ReleaseRecord, RootRecord, Update, encode_state
from updater.release.unit_layer import unit_layer
from updater.slots import Slot

SPARED, LEFT = 0, 1
ROOT_HASH, OTHER_HASH = "ab" * 32, "cd" * 32
PLACE = EspPlace(1, 2048, 204800, UUID(int=1))


@dataclass(frozen=True)
class Boot:
    """One boot as the script sees it: EFI variables, the kernel's command line, the journal, an answering PID 1."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("efivars", "state", "bin"):
            (self.folder / name).mkdir()
        self.line(f"quiet roothash={ROOT_HASH} panic=10")
        self.complete(False)

    def line(self, text: str) -> None:
        (self.folder / "cmdline").write_text(f"{text}\n")

    def complete(self, is_active: bool) -> None:
        """Have PID 1 say whether boot-complete.target is active."""
        program = self.folder / "bin/systemctl"
        program.write_text(
            f'#!/bin/sh\n[ "$*" = "is-active --quiet boot-complete.target" ] && exit {0 if is_active else 3}\n'
        )
        program.chmod(0o755)

    def variable(self, name: str, value: bytes, guid: UUID = LOADER_GUID) -> None:
        (self.folder / "efivars" / f"{name}-{guid}").write_bytes(NON_VOLATILE.to_bytes(4, "little") + value)

    def came_from(self, description: str) -> None:
        """Say that the firmware started Boot001A, beside two options of ours that it did not start."""
        for number, words in {0x1A: description, 3: mark(trial=True), 4: mark(trial=False)}.items():
            option = file_option(PLACE, uki_path(Slot.B), words)
            self.variable(option_name(number), option_bytes(option), GLOBAL_GUID)
        self.variable("BootCurrent", order_bytes((0x1A,)), GLOBAL_GUID)

    def journal(self, phase: Phase, root_hash: str = ROOT_HASH) -> None:
        root = RootRecord(4096, 4096, root_hash, "", "00000000-0000-0000-0000-000000000000")
        release = ReleaseRecord("2.0.0", "ef" * 32, 0, "2026-11-20T00:00:00Z", root, [])
        update = Update("1", release, Slot.B, "1.0.0", Slot.A, "2026-11-20T00:00:00Z")
        (self.folder / "state/journal.json").write_bytes(encode_state(Kept(Journal(phase=phase, update=update))))

    def leave(self, *unit: str) -> int:
        """Run the script; return its exit code."""
        script = unit_layer()["usr/lib/acl-updater/leave"].content.decode()
        for path, here in (
            ("/sys/firmware/efi/efivars", "efivars"),
            ("/proc/cmdline", "cmdline"),
            ("/var/lib/acl-updater", "state"),
            ("/dev/kmsg", "kmsg"),
        ):
            assert path in script
            script = script.replace(path, str(self.folder / here))
        done = subprocess.run(
            ["/bin/sh", "-c", script, "leave", "the boot is late", *unit],
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode

    @property
    def said(self) -> str:
        path = self.folder / "kmsg"
        return path.read_text() if path.exists() else ""


def mark(*, trial: bool) -> str:
    return Mark(Slot.B, "2.0.0", trial, 7, "1234abcd").description("ACL")


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    return Boot(tmp_path)


def test_a_boot_that_nothing_counts_stays_however_late_it_is(boot: Boot) -> None:
    assert boot.leave("boot-complete.target") == SPARED
    assert boot.said == "acl-updater: nothing stands behind this boot, so it stays: the boot is late\n"


def test_a_boot_that_is_complete_is_not_talked_about(boot: Boot) -> None:
    boot.complete(True)
    assert boot.leave("boot-complete.target") == SPARED
    assert boot.said == ""


def test_a_boot_that_systemd_boot_counts_is_left(boot: Boot) -> None:
    boot.variable("LoaderInfo", b"")
    boot.variable("LoaderBootCountPath", b"")
    assert boot.leave("boot-complete.target") == LEFT
    assert boot.said == "acl-updater: the boot is late: leaving this release\n"


def test_a_counted_boot_that_is_complete_is_not_left(boot: Boot) -> None:
    boot.variable("LoaderBootCountPath", b"")
    boot.complete(True)
    assert boot.leave("boot-complete.target") == SPARED
    assert boot.said == ""


def test_a_counted_boot_is_left_without_a_question_when_no_unit_is_named(boot: Boot) -> None:
    boot.variable("LoaderBootCountPath", b"")
    boot.complete(True)
    assert boot.leave() == LEFT


def test_a_counted_boot_whose_pid_1_does_not_answer_is_left(boot: Boot) -> None:
    boot.variable("LoaderBootCountPath", b"")
    (boot.folder / "bin/systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert boot.leave("boot-complete.target") == LEFT


def test_grub_says_on_the_command_line_which_boots_it_counts(boot: Boot) -> None:
    counted = [f"acl.tries_left={left}" for left in range(grub_env.MAX_TRIES)]
    for words in (*counted, "acl.tries_left=good", "acl.tries_left=last", "acl.tries_left=10"):
        boot.line(f"quiet acl.slot=b {words} panic=1")
        assert boot.leave() == (LEFT if words in counted else SPARED), words


@pytest.mark.parametrize(("trial", "code"), [(True, LEFT), (False, SPARED)])
def test_the_firmwares_option_says_whether_it_is_a_trial(boot: Boot, trial: bool, code: int) -> None:
    boot.came_from(mark(trial=trial))
    assert boot.leave() == code


def test_an_option_of_somebody_else_is_no_trial(boot: Boot) -> None:
    boot.came_from("Linux, free trial 30 days")
    assert boot.leave() == SPARED


@pytest.mark.parametrize(
    ("phase", "code"),
    [("armed", LEFT), ("rolling-back", LEFT), ("committing", SPARED), ("reverting", SPARED), ("idle", SPARED)],
)
def test_where_the_loader_says_nothing_the_journal_knows_the_trial(boot: Boot, phase: Phase, code: int) -> None:
    boot.line(f"mount.usr=/dev/dm-0 verity.usrhash={ROOT_HASH} quiet")
    boot.journal(phase)
    assert boot.leave() == code


def test_the_old_release_beside_an_armed_one_is_no_trial(boot: Boot) -> None:
    boot.journal("armed", OTHER_HASH)
    assert boot.leave() == SPARED


@pytest.mark.parametrize("loader", ["systemd-boot", "grub"])
def test_a_loader_that_counts_is_believed_before_the_journal(boot: Boot, loader: str) -> None:
    # It would start the same entry again, uncounted, boot after boot.
    boot.journal("armed")
    if loader == "grub":
        boot.line(f"roothash={ROOT_HASH} acl.slot=b acl.tries_left=last")
    else:
        boot.variable("LoaderInfo", b"")
    assert boot.leave() == SPARED
