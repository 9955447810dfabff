"""Runs one scenario from a copy of the factory disk to its reports."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from integration.lab.boots import Event, Observer
from integration.lab.disk import VARIABLES, Disk, copy_disk, take_store, take_variables
from integration.lab.emulator import Hardware
from integration.lab.injecting import perform
from integration.lab.leftovers import DISK, drop_disks, occupied
from integration.lab.machine import Machine
from integration.lab.publisher import link
from integration.lab.report import Held, Report, write_reports
from integration.lab.resector import SECTOR_BYTES, copy_with_sectors
from integration.lab.run import Failed, Run
from integration.lab.scenario import Scenario, Step
from integration.lab.server import LabServer
from integration.lab.stock import Stock
from updater.errors import UpdaterError
from updater.layouts import load_layout


def execute(
    stock: Stock,
    scenario: Scenario,
    folder: Path,
    *,
    tell: Callable[[Event], None] | None = None,
    show: Callable[[bytes], None] | None = None,
    keep_disk: bool = False,
    start: tuple[Path, Path] | None = None,
) -> Report:
    """Run a scenario in a folder, which is emptied first; leave serial logs and reports there, and return the report.

    `tell` is told each event, `show` the console's bytes. `start` is a disk and a variable store to begin with, in
    place of the factory's.
    Never raises for what the scenario or the machine did: a run that cannot be judged has an error. Raises
    EnvironmentFailure when another run works in the folder.
    """
    with occupied(folder):
        return _execute(stock, scenario, folder, tell=tell, show=show, keep_disk=keep_disk, start=start)


def _execute(
    stock: Stock,
    scenario: Scenario,
    folder: Path,
    *,
    tell: Callable[[Event], None] | None,
    show: Callable[[bytes], None] | None,
    keep_disk: bool,
    start: tuple[Path, Path] | None,
) -> Report:
    started, began = datetime.now(UTC), time.monotonic()
    if scenario.secure_boot:
        take_store(stock.store_with_secure_boot(), folder)
    disk = Disk(folder / DISK, load_layout(stock.layout), take_variables(stock, folder))
    observer = Observer(folder, releases=stock.versions, look=disk.look, tell=tell, show=show)
    held: list[Held] = []
    error: str | None = None
    try:
        for number in scenario.releases:
            stock.release(number)
        if start is not None:
            copy_disk(start[0], disk.path)
            shutil.copyfile(start[1], folder / VARIABLES)
        elif scenario.sector == SECTOR_BYTES:
            copy_disk(stock.disk, disk.path)
        else:
            copy_with_sectors(stock.disk, disk.path, disk.layout, scenario.sector)
        repository = own_repository(stock, scenario, folder)
        hardware = Hardware(
            scenario.memory_mib,
            scenario.watchdog,
            uefi=disk.layout.is_uefi,
            sector_bytes=scenario.sector,
            secure_boot=scenario.secure_boot,
        )
        with (
            LabServer(repository) as server,
            Machine(stock.emulator, disk=disk.path, folder=folder, observer=observer, hardware=hardware) as machine,
        ):
            run = Run(
                stock,
                scenario,
                folder,
                machine,
                disk,
                server,
                observer,
                dict(scenario.config),
                repository,
                hardware,
                held=held,
            )
            server.on_bytes.append(served_notes(observer))
            run.digests = {slot: disk.slot_digest(slot) for slot in slots_to_keep(scenario)}
            for index, step in enumerate(scenario.steps, 1):
                observer.note("step", f"{index}: {describe(step)}")
                perform(step.action, run)
            run.require_injection()
    except Failed:
        pass
    except UpdaterError as failure:
        error = str(failure)
    except Exception as failure:  # a defect of the lab itself must not look like one of the product
        error = f"{type(failure).__name__}: {failure}"
        observer.note("lab", error)
    except BaseException:
        # Ctrl-C, or a matrix that is ended: the machine is off by now, and nobody will look at its disk.
        drop_disks(folder)
        raise
    report = Report(
        name=scenario.name,
        summary=scenario.summary,
        started_utc=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=time.monotonic() - began,
        boots=observer.boots,
        events=tuple(observer.events),
        expectations=tuple(held),
        error=error,
        about={"accelerator": stock.emulator.accelerator, **stock.about},
    )
    write_reports(folder, report)
    if not keep_disk:
        drop_disks(folder)
    return report


def own_repository(stock: Stock, scenario: Scenario, folder: Path) -> Path:
    """Return the folder to serve: the stock's own, or a copy when the scenario changes it.

    The copy is of hard links: steps replace files, and never write into one.
    """
    if not any(step.repository is not None for step in scenario.steps):
        return stock.repository
    copy = folder / "repository"
    shutil.copytree(stock.repository, copy, copy_function=link)
    return copy


def served_notes(observer: Observer) -> Callable[[int], None]:
    """Return what notes the server's progress in steps that a person can follow."""
    step, told = 64 << 20, 0

    def note(total: int) -> None:
        nonlocal told
        if total // step != told:
            told = total // step
            if told:
                observer.note("server", f"{told * step >> 20} MiB served")

    return note


def slots_to_keep(scenario: Scenario) -> set[str]:
    """Return the slots whose bytes some step expects to be unchanged."""
    return {slot for step in scenario.steps if step.expect is not None for slot in step.expect.unchanged or []}


def describe(step: Step) -> str:
    """Return a step in words: its note, or its kind and value."""
    if step.note:
        return step.note
    action = step.action
    fields = getattr(action, "__struct_fields__", None)
    if fields is None:
        return f"{step.kind} {action}"
    if step.expect is not None:
        return "expect " + ", ".join(key for key in fields if getattr(action, key) is not None)
    given = {key: value for key in fields if (value := getattr(action, key)) not in (None, False)}
    return f"{step.kind}: " + ", ".join(f"{key} {value}" for key, value in given.items() if key != "timeout_s")
