"""What proves that a machine's firmware, clock, second disk and slow disk were as wrong as the lab had made them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.lab import firmware_store, injecting
from integration.lab.emulator import Given
from integration.lab.firmware_proofs import StoreFault, hand_over
from integration.lab.hardware_proofs import SlowDiskProof, clock_proof, twin_proof
from integration.lab.injections import Firmware, MachineChange
from integration.lab.qmp import QmpTalk
from integration.lab.run import NotInjected, Run
from integration.lab.timeline import Ending
from tests.test_efivars import empty_store
from tests.test_lab_strikes import Boots, Clock, Power, run
from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID
from updater.errors import EnvironmentFailure

__all__ = ["run"]

EDK2_COUNTER = uuid.UUID("eb704011-1402-11d3-8e77-00a0c969723b")
EDK2_NO_ROOM = uuid.UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa")
# Lines that QEMU's machine showed on its serial console.
RTC = "[    2.572535] rtc_cmos 00:01: setting system clock to {} UTC (1)\n"
VDA = """[    7.014251] virtio_blk virtio0: [vda] 3575808 512-byte logical blocks (1.83 GB/1.71 GiB)
[    7.075803]  vda: vda1 vda2 vda3 vda4 vda5 vda6
"""
VDB = """[    7.088450] virtio_blk virtio1: [vdb] 3575808 512-byte logical blocks (1.83 GB/1.71 GiB)
[    7.114632]  vdb: vdb1 vdb2 vdb3 vdb4 vdb5 vdb6
"""


# -- the variable store ----------------------------------------------------------------------------------------------


def start(store: Path) -> None:
    """Do to a store what a start of EDK2's firmware does: count it, and see to the boot options."""
    variables = FileEfiVariables(store)
    counted = int.from_bytes(variables.read("MTC", EDK2_COUNTER) or b"", "little")
    variables.write("MTC", (counted + 1).to_bytes(4, "little"), EDK2_COUNTER)
    if variables.read("BootOrder", GLOBAL_GUID) is None:
        variables.write("Boot0001", b"\x01", GLOBAL_GUID)
        variables.write("BootOrder", b"\x01\x00", GLOBAL_GUID)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the store of a machine that was started twice."""
    made = empty_store(tmp_path / "store.fd")
    start(made)
    start(made)
    return made


def wipe(store: Path) -> None:
    firmware_store.wipe(store, empty_store(store.parent / "empty.fd"))


CHANGES: dict[StoreFault, Callable[[Path], object]] = {
    StoreFault.WIPED: wipe,
    StoreFault.NO_BOOT_ORDER: firmware_store.forget_boot_order,
    StoreFault.FULL: firmware_store.fill,
}


@pytest.mark.parametrize("fault", CHANGES)
def test_a_store_in_which_the_firmware_counted_its_start_proves_its_fault(store: Path, fault: StoreFault) -> None:
    CHANGES[fault](store)
    proof = hand_over(fault, store, 2)
    assert proof.missing(2) == "no boot met it"
    assert "counted 0 starts" in str(proof.missing(3))
    start(store)
    assert proof.missing(3) is None


def test_a_store_that_was_not_wiped_counts_more_starts_than_there_were(store: Path) -> None:
    saved = store.read_bytes()
    wipe(store)
    proof = hand_over(StoreFault.WIPED, store, 2)
    store.write_bytes(saved)
    start(store)
    assert proof.missing(3) == "the firmware counted 3 starts in it, and there were 1"


def test_a_store_whose_boot_options_nobody_made_anew_proves_nothing(store: Path) -> None:
    firmware_store.forget_boot_order(store)
    proof = hand_over(StoreFault.NO_BOOT_ORDER, store, 0)
    start(store)
    FileEfiVariables(store).delete("BootOrder", GLOBAL_GUID)
    assert proof.missing(1) == "the firmware made no boot option anew"


def test_a_store_from_which_the_firmware_dropped_the_fillers_was_not_full(store: Path) -> None:
    firmware_store.fill(store)
    proof = hand_over(StoreFault.FULL, store, 0)
    start(store)
    FileEfiVariables(store).delete("AclLabFiller000", firmware_store.FILLER_GUID)
    assert "fillers are in it" in str(proof.missing(1))


def test_a_store_is_full_when_the_firmware_noted_that_it_found_no_room(store: Path) -> None:
    FileEfiVariables(store).write("VarErrorFlag", b"\xff", EDK2_NO_ROOM)
    FileEfiVariables(store).write("ConOut", bytes(73), GLOBAL_GUID)
    firmware_store.fill(store)
    proof = hand_over(StoreFault.FULL, store, 0)
    start(store)
    FileEfiVariables(store).delete("ConOut", GLOBAL_GUID)
    assert "bytes are free" in str(proof.missing(1))
    FileEfiVariables(store).write("VarErrorFlag", b"\xef", EDK2_NO_ROOM)
    assert proof.missing(1) is None


def test_a_store_that_is_written_is_not_read_only(store: Path) -> None:
    proof = hand_over(StoreFault.READ_ONLY, store, 0)
    assert proof.missing(1) is None
    start(store)
    assert proof.missing(1) == "the firmware has written to it"


def test_nothing_fits_into_a_full_store(store: Path) -> None:
    assert firmware_store.fill(store) < firmware_store.SMALLEST_BYTES
    with pytest.raises(EnvironmentFailure):
        FileEfiVariables(store).write("A", b"\x01", uuid.uuid4())
    with pytest.raises(EnvironmentFailure) as caught:
        firmware_store.fill(store)
    assert caught.value.reason == "fault-not-injected"


def test_a_store_as_new_has_nothing_to_wipe(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        wipe(empty_store(tmp_path / "store.fd"))
    assert caught.value.reason == "fault-not-injected"


# -- the console -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "proven"),
    [("1970-01-01T00:00:03", 1), ("1970-01-02T00:00:01", 1), ("2026-11-20T19:43:40", 0), ("1970-01-03T00:00:00", 0)],
)
def test_a_clock_is_proven_by_the_time_that_the_kernel_took_from_it(said: str, proven: int) -> None:
    boots, proof = Boots(running=(1, "1.0.0"), console=RTC.format(said)), clock_proof("1970-01-01T00:00:00")
    proof.look(boots, Power())
    proof.look(boots, Power())
    assert proof.proven == len(boots.notes) == proven


@pytest.mark.parametrize(
    ("console", "proven"),
    [
        (VDA + VDB, 1),
        (VDA, 0),
        (VDA + VDA, 0),
        (VDA + VDB.partition("\n")[0] + "\n", 0),
        (VDA + VDB.replace("3575808", "2048"), 0),
    ],
)
def test_a_twin_is_proven_by_a_second_disk_of_the_same_size_with_partitions(console: str, proven: int) -> None:
    proof = twin_proof()
    proof.look(Boots(console=console), Power())
    assert proof.proven == proven


# -- the slow disk ---------------------------------------------------------------------------------------------------


@dataclass
class Counters:
    """A QEMU whose disk has moved some bytes."""

    limit: int | None = 4_000_000
    moved: int = 0
    debugger: bytes | str | None = None
    monitor: QmpTalk = field(default_factory=QmpTalk)
    number: int = 0

    def ask(self, name: str, **arguments: Any) -> int:
        self.number += 1
        stats = {"rd_bytes": self.moved // 2, "wr_bytes": self.moved - self.moved // 2}
        other = {"node-name": "twin", "stats": {"rd_bytes": 1 << 40, "wr_bytes": 0}}
        answer: dict[str, Any] = {"return": [other, {"node-name": "disk", "stats": stats}]}
        if name == "qom-get":
            assert arguments == {"path": "/objects/slow", "property": "x-bps-total"}
            answer = {"error": {"desc": "no such object"}} if self.limit is None else {"return": self.limit}
        self.monitor.answers[self.number] = answer
        return self.number


def watched(power: Counters, rate: float, *, seconds: int = 12) -> SlowDiskProof:
    """Return the proof of a disk of 4 MB/s, of which a machine moved `rate` bytes a second."""
    clock, boots = Clock(), Boots()
    proof = SlowDiskProof(4_000_000, clock)
    for _ in range(seconds):
        proof.look(boots, power)
        power.moved += int(rate)
        clock.now += 1.0
    return proof


@pytest.mark.parametrize(
    ("limit", "rate", "proven"),
    [(4_000_000, 3.9e6, 1), (4_000_000, 50e6, 0), (4_000_000, 1e6, 0), (None, 3.9e6, 0), (8_000_000, 3.9e6, 0)],
)
def test_a_slow_disk_is_proven_at_its_limit_and_neither_beyond_nor_far_below(
    limit: int | None, rate: float, proven: int
) -> None:
    assert watched(Counters(limit), rate).proven == proven


def test_a_burst_of_a_second_is_no_limit(tmp_path: Path) -> None:
    assert watched(Counters(), 3.9e6, seconds=3).proven == 0


def test_another_qemu_counts_from_nothing_and_the_time_between_two_boots_is_nobodys() -> None:
    clock, boots, proof = Clock(), Boots(), SlowDiskProof(4_000_000)
    proof.clock = clock
    first, second = Counters(moved=60_000_000), Counters()
    for power in (first, second):
        proof.look(boots, power)
        clock.now += 3.0
        proof.look(boots, power)
        clock.now += 3.0
    assert proof.fastest == 0.0
    proof.look(boots, second)
    proof.boot_ended(second)
    clock.now += 60.0
    second.moved += 900_000_000
    proof.look(boots, second)
    assert proof.fastest == 0.0


# -- a run that proved none of it ------------------------------------------------------------------------------------


def booted(run: Run) -> None:
    """Let the machine boot once, in the lab's books."""
    run.observer.begin(Given())
    run.observer.end(Ending.POWER_OFF)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (MachineChange(clock="1970-01-01T00:00:00"), "the clock of 1970"),
        (MachineChange(slow_disk=4_000_000), "the slow disk"),
        (MachineChange(twin_disk=True), "the twin disk"),
    ],
)
def test_hardware_that_no_boot_was_seen_to_have_is_an_error(run: Run, change: MachineChange, name: str) -> None:
    run.disk.path.write_bytes(bytes(4096))
    injecting.perform(change, run)
    with pytest.raises(NotInjected, match=name):
        run.require_injection()


def test_a_store_that_the_firmware_never_met_is_an_error(run: Run) -> None:
    empty_store(run.machine.variables)
    start(run.machine.variables)
    injecting.perform(Firmware(fill=True), run)
    with pytest.raises(NotInjected, match="no boot met it"):
        run.require_injection()


def test_a_store_that_was_met_is_proven_before_the_next_change_of_it(run: Run) -> None:
    empty_store(run.machine.variables)
    injecting.perform(Firmware(read_only=True), run)
    booted(run)
    injecting.perform(MachineChange(restore=True), run)
    start(run.machine.variables)
    run.require_injection()
    assert "it keeps nothing" in run.observer.events[-1].text


def test_read_only_variables_that_were_written_are_an_error(run: Run) -> None:
    empty_store(run.machine.variables)
    injecting.perform(Firmware(read_only=True), run)
    booted(run)
    start(run.machine.variables)
    with pytest.raises(NotInjected, match="has written to it"):
        injecting.perform(Firmware(read_only=False), run)
