"""What `acl-lab boot` starts: a copy of the factory disk, or the user's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from integration.lab.catalogue import given_to_guest
from integration.lab.disk import VARIABLES, Disk, copy_disk, take_store, take_variables
from integration.lab.emulator import Emulator, Given, Hardware, find_emulator
from integration.lab.factory import make_stock
from integration.lab.shell import KERNEL_PARAMETERS, socket_path
from integration.lab.ssh import open_door
from integration.lab.terms import Misuse
from updater.layouts import load_layout


@dataclass(frozen=True, slots=True)
class Start:
    """A machine before its first boot; `versions` are those that the lab knows, by root hash."""

    emulator: Emulator
    disk: Disk
    hardware: Hardware
    given: Given
    versions: Mapping[str, str] = field(default_factory=dict)


def to_boot(
    folder: Path,
    *,
    layout: str,
    disk: Path | None,
    variables: Path | None,
    secure_boot: bool,
    memory_mib: int,
    faults: Sequence[str],
) -> Start:
    """Prepare a machine in `folder`; raise Misuse for files that are not there.

    For the user's own `disk` no image has to be built, unless the lab's `faults` are asked for.
    """
    for path, what in ((disk, "disk image"), (variables, "store of EFI variables")):
        if path is not None and not path.is_file():
            raise Misuse(f"there is no {what} {path}", mend="see `acl-lab mkdisk --help`", reason="no-disk")
    if variables is not None:
        shutil.copyfile(variables, folder / VARIABLES)
    emulator, found, versions, given = (
        _factory(folder, layout, disk, faults, secure_boot=secure_boot and variables is None)
        if disk is None or faults
        else _own(folder, layout, disk, secure_boot=secure_boot)
    )
    door = open_door(folder, own_image=disk is not None)
    hardware = Hardware(
        memory_mib=memory_mib,
        uefi=found.layout.is_uefi,
        shell=socket_path(folder),
        secure_boot=secure_boot,
        ssh_port=door.port,
    )
    parameters = (*KERNEL_PARAMETERS, *door.kernel_parameters, *given.kernel_parameters)
    return Start(emulator, found, hardware, Given(parameters, {**door.credentials, **given.credentials}), versions)


_Found = tuple[Emulator, Disk, Mapping[str, str], Given]


def _own(folder: Path, name: str, disk: Path, *, secure_boot: bool) -> _Found:
    emulator, layout = find_emulator(), load_layout(name)
    if secure_boot and not (folder / VARIABLES).exists():
        raise Misuse(
            "no firmware knows the keys of your disk's loader",
            mend="give --variables FILE: `virt-fw-vars --set-pk … --add-kek … --add-db … --sb` makes one",
            reason="no-variables",
        )
    by_variables = layout.boot.backend == "efi-bootnext"
    return (
        emulator,
        Disk(disk, layout, take_store(emulator.firmware_variables, folder) if by_variables else None),
        {},
        Given(),
    )


def _factory(folder: Path, name: str, own: Path | None, faults: Sequence[str], *, secure_boot: bool) -> _Found:
    stock = make_stock(name)
    if secure_boot:
        shutil.copyfile(stock.store_with_secure_boot(), folder / VARIABLES)
    disk = Disk(own or folder / "disk.raw", load_layout(stock.layout), take_variables(stock, folder))
    if own is None:
        copy_disk(stock.disk, disk.path)
    given = given_to_guest(faults, lambda number: stock.release(number).version)
    return stock.emulator, disk, stock.versions, given
