"""What goes wrong in a running machine: its processor, its disk, and what the disk said it had kept."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.lab.boots import Observer
from integration.lab.debugger import Debugger, Unreadable, framed
from integration.lab.disk import Disk
from integration.lab.emulator import Emulator, Hardware
from integration.lab.injections import Processor
from integration.lab.lying_disk import LyingDisk
from integration.lab.machine import Machine
from integration.lab.qmp import QmpTalk
from integration.lab.run import NotInjected, Run
from integration.lab.scenario import parse_scenario
from integration.lab.server import LabServer
from integration.lab.stock import Stock
from integration.lab.storage import below_disk
from integration.lab.strikes import Defect, Moment, ProcessorStrike, Strikes
from integration.lab.timeline import DiskView
from integration.lab.unplug import Unplug
from updater.errors import EnvironmentFailure, InvalidDocument

KERNEL = 0xFFFF_FFFF_8100_0000
INTERRUPTS = 1 << 9
USER, IDLE, BUSY = 0x7F00_0000_1000, KERNEL + 0x10, KERNEL + 0x20
MOMENT = Moment("2.0.0", re.compile("multi-user"))


@dataclass
class Stub:
    """A gdb stub as QEMU's is: it stops when somebody comes, and goes on when that one says farewell."""

    rip: int = USER
    rflags: int = INTERRUPTS
    memory: bytearray = field(default_factory=lambda: bytearray(b"\x90" * 15 + b"\xf4" + b"\x90" * 240))
    visits: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind("")
        self._listening.listen(1)
        self.address = self._listening.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.stopped, self.visits = True, self.visits + 1
            with connection:
                pending = b""
                while self.stopped and (data := connection.recv(4096)):
                    pending += data
                    while match := re.search(rb"\$([^#]*)#(..)", pending):
                        pending = pending[match.end() :]
                        assert framed(match[1]) == match[0]
                        connection.sendall(b"+" + framed(self._answer(match[1])))

    def _answer(self, packet: bytes) -> bytes:
        words = re.fullmatch(rb"(.)(?:([0-9a-f]+),([0-9a-f]+))?(?::(.*))?", packet)
        assert words is not None
        if words[1] == b"D":
            self.stopped = False
            return b"OK"
        if words[1] == b"g":
            cs = 0x33 if self.rip < KERNEL else 0x10
            return (bytes(128) + self.rip.to_bytes(8, "little") + words_of(self.rflags) + words_of(cs)).hex().encode()
        at, length = int(words[2], 16) - KERNEL, int(words[3], 16)
        if not 0 <= at < len(self.memory):
            return b"E14"
        if words[1] == b"m":
            return self.memory[at : at + length].hex().encode()
        self.memory[at : at + length] = bytes.fromhex(words[4].decode())
        return b"OK"


def words_of(value: int) -> bytes:
    return value.to_bytes(4, "little")


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


@dataclass
class Boots:
    """A machine's boots as strikes see them."""

    running: tuple[int, str | None] = (1, "2.0.0")
    console: str = "Reached target multi-user.target"
    disk_errors: int = 0
    notes: list[str] = field(default_factory=list)

    def console_shows(self, pattern: re.Pattern[str]) -> bool:
        return pattern.search(self.console) is not None

    def note(self, kind: str, text: str) -> None:
        self.notes.append(f"{kind}: {text}")


@dataclass
class Power:
    """A QEMU that does what it is asked, or refuses."""

    debugger: bytes | str | None = None
    monitor: QmpTalk = field(default_factory=QmpTalk)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refuses: str | None = None

    def ask(self, name: str, **arguments: Any) -> int:
        self.asked.append((name, arguments))
        self.monitor.answers[len(self.asked)] = (
            {"error": {"desc": "no such node"}} if name == self.refuses else {"return": {}}
        )
        return len(self.asked)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# -- the stub --------------------------------------------------------------------------------------------------------


