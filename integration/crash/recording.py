"""Records a whole update inside a machine: the disk as it was before, and every write from then on."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from integration.lab.actions import perform
from integration.lab.boots import Event, Observer
from integration.lab.disk import Disk, copy_disk
from integration.lab.emulator import Hardware, Recording
from integration.lab.machine import Machine
from integration.lab.run import Failed, Run
from integration.lab.scenario import Scenario, parse_scenario
from integration.lab.server import LabServer
from integration.lab.stock import Stock
from updater.errors import EnvironmentFailure

log = logging.getLogger(__name__)

_ABOUT = "recording.json"

# The factory release first comes up without a recording: a first boot writes the variable store thousands of times,
# and makes much on the state partition that no update touches.
_BEFORE = b"""
name: before
summary: The factory release comes up once, and goes off in good order.
steps:
  - boot: {until: {settled: 1}}
  - power: down
  - expect: {loader: [a.conf]}
"""
_DURING = b"""
name: during
summary: The node takes the next release over HTTP, tries it and commits it, all by itself.
config:
  health: {deadline_s: 240, hold_s: 3, interval_s: 1}
steps:
  - boot: {until: {running: 1}}
  - updater: {run: update --to 2.0.0, background: true}
  - wait: {until: {committed: 2}, timeout_s: 600}
  - wait: {until: {settled: 2}}
  - power: down
  - expect:
      loader: [b*.conf, a.conf]
      unchanged: [a]
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording left: `base` is disk and variable store before it, `log` every write since.

    The first `disk_bytes` of `base` are the disk, the next `store_bytes` the variable store.
    """

    base: Path
    log: Path
    disk_bytes: int
    store_bytes: int


def record(stock: Stock, folder: Path) -> Recorded:
    """Return the recording in `folder`, made anew unless it is one of the same stock."""
    about = {"format": 1, "stock": str(stock.disk.parent.name)}
    found = folder / _ABOUT
    base, writes = folder / "base.raw", folder / "writes.log"
    store_bytes = stock.emulator.firmware_variables.stat().st_size
    result = Recorded(base, writes, stock.disk.stat().st_size, store_bytes)
    if found.exists() and json.loads(found.read_text()) == about:
        return result
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    disk = Disk(folder / "machine.raw")
    copy_disk(stock.disk, disk.path)
    with LabServer(stock.repository) as server:
        _play(stock, _BEFORE, folder / "before", disk, server, None)
        store = folder / "before" / "efi-variables.fd"
        if store.stat().st_size != store_bytes:
            raise EnvironmentFailure("the firmware changed the length of its store", mend="", reason="lab-log")
        with disk.path.open("r+b") as file:
            file.seek(result.disk_bytes)
            file.write(store.read_bytes())
        copy_disk(disk.path, base)
        _play(stock, _DURING, folder / "during", disk, server, Recording(writes, result.disk_bytes, store_bytes))
    disk.path.unlink()
    found.write_text(json.dumps(about))
    return result


def _play(stock: Stock, text: bytes, folder: Path, disk: Disk, server: LabServer, recording: Recording | None) -> None:
    scenario = parse_scenario(text, "the recording")
    observer = Observer(folder, releases=stock.versions, look=disk.look, tell=_tell)
    with Machine(
        stock.emulator,
        disk=disk.path,
        folder=folder,
        observer=observer,
        hardware=Hardware(memory_mib=scenario.memory_mib),
        recording=recording,
    ) as machine:
        if recording is not None:
            recording.log.touch()
        run = _run_of(stock, scenario, folder, machine, disk, server, observer)
        try:
            for step in scenario.steps:
                perform(step.action, run)
        except Failed as error:
            raise EnvironmentFailure(
                f"the update that was to be recorded failed: {error}", mend=f"see {folder}", reason="lab-recording"
            ) from error


def _run_of(
    stock: Stock, scenario: Scenario, folder: Path, machine: Machine, disk: Disk, server: LabServer, observer: Observer
) -> Run:
    run = Run(stock, scenario, folder, machine, disk, server, observer, dict(scenario.config), stock.repository)
    run.digests = {"a": disk.slot_digest("a")}
    return run


def _tell(event: Event) -> None:
    log.info("%7.1f  %s  %s", event.at_s, event.kind, event.text)
