"""The machine that this program runs on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

from updater.blocks import Blocks
from updater.boot.choose import TableAccess, open_backend
from updater.boot.protocol import BootBackend
from updater.config import Config
from updater.devices import LiveRoot, discover_live_root, mounted_esp
from updater.efivars import LiveEfiVariables, NoEfiVariables
from updater.errors import EnvironmentFailure, Refused
from updater.files import Below, Directory, MountedDirectory, explained
from updater.gpt import Gpt, parse
from updater.layouts import Layout
from updater.node.disk import LayoutDisk, OnLayoutDisk
from updater.node.protocol import Running
from updater.node.scratch import ScratchFolders
from updater.partition import FileBlocks, WholeDisk, write_table
from updater.run import run
from updater.slots import Slot

STATE = Path("/var/lib/acl-updater")
RUNTIME = Path("/run/acl-updater")
DEGRADED = RUNTIME / "degraded-state"
OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
# The image's own file comes first: /etc may carry an operator's copy of an older release's.
IMAGE_OS_RELEASE = tuple(reversed(OS_RELEASE))

_LOCK_POLL_S = 0.2


class LiveNode(OnLayoutDisk):
    """A `Node` on the running system; a context manager, since it mounts the ESP for itself."""

    live = True

    def __init__(self, layout: Layout, config: Config) -> None:
        """Prepare; nothing is looked at before the context is entered."""
        self.layout = layout
        self.config = config
        machine = os.uname().machine
        self.architecture = {"x86_64": "x86-64", "aarch64": "arm64"}.get(machine, machine)
        self.state: Directory = MountedDirectory(STATE)
        self.trust: Directory = Below(self.state, "trust")
        self._scratch = ScratchFolders(STATE / "scratch")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> LiveNode:
        if os.geteuid() != 0:
            raise EnvironmentFailure(
                "the slots, the ESP and the EFI variables can only be read by root",
                mend="use sudo, or look at a disk image with --disk FILE",
                reason="not-root",
            )
        self._root: LiveRoot = discover_live_root(layout=self.layout)
        self._disk = LayoutDisk(str(self._root.disk), self.layout, self._table, self._write_table)
        esp = self._disk.boot_partition()
        self.esp: Directory = self._stack.enter_context(mounted_esp(self._root.device(esp.number)))
        self.boot: BootBackend = open_backend(
            self.layout,
            esp=self.esp,
            efi=LiveEfiVariables() if self.layout.is_uefi else NoEfiVariables("this layout is booted without UEFI"),
            table=TableAccess(self._table, self._write_table),
            part_uuid=esp.unique_guid,
            boot_id=self.boot_id().replace("-", ""),
            command_line=_command_line(),
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @cached_property
    def image_id(self) -> str | None:
        """Return os-release's IMAGE_ID: only images of the same make follow one another."""
        return self._os_release().get("IMAGE_ID")

    def running(self) -> Running:
        slot = self._disk.slot_of(self._root.data_partition)
        if slot is None:
            raise EnvironmentFailure(
                f"{self._root.mount_point} comes from partition {self._root.data_partition} of {self._root.disk}, "
                f"which is no slot of the layout {self.layout.name}",
                mend="name the layout of this disk in the configuration (`layout:`)",
                reason="layout-mismatch",
            )
        version = self._os_release().get("IMAGE_VERSION")
        if version is None:
            raise EnvironmentFailure(
                "/usr/lib/os-release has no IMAGE_VERSION",
                mend="build the image with `acl-release build`",
                reason="no-version",
            )
        return Running(slot, self._root.root_hash, version)

    def blocks(self, slot: Slot, role: Literal["data", "hash"], *, writable: bool = False) -> Blocks:
        place = self._disk.slot_place(slot, role)
        number = place.partition.number
        if writable and (
            slot is self.running().slot or number in (self._root.data_partition, self._root.hash_partition)
        ):
            raise Refused(
                f"slot {slot} is the running one and is never written",
                mend="write the other slot",
                reason="running-slot",
            )
        return FileBlocks(
            self._root.device(number),
            offset_bytes=place.offset_bytes,
            length_bytes=place.length_bytes,
            name=f"{self._root.device(number)} (slot {slot}, {role})",
            writable=writable,
        )

    def boot_id(self) -> str:
        with explained("cannot read the kernel's boot id", "mount /proc"):
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def bootstrap_roots(self) -> Sequence[Path]:
        folder = Path(self.config.trusted_roots)
        return sorted(folder.glob("*.root.json"), key=lambda path: (len(path.name), path.name))

    @property
    def partial(self) -> Path | None:
        """Return a folder on the state partition; its stand-in in memory outlives no kill of the machine."""
        return None if DEGRADED.exists() else STATE / "partial"

    def scratch_folder(self) -> AbstractContextManager[Path]:
        return self._scratch.lend()

    @contextlib.contextmanager
    def lock(self, *, wait_s: float = 0.0) -> Iterator[None]:
        with locked_machine(wait_s=wait_s):
            yield

    def reboot(self, why: str) -> None:
        """Ask systemd for a reboot; when it does not take the request, make the kernel do it."""
        import logging

        logging.getLogger(__name__).warning("rebooting: %s", why)
        try:
            run(["systemctl", "reboot", "--no-block"], timeout_s=30)
        except EnvironmentFailure:
            run(["systemctl", "reboot", "--force", "--force"], timeout_s=30)

    def notes(self) -> tuple[str, ...]:
        found = []
        if DEGRADED.exists():
            found.append("the state partition could not be mounted: this node runs on a stand-in in memory")
        watchdogs = sorted(Path("/sys/class/watchdog").glob("watchdog*"))
        if not watchdogs:
            found.append("there is no watchdog device: a hang of the whole kernel is not covered")
        if bless_is_active():
            found.append(
                "systemd-bless-boot is active: it commits a trial that reaches boot-complete.target, whatever the "
                "health checks say later; mask systemd-bless-boot.service"
            )
        return tuple(found)

    def _os_release(self) -> dict[str, str]:
        for path in IMAGE_OS_RELEASE:
            with contextlib.suppress(OSError):
                from updater.uki import parse_os_release

                return parse_os_release(path.read_text())
        return {}

    def _table(self) -> Gpt:
        with WholeDisk(self._root.disk) as disk:
            return parse(disk.read, disk.length_bytes, disk.sector_bytes)

    def _write_table(self, table: Gpt) -> None:
        with WholeDisk(self._root.disk, writable=True) as disk:
            write_table(disk, table)
        # The kernel keeps its own view of a busy disk; udev's links follow the table once it looks at each partition.
        nodes = [str(node) for node in (self._root.disk, *self._root.nodes.values())]
        run(["udevadm", "trigger", "--settle", "--action=change", *nodes], timeout_s=60, check=False)