def test_a_processor_is_stopped_looked_at_written_and_let_go(stub: Stub) -> None:
    stub.rip = BUSY
    with Debugger(stub.address) as debugger:
        registers = debugger.registers()
        assert (registers.rip, registers.in_kernel, registers.takes_interrupts) == (BUSY, True, True)
        debugger.write(BUSY, b"\xeb\xfe")
        assert debugger.read(BUSY, 3) == b"\xeb\xfe\x90"
        assert stub.stopped
        with pytest.raises(Unreadable):
            debugger.read(0x1000, 1)
    assert not stub.stopped


def test_firmware_and_processes_are_not_the_kernel(stub: Stub) -> None:
    for rip in (USER, 0x3F98_8000):
        stub.rip = rip
        with Debugger(stub.address) as debugger:
            assert not debugger.registers().in_kernel


def test_a_machine_that_is_gone_is_told_of() -> None:
    with pytest.raises(EnvironmentFailure, match="cannot be reached"):
        Debugger(b"\0nobody-listens-here")


# -- the processor ---------------------------------------------------------------------------------------------------


def test_an_oops_waits_for_a_task_in_the_kernel_and_is_proven_by_its_words(stub: Stub) -> None:
    boots, power, strike = Boots(), Power(stub.address), ProcessorStrike(MOMENT, Defect.OOPS)
    for rip in (USER, IDLE):
        stub.rip = rip
        strike.look(boots, power)
        assert strike.is_urgent
        assert boots.notes == []
    stub.rip = BUSY
    strike.look(boots, power)
    assert stub.memory[0x20:0x22] == b"\x0f\x0b"
    assert (strike.is_urgent, strike.proven) == (False, 0)
    boots.console += "\nOops: invalid opcode: 0000 [#1] PREEMPT SMP"
    strike.look(boots, power)
    strike.look(boots, power)
    assert strike.proven == 1


def test_a_soft_lockup_needs_interrupts_and_a_deaf_one_does_not(stub: Stub) -> None:
    stub.rip, stub.rflags = BUSY, 0
    boots, power = Boots(), Power(stub.address)
    ProcessorStrike(MOMENT, Defect.SPIN).look(boots, power)
    assert boots.notes == []
    ProcessorStrike(MOMENT, Defect.SPIN_DEAF).look(boots, power)
    assert stub.memory[0x20:0x23] == b"\xfa\xeb\xfe"


def test_a_spin_is_proven_by_a_processor_that_is_still_there_and_stands_for_as_long(stub: Stub) -> None:
    clock, boots, power = Clock(), Boots(), Power(stub.address)
    strike = ProcessorStrike(MOMENT, Defect.SPIN_DEAF, clock)
    strikes = Strikes([strike])
    stub.rip = BUSY
    strikes.look(boots, power)
    clock.now, stub.rip, stub.rflags = 1.0, BUSY + 1, 0
    strikes.look(boots, power)
    assert (strike.proven, strikes.stands_s) == (1, 1.0)
    clock.now = 9.0
    strikes.look(boots, power)
    assert (strike.proven, strikes.stands_s) == (1, 9.0)
    # The next boot is another story.
    boots.running, boots.console = (2, "2.0.0"), "Linux version"
    strikes.look(boots, power)
    assert (strike.proven, strikes.stands_s, strikes.is_urgent) == (1, 0.0, False)


def test_a_spin_that_was_left_is_not_proven(stub: Stub) -> None:
    clock, boots, power = Clock(), Boots(), Power(stub.address)
    strike = ProcessorStrike(MOMENT, Defect.SPIN_DEAF, clock)
    stub.rip = BUSY
    strike.look(boots, power)
    clock.now, stub.rip = 5.0, BUSY + 0x40
    strike.look(boots, power)
    assert (strike.proven, strike.stands_s) == (0, 0.0)


def test_another_release_and_an_earlier_moment_are_left_alone(stub: Stub) -> None:
    stub.rip = BUSY
    strike = ProcessorStrike(MOMENT, Defect.SPIN_DEAF)
    for boots in (Boots(running=(1, "1.0.0")), Boots(console="Linux version"), Boots(running=(0, None))):
        strike.look(boots, Power(stub.address))
    assert stub.visits == 0


def test_a_pattern_of_a_moment_must_be_one() -> None:
    with pytest.raises(InvalidDocument):
        Processor(release=2, does="spin", at="(")


