"""QEMU's command line for one boot of one machine."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from integration.lab.accelerator import accelerator, cpu_model
from integration.lab.storage import SectorError, disk_options, escaped
from updater.errors import EnvironmentFailure

AGENT_PORT = "org.acl.lab"
# An emulated timer can miss the kernel's own check of it while the host is busy: the kernel then panics, with nothing
# wrong.
_TCG_PARAMETERS = ("no_timer_check",)


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU of one tool tree: how to start its programs, its firmware, and the accelerator that works here."""

    qemu: tuple[str, ...]
    firmware_code: Path
    firmware_variables: Path
    accelerator: str = "tcg"
    secure_firmware_code: Path | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """The parts of a machine that stay the same over its boots; without `uefi` its firmware is a BIOS.

    `clock` is what its real-time clock says at power-on (None: the host's time), `slow_disk` bytes a second, `twin` a
    second disk, `shell` a socket for a second serial port; `debugger` lets the lab stop the processor. With
    `secure_boot` the firmware is the one that can do it; what it trusts is in the variable store. `ssh_port` of the
    host's loopback leads to the guest's port 22.
    """

    memory_mib: int = 1024
    watchdog: bool = True
    network: bool = True
    uefi: bool = True
    sector_bytes: int = 512
    clock: str | None = None
    slow_disk: int | None = None
    bad_sectors: tuple[SectorError, ...] = ()
    twin: Path | None = None
    variables_read_only: bool = False
    shell: Path | None = None
    debugger: bool = False
    secure_boot: bool = False
    ssh_port: int | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What this boot is given from outside, without touching its images: kernel parameters and credentials."""

    kernel_parameters: tuple[str, ...] = ()
    credentials: Mapping[str, str | bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    """Where every write of a machine is kept: `log` takes them in order; the disk's file bears the variable store too.

    The store lies behind the disk, from byte `disk_bytes` on, so that one log has the order of both.
    """

    log: Path
    disk_bytes: int
    store_bytes: int


@dataclass(frozen=True, slots=True)
class Wires:
    """The inherited file descriptors that QEMU speaks on, beside its standard output, which is the serial console.

    `debugger` is a socket that listens already.
    """

    agent: int
    qmp: int
    debugger: int | None = None


def smbios_strings(given: Given) -> list[str]:
    """Return the SMBIOS type 11 strings that systemd-stub, GRUB and PID 1 read."""
    strings = []
    for name, value in sorted(given.credentials.items()):
        # Base64, because QEMU and the firmware's tables have their own ideas about commas and newlines.
        raw = value.encode() if isinstance(value, str) else value
        strings.append(f"io.systemd.credential.binary:{name}={b64encode(raw).decode()}")
    if given.kernel_parameters:
        # systemd-stub takes the first string of this name only, so all parameters travel in one; GRUB can ask for the
        # last string alone.
        strings.append("io.systemd.stub.kernel-cmdline-extra=" + " ".join(given.kernel_parameters))
    return strings


def command(
    emulator: Emulator,
    hardware: Hardware,
    given: Given,
    wires: Wires,
    *,
    disk: Path,
    variables: Path,
    recording: Recording | None = None,
) -> list[str]:
    """Return the argv that boots `disk`; the machine pauses when the guest resets or powers off."""
    # Only in that mode may the firmware write its own store: else the kernel could enrol a key by itself.
    smm = "on" if hardware.secure_boot else "off"
    argv = [
        # The kernel kills QEMU when the thread that started it is gone, whatever killed that thread.
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *emulator.qemu,
        *("-nodefaults", "-no-user-config", "-display", "none"),
        # Without the controllers that nothing hangs on: their drivers cost each boot a second of the processor.
        *("-machine", f"q35,accel={emulator.accelerator},smm={smm},vmport=off,sata=off,i8042=off"),
        *("-cpu", cpu_model(emulator.accelerator)),
        *("-smp", "1", "-m", f"{hardware.memory_mib}"),
        *("-rtc", f"base={hardware.clock or 'utc'},clock=host"),
        *(_firmware(emulator, None if recording else variables, hardware) if hardware.uefi else ()),
        *(
            _recorded(disk, recording)
            if recording
            else disk_options(
                disk,
                sector_bytes=hardware.sector_bytes,
                slow=hardware.slow_disk,
                bad_sectors=hardware.bad_sectors,
                twin=hardware.twin,
            )
        ),
        *("-device", "virtio-rng-pci"),
        # A pipe, not a socket: QEMU sends byte by byte, a socket's buffer holds some 270 such messages, and what a
        # full one does not take in time is lost.
        *("-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"),
        *("-chardev", f"socket,id=qmp,fd={wires.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={wires.agent}"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
        *("-action", "reboot=shutdown,shutdown=pause,panic=none,watchdog=reset"),
    ]
    if hardware.shell is not None:
        argv += ["-chardev", f"socket,id=shell,path={escaped(str(hardware.shell))},server=on,wait=off"]
        argv += ["-serial", "chardev:shell"]
    if wires.debugger is not None:
        argv += ["-chardev", f"socket,id=gdb,fd={wires.debugger},server=on,wait=off", "-gdb", "chardev:gdb"]
    if hardware.watchdog:
        argv += ["-device", "i6300esb"]
    if hardware.network:
        forward = f",hostfwd=tcp:127.0.0.1:{hardware.ssh_port}-:22" if hardware.ssh_port else ""
        argv += ["-netdev", f"user,id=net{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
    forced = _TCG_PARAMETERS if emulator.accelerator == "tcg" else ()
    for text in smbios_strings(replace(given, kernel_parameters=(*forced, *given.kernel_parameters))):
        argv += ["-smbios", f"type=11,value={escaped(text)}"]
    return argv


def _firmware(emulator: Emulator, variables: Path | None, hardware: Hardware) -> tuple[str, ...]:
    """Return the options of the firmware, whose store is elsewhere when `variables` is None."""
    program = _firmware_code(emulator, hardware)
    code: tuple[str, ...] = ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escaped(str(program))}")
    if hardware.secure_boot:
        # Without sleep: its wake-up path is one more that would have to be guarded, and OVMF refuses to start.
        code += ("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
    if variables is None:
        return code
    lock = "readonly=on," if hardware.variables_read_only else ""
    return (*code, "-drive", f"if=pflash,unit=1,format=raw,{lock}file={escaped(str(variables))}")


def _firmware_code(emulator: Emulator, hardware: Hardware) -> Path:
    if not hardware.secure_boot:
        return emulator.firmware_code
    if emulator.secure_firmware_code is None:
        raise EnvironmentFailure(
            "this emulator has no firmware with Secure Boot", mend="use the tool tree's", reason="lab-secure-boot"
        )
    return emulator.secure_firmware_code


def _recorded(disk: Path, recording: Recording) -> tuple[str, ...]:
    # Flushes must reach the log, so only what lies below it goes without; a discard says nothing that a cut tests.
    store = f"offset={recording.disk_bytes},size={recording.store_bytes}"
    return (
        *("-blockdev", f"driver=file,node-name=file,filename={escaped(str(disk))},cache.no-flush=on"),
        *("-blockdev", f"driver=file,node-name=log,filename={escaped(str(recording.log))},cache.no-flush=on"),
        *("-blockdev", "driver=blklogwrites,node-name=logged,file=file,log=log,log-sector-size=512"),
        *("-blockdev", f"driver=raw,node-name=disk,file=logged,offset=0,size={recording.disk_bytes}"),
        *("-blockdev", f"driver=raw,node-name=store,file=logged,{store}"),
        *("-machine", "pflash1=store"),
        *("-device", "virtio-blk-pci,drive=disk,bootindex=1,share-rw=on"),
    )


def network_address() -> str:
    """Return the address at which a guest reaches the host's loopback through user networking."""
    return "10.0.2.2"


def find_emulator() -> Emulator:
    """Return the tool tree's QEMU with the accelerator that really works here; fetched on first use."""
    from integration.images.cache import cache_folder
    from integration.images.tooltree import tool_tree

    tree = tool_tree()
    qemu = (str(tree.tool("qemu-system-x86_64")),)
    code, variables = tree.firmware_code, tree.firmware_variables
    works = accelerator(qemu, code, variables, cache_folder() / "accelerator")
    return Emulator(qemu, code, variables, works, tree.secure_firmware_code)