def _command_line() -> str:
    with explained("cannot read the kernel's command line", "mount /proc"):
        return Path("/proc/cmdline").read_text().strip()


@contextlib.contextmanager
def locked_machine(*, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the one lock of all that changes something on this machine; raise Refused (reason `busy`)."""
    until = time.monotonic() + wait_s
    with explained(f"cannot lock {RUNTIME}", "run as root"):
        RUNTIME.mkdir(parents=True, exist_ok=True)
        file = (RUNTIME / "lock").open("w")
    with file:
        while not _locked(file):
            if time.monotonic() >= until:
                raise Refused(
                    "another acl-updater is at work on this machine",
                    mend="wait for it: `systemctl status acl-updater-update`",
                    reason="busy",
                )
            time.sleep(_LOCK_POLL_S)
        yield


def bless_is_active(root: Path = Path("/")) -> bool:
    """Tell whether systemd-bless-boot's generator called it in for this counted boot, and nobody masked it."""
    name = "systemd-bless-boot.service"
    pulled = [wants for wants in (root / "run/systemd").glob("generator*/*.wants") if (wants / name).is_symlink()]
    masks = (root / folder / "systemd/system" / name for folder in ("etc", "run", "usr/lib"))
    masked = any(mask.is_symlink() and mask.readlink() == Path("/dev/null") for mask in masks)
    return bool(pulled) and not masked


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
