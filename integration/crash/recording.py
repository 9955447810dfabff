"""Records a whole update inside a machine: the disk as it was before, and every write from then on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from integration.crash.judge import RENAMES
from integration.lab.actions import perform
from integration.lab.boots import Event, Observer
from integration.lab.disk import VARIABLES, Disk, copy_disk, take_variables
from integration.lab.emulator import Hardware, Recording
from integration.lab.machine import Machine
from integration.lab.run import Failed, Run
from integration.lab.scenario import parse_scenario
from integration.lab.server import LabServer
from integration.lab.stock import Stock
from updater.boot.protocol import Entry
from updater.errors import EnvironmentFailure
from updater.layouts import load_layout

log = logging.getLogger(__name__)

_ABOUT, _BASE, _LOG = "recording.json", "base.raw", "writes.log"


@dataclass(frozen=True, slots=True)
class Story:
    """What happens before a recording, and while it runs: two scenarios."""

    name: str
    before: bytes
    during: bytes


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
WHOLE = Story(
    "whole",
    _BEFORE,
    b"""
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
""",
)
# The old name is the last of its folder's first sector, the new one the first of its third: two writes. What stands
# before them is written first, so that a cut of the rename leaves nothing else out.
_RENAME = f"""
set -e; mkdir /run/esp; mount -t vfat /dev/disk/by-partlabel/esp /run/esp; mkdir /run/esp/{RENAMES};
cd /run/esp/{RENAMES}; for n in $(seq 101 113); do : > F$n; done; : > OLD; for n in $(seq 201 216); do : > F$n; done;
sync; mv OLD NEW; sync; cd /; umount /run/esp
"""
SHORT = Story(
    "short",
    _BEFORE + b"  - offline: {run: stage --to 2.0.0}\n",
    b"""
name: during
summary: A name on the ESP is changed by Linux; the node arms the release that is staged, tries it and commits it.
config:
  health: {deadline_s: 240, hold_s: 3, interval_s: 1}
steps:
  - boot: {until: {running: 1}}
  - guest: {run: %s}
  - updater: {run: finalize, timeout_s: 400}
  - power: reboot
  - wait: {until: {committed: 2}, timeout_s: 400}
  - wait: {until: {settled: 2}}
  - power: down
  - expect:
      loader: [b*.conf, a.conf]
      unchanged: [a]
"""
    % json.dumps(" ".join(_RENAME.split())).encode(),
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording left: `base` is disk and variable store before it, `log` every write since.

    The first `disk_bytes` of `base` are the disk, the next `store_bytes` the variable store; `layout` is the disk's. No
    two recordings have the same name.
    """

    name: str
    layout: str
    base: Path
    log: Path
    disk_bytes: int
    store_bytes: int


@dataclass(frozen=True, slots=True)
class DiskBeforeStore(Disk):
    """The disk of a machine that is recorded: the variable store lies behind it, from byte `disk_bytes` on.

    `variables` is a copy of that, made anew whenever the entries are asked for.
    """

    disk_bytes: int = 0

    def order(self) -> list[Entry]:
        """Return our entries as the loader's back end reads them."""
        if self.variables is not None:
            with self.path.open("rb") as file:
                file.seek(self.disk_bytes)
                self.variables.write_bytes(file.read())
        return Disk.order(self)


def record(stock: Stock, folder: Path, story: Story) -> Recorded:
    """Return the recording in `folder`, made anew unless it is one of the same story and stock."""
    digest = hashlib.sha256(repr(story).encode()).hexdigest()
    about = {"format": 3, "stock": stock.disk.parent.name, "layout": stock.layout, "story": digest}
    found = folder / _ABOUT
    base, writes = folder / _BASE, folder / _LOG
    disk_bytes, store_bytes = stock.disk.stat().st_size, stock.emulator.firmware_variables.stat().st_size
    if found.exists() and about.items() <= json.loads(found.read_text()).items():
        return recorded_in(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("before", "during"):
        (folder / part).mkdir(parents=True)
    machine, layout = folder / "machine.raw", load_layout(stock.layout)
    copy_disk(stock.disk, machine)
    with LabServer(stock.repository) as server:
        disk = Disk(machine, layout, take_variables(stock, folder / "before"))
        _play(stock, story.before, folder / "before", disk, server, None)
        store = folder / "before" / VARIABLES
        if store.stat().st_size != store_bytes:
            raise EnvironmentFailure("the firmware changed the length of its store", mend="", reason="lab-log")
        with machine.open("r+b") as file:
            file.seek(disk_bytes)
            file.write(store.read_bytes())
        copy_disk(machine, base)
        seen = take_variables(stock, folder / "during")
        recording = Recording(writes, disk_bytes, store_bytes)
        disk = DiskBeforeStore(machine, layout, seen, disk_bytes=disk_bytes)
        _play(stock, story.during, folder / "during", disk, server, recording)
    machine.unlink()
    name = f"{story.name}-{uuid4().hex[:12]}"
    lengths = {"disk_bytes": disk_bytes, "store_bytes": store_bytes}
    found.write_text(json.dumps({**about, **lengths, "name": name}))
    return recorded_in(folder)


def recorded_in(folder: Path) -> Recorded:
    """Return the recording in a folder; raise EnvironmentFailure when there is none."""
    try:
        known = json.loads((folder / _ABOUT).read_text())
        place = (folder / _BASE, folder / _LOG)
        return Recorded(known["name"], known["layout"], *place, known["disk_bytes"], known["store_bytes"])
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentFailure(
            f"{folder} holds no recording: {error}", mend="make one: make crash", reason="lab-recording"
        ) from error


def _play(stock: Stock, text: bytes, folder: Path, disk: Disk, server: LabServer, recording: Recording | None) -> None:
    scenario = parse_scenario(text, "the recording")
    hardware = Hardware(memory_mib=scenario.memory_mib)
    observer = Observer(folder, releases=stock.versions, look=disk.look, tell=_tell)
    with Machine(
        stock.emulator,
        disk=disk.path,
        folder=folder,
        observer=observer,
        hardware=hardware,
        recording=recording,
    ) as machine:
        if recording is not None:
            recording.log.touch()
        config = dict(scenario.config)
        run = Run(stock, scenario, folder, machine, disk, server, observer, config, stock.repository, hardware)
        run.digests = {"a": disk.slot_digest("a")}
        try:
            for step in scenario.steps:
                perform(step.action, run)
        except Failed as error:
            raise EnvironmentFailure(
                f"the update that was to be recorded failed: {error}", mend=f"see {folder}", reason="lab-recording"
            ) from error


def _tell(event: Event) -> None:
    log.info("%7.1f  %s  %s", event.at_s, event.kind, event.text)
