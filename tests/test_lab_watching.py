"""How the lab waits, speaks to QEMU and the guest, and records boots while they happen."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration.lab.agent import AgentTalk, ran, run_request
from integration.lab.boots import Observer
from integration.lab.emulator import Emulator, Given, Hardware, Wires, command, smbios_strings
from integration.lab.machine import Machine
from integration.lab.node import did
from integration.lab.patience import Patience
from integration.lab.qmp import QmpEvent, QmpTalk
from integration.lab.run import paced, tmpfiles_line
from integration.lab.timeline import DiskView, Ending, Outcome, Phase
from updater.boot.entries import parse_name

HASH = "ab" * 32
MULTI_USER = b"[  OK  ] Reached target multi-user.target - Multi-User System.\r\n"


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeDisk:
    entries: list[str]
    generation: int = 2
    slots: dict[str, str] = field(default_factory=lambda: {HASH[:32]: "b"})

    def look(self) -> DiskView:
        names = tuple(parse_name(name) for name in self.entries)
        return DiskView(self.slots, names, {name.file: self.generation for name in names})


def booted(tmp_path: Path, disk: FakeDisk, clock: Clock) -> Observer:
    observer = Observer(tmp_path, releases={HASH: "2.0.0"}, look=disk.look, clock=clock)
    observer.begin(Given())
    observer.serial(b"BdsDxe: starting Boot0001\r\n[ 0.0] Command line: roothash=" + HASH.encode() + b"\r\n")
    clock.now += 20
    observer.serial(
        b"systemd[1]: Switching root.\r\n[  OK  ] Reached target multi-user.target - Multi-User System.\r\n"
    )
    return observer


def test_a_trial_whose_entry_became_good_was_committed_and_later_boots_of_it_are_healthy(tmp_path: Path) -> None:
    disk, clock = FakeDisk(["b+2-1.conf", "a.conf"]), Clock()
    observer = booted(tmp_path, disk, clock)
    outcomes = [observer.boots[-1].outcome]
    clock.now += 5
    disk.entries = ["b+3-0.conf", "a.conf"]
    outcomes.append(observer.boots[-1].outcome)
    assert outcomes == [Outcome.RUNNING, Outcome.COMMITTED]
    clock.now += 5
    observer.end(Ending.RESET)
    first = observer.boots[0]
    assert (first.slot, first.release, first.outcome, first.entry) == ("b", "2.0.0", Outcome.COMMITTED, "b+2-1.conf")
    assert [(span.phase, span.to_s) for span in first.spans][-2:] == [(Phase.TRIAL, 25.0), (Phase.UP, 30.0)]
    disk.entries = ["b+2-1.conf", "a.conf"]
    observer.begin(Given())
    observer.serial(b"[ 0.0] Command line: roothash=" + HASH.encode() + b"\r\n")
    observer.serial(MULTI_USER)
    assert observer.boots[-1].outcome is Outcome.HEALTHY


def test_a_boot_that_ends_while_somebody_reads_the_boots_is_there_once(tmp_path: Path) -> None:
    disk, clock = FakeDisk(["b+2-1.conf"]), Clock()
    observer: Observer | None = None

    def look() -> DiskView:
        reader, watched = observer, disk.look()
        if reader is not None and clock.now > 0:
            clock.now = 0.0
            reader.end(Ending.WATCHDOG)
        return watched

    observer = Observer(tmp_path, releases={HASH: "2.0.0"}, look=look, clock=clock)
    observer.begin(Given())
    observer.serial(b"[ 0.0] Command line: roothash=" + HASH.encode() + b"\r\n")
    clock.now = 20.0
    meanwhile, after = observer.boots, observer.boots
    assert [boot.n for boot in meanwhile] == [1], "as it stood when it was asked for"
    assert [(boot.n, boot.ending) for boot in after] == [(1, Ending.WATCHDOG)]


def test_a_new_trial_of_the_same_release_has_to_be_committed_anew(tmp_path: Path) -> None:
    disk, clock = FakeDisk(["b+2-1.conf"]), Clock()
    observer = booted(tmp_path, disk, clock)
    disk.entries = ["b.conf"]
    observer.end(Ending.RESET)
    disk.entries, disk.generation = ["b+2-1.conf"], 3
    observer.begin(Given())
    observer.serial(b"[ 0.0] Command line: roothash=" + HASH.encode() + b"\r\n")
    observer.serial(MULTI_USER)
    assert observer.boots[-1].outcome is Outcome.RUNNING


def test_every_boot_leaves_its_own_serial_log(tmp_path: Path) -> None:
    observer = booted(tmp_path, FakeDisk(["b+2-1.conf"]), Clock())
    observer.end(Ending.RESET)
    observer.begin(Given())
    observer.serial(b"second\n")
    observer.end(Ending.POWER_CUT)
    assert b"roothash" in (tmp_path / "serial-01.log").read_bytes()
    assert (tmp_path / "serial-02.log").read_bytes() == b"second\n"


def test_a_watchdog_event_is_kept_as_the_reason_of_a_reset(tmp_path: Path) -> None:
    observer = booted(tmp_path, FakeDisk(["b+2-1.conf"]), Clock())
    observer.event(QmpEvent("WATCHDOG", {"action": "reset"}))
    assert observer.saw_watchdog
    observer.end(Ending.WATCHDOG)
    assert observer.boots[-1].outcome is Outcome.WATCHDOG


def test_patience_is_spent_more_slowly_on_a_busy_machine() -> None:
    clock, pace = Clock(), 1.0
    patience = Patience(10, clock=clock, pace=lambda: pace)
    clock.now = 8
    assert not patience.is_over
    pace = 4.0
    clock.now = 15
    assert not patience.is_over
    clock.now = 17
    assert patience.is_over


def test_qmp_lines_may_come_in_pieces() -> None:
    talk = QmpTalk()
    raw = b'{"QMP": {}}\r\n{"return": {}, "id": 7}\r\n{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}\r\n'
    events = [event for at in range(0, len(raw), 5) for event in talk.feed(raw[at : at + 5])]
    assert events == [QmpEvent("SHUTDOWN", {"reason": "guest-reset"})]
    assert talk.ready
    assert 7 in talk.answers


def test_the_agent_is_up_once_it_greets_and_noise_is_skipped() -> None:
    talk = AgentTalk()
    talk.feed(b'noise\n{"event": "ready", "boot_id": "x"}\n{"id": 3, "rc": 1, "stdout": "out", "stderr": ""}\n[1]\n')
    assert talk.greeted
    done = ran(["false"], talk.answers[3])
    assert (done.exit_code, done.stdout) == (1, "out")
    assert json.loads(run_request(4, ["true"], stdin="", timeout_s=5.0))["argv"] == ["true"]


def test_all_kernel_parameters_travel_in_the_one_string_that_the_stub_reads_the_last_as_grub_wants_it() -> None:
    strings = smbios_strings(Given(("one=1", "two=2"), {"name": "a,b\nc"}))
    assert strings[0] == "io.systemd.credential.binary:name=YSxiCmM="
    assert strings[1] == "io.systemd.stub.kernel-cmdline-extra=one=1 two=2"


def test_a_machine_without_uefi_has_no_store_of_variables() -> None:
    emulator = Emulator(("qemu",), Path("/fw/code"), Path("/fw/vars"))
    wires = Wires(7, 8)
    for uefi in (True, False):
        argv = command(emulator, Hardware(uefi=uefi), Given(), wires, disk=Path("/disk"), variables=Path("/vars"))
        assert ("pflash" in " ".join(argv)) is uefi


def test_a_comma_in_a_path_does_not_end_an_option() -> None:
    emulator = Emulator(("qemu",), Path("/fw/code"), Path("/fw/vars"))
    argv = command(emulator, Hardware(), Given(), Wires(7, 8), disk=Path("/a,b/disk"), variables=Path("/a,b/vars"))
    assert any("filename=/a,,b/disk" in word for word in argv)
    assert argv[:4] == ["setpriv", "--pdeathsig", "KILL", "--"]


def test_a_calls_document_is_its_whole_output_or_its_last_line() -> None:
    whole = did("status", 0, '{\n "situation": "idle"\n}\n', "")
    refused = did("check", 4, '{"error": "release 2 is quarantined", "reason": "quarantined"}\n', "a log line\n")
    assert whole.document["situation"] == "idle"
    assert whole.reason is None
    assert (refused.reason, refused.sentence) == ("quarantined", "release 2 is quarantined")
    assert did("status", 1, "Traceback", "boom").document == {}


def test_a_configuration_survives_the_rules_of_tmpfiles() -> None:
    line = tmpfiles_line({"channel": "50%", "x": "a\\b"})
    assert line == r'f+ /etc/acl-updater/config.d/90-lab.yaml 0644 root root - {"channel": "50%%", "x": "a\\\\b"}'


def test_marked_seconds_grow_with_the_load() -> None:
    assert paced("systemd.watchdog_sec=@20", 1.5) == "systemd.watchdog_sec=30"


def test_whoever_waits_learns_at_once_that_the_watching_has_failed(tmp_path: Path) -> None:
    (tmp_path / "efi-variables.fd").touch()
    emulator = Emulator(("qemu",), Path("/fw/code"), Path("/fw/vars"))
    # Its folder is gone, as after a disk that ran full: no serial log can be written.
    observer = Observer(tmp_path / "gone", releases={}, look=lambda: DiskView({}, ()))
    with Machine(emulator, disk=tmp_path / "disk", folder=tmp_path, observer=observer) as machine:
        machine.power_on()
        with pytest.raises(FileNotFoundError):
            machine.pause(60.0)


def test_a_transfer_that_failed_is_counted_and_told_once(tmp_path: Path) -> None:
    observer = booted(tmp_path, FakeDisk(["b+2-1.conf", "a.conf"]), Clock())
    for _ in range(3):
        observer.event(QmpEvent("BLOCK_IO_ERROR", {"operation": "read"}))
    assert observer.disk_errors == 3
    assert [event.text for event in observer.events if event.kind == "fault"] == ["the disk failed a read"]