# -- the disk --------------------------------------------------------------------------------------------------------


def unplug() -> Unplug:
    return Unplug(MOMENT, 4096, below_disk(slow=None, bad_sectors=()))


def test_a_disk_is_unplugged_once_a_boot_and_back_after_a_reset() -> None:
    boots, power, strike = Boots(disk_errors=1), Power(), unplug()
    strike.look(boots, power)
    strike.look(boots, power)
    assert [name for name, _ in power.asked] == ["blockdev-add", "blockdev-add", "blockdev-reopen"]
    assert power.asked[-1][1]["options"][0]["file"] == "dead"
    assert strike.proven == 0
    boots.disk_errors = 2
    strike.look(boots, power)
    assert strike.proven == 1
    strike.boot_ended(power)
    name, arguments = power.asked[3]
    assert (name, arguments["options"][0]["file"]) == ("blockdev-reopen", "file")
    boots.running = (2, "2.0.0")
    strike.look(boots, power)
    boots.disk_errors = 3
    strike.look(boots, power)
    assert strike.proven == 2


def test_a_disk_that_qemu_keeps_is_an_error() -> None:
    with pytest.raises(EnvironmentFailure, match="no such node"):
        unplug().look(Boots(), Power(refuses="blockdev-reopen"))


def test_a_disk_goes_back_to_the_node_that_it_stood_on() -> None:
    assert below_disk(slow=1000, bad_sectors=()) == "throttled"


def test_a_lying_disk_loses_what_was_written_since_and_nothing_else(tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.write_bytes(b"a" * 12288)
    kept.write_bytes(b"a" * 12288)
    lying = LyingDisk(disk, kept, ((4096, 8192),))
    assert lying.lose() == 0
    disk.write_bytes(b"b" * 12288)
    assert lying.lose() == 8192
    assert disk.read_bytes() == b"b" * 4096 + b"a" * 8192


# -- a run that injected nothing is none -----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Yield a run whose machine was never on."""
    (tmp_path / "efi-variables.fd").touch()
    emulator = Emulator(("qemu",), tmp_path / "code", tmp_path / "vars")
    observer = Observer(tmp_path, releases={}, look=lambda: DiskView({}, ()))
    hardware = Hardware()
    with LabServer(tmp_path) as server:
        yield Run(
            Stock(emulator, tmp_path, tmp_path, tmp_path, {}, tmp_path),
            parse_scenario(b"name: s\nsummary: A scenario.\nsteps: [{power: cut}]\n", "s.yaml"),
            tmp_path,
            Machine(emulator, disk=tmp_path / "disk", folder=tmp_path, observer=observer, hardware=hardware),
            Disk(tmp_path / "disk"),
            server,
            observer,
            {},
            tmp_path,
            hardware,
        )


def lying(run: Run, now: bytes) -> LyingDisk:
    run.disk.path.write_bytes(now)
    (run.folder / "kept").write_bytes(b"a" * 4096)
    return LyingDisk(run.disk.path, run.folder / "kept", ((0, 4096),))


def test_a_strike_that_was_never_seen_is_an_error(run: Run) -> None:
    run.require_injection()
    run.machine.strikes.append(ProcessorStrike(MOMENT, Defect.OOPS))
    with pytest.raises(NotInjected, match="processor oops"):
        run.require_injection()


def test_a_disk_that_lied_loses_it_when_the_power_goes_and_is_honest_then(run: Run) -> None:
    run.lying = lying(run, b"b" * 4096)
    run.power_went()
    assert run.disk.path.read_bytes() == b"a" * 4096
    assert not (run.folder / "kept").exists()
    run.disk.path.write_bytes(b"c" * 4096)
    run.power_went()
    assert run.disk.path.read_bytes() == b"c" * 4096
    run.require_injection()


def test_a_disk_that_lied_about_nothing_or_kept_its_power_is_an_error(run: Run) -> None:
    run.lying = lying(run, b"a" * 4096)
    with pytest.raises(NotInjected, match="nothing to lose"):
        run.power_went()
    run.lying = lying(run, b"b" * 4096)
    with pytest.raises(NotInjected, match="power never went"):
        run.require_injection()
