"""Live discovery on a made-up tree: every witness must agree; mounts of the ESP never collide or stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disks import image_of, root_of
from tests.test_gpt import made_by_hand
from updater.devices import LiveRoot, discover_live_root
from updater.errors import EnvironmentFailure, Refused, UpdaterError
from updater.files import MountedDirectory
from updater.layouts import Layout, load_layout
from updater.mounts import mounted_at, mounted_esp, parse_mountinfo
from updater.partition import write_table
from updater.verity import superblock

ROOT, TREE = root_of(image_of(3))
FOREIGN, _ = root_of(image_of(3), uuid=str(UUID(int=5)))
HASH = ROOT.root_hash
OTHER_HASH = "11" * 32


@dataclass
class RecordedUdev:
    """A udev database in memory."""

    devices: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, name: str) -> Mapping[str, str]:
        """Return a device's properties."""
        return self.devices.get(name, {})

    def partitions(self) -> Iterable[Mapping[str, str]]:
        """Return all partitions."""
        return [properties for properties in self.devices.values() if "ID_PART_ENTRY_UUID" in properties]


class Machine:
    """A made-up tree of proc, sys and dev: vda1 is the ESP, vda2 and vda3 data and hash below a verity device."""

    def __init__(
        self, base: Path, *, disk: str = "vda", joint: str = "", sector: int = 512, layout: Layout | None = None
    ) -> None:
        """Lay it out; `joint` stands between the disk's name and a partition's number."""
        self.base = base
        self.udev = RecordedUdev()
        self.layout = layout
        self.disk, self.joint = disk, joint
        made = made_by_hand(sector, first_usable=(1 << 20) // sector, megabytes=4)
        table = made.table()
        table = table.with_partition(2, unique_guid=UUID(HASH[:32]), name="root-a")
        table = table.with_partition(3, unique_guid=UUID(HASH[32:]), name="root-a-verity")
        self.table = write_table(made, table)
        self.put(f"dev/{disk}", bytes(made.content))
        self.device(disk, "254:0", f"devices/pci/virtio1/block/{disk}", size=len(made.content) // 512)
        self.put(f"sys/class/block/{disk}/queue/logical_block_size", f"{sector}\n")
        for partition in self.table.partitions:
            name = self.part(partition.number)
            path = f"devices/pci/virtio1/block/{disk}/{name}"
            self.device(name, f"254:{partition.number}", path, size=partition.length_bytes // 512)
            self.put(f"sys/class/block/{name}/partition", f"{partition.number}\n")
            # sysfs counts in 512 bytes, whatever the disk's own sectors are.
            self.put(f"sys/class/block/{name}/start", f"{partition.offset_bytes // 512}\n")
            self.put(f"dev/{name}", bytes(4096))
            self.udev.devices[name] = {
                "DEVNAME": f"/dev/{name}",
                "ID_PART_ENTRY_SCHEME": "gpt",
                "ID_PART_ENTRY_UUID": str(partition.unique_guid),
                "ID_PART_ENTRY_NAME": partition.name,
                "ID_PART_ENTRY_NUMBER": str(partition.number),
                "ID_PART_ENTRY_DISK": "254:0",
            }
        self.put(f"dev/{self.part(3)}", superblock(ROOT))
        self.device("dm-0", "253:0", "devices/virtual/block/dm-0", size=24)
        self.put("sys/class/block/dm-0/dm/uuid", f"CRYPT-VERITY-{ROOT.uuid.replace('-', '')}-root\n")
        for number in (2, 3):
            self.put(f"sys/class/block/dm-0/slaves/{self.part(number)}/dev", "")
        self.put("dev/mapper/root", b"")
        self.mounts("253:0", "/", "erofs", "/dev/mapper/root")
        self.put("proc/cmdline", f"quiet roothash={HASH} panic=1\n")

    def part(self, number: int) -> str:
        """Return the kernel's name of a partition."""
        return f"{self.disk}{self.joint}{number}"

    def put(self, path: str, content: str | bytes) -> None:
        """Write a file of the tree."""
        at = self.base / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content if isinstance(content, bytes) else content.encode())

    def device(self, name: str, number: str, path: str, *, size: int) -> None:
        """Make a block device in sysfs."""
        self.put(f"sys/{path}/dev", f"{number}\n")
        self.put(f"sys/{path}/size", f"{size}\n")
        self.put(f"sys/{path}/uevent", f"MAJOR=1\nDEVNAME={name}\nDEVTYPE=disk\n")
        for link in (f"sys/class/block/{name}", f"sys/dev/block/{number}"):
            at = self.base / link
            at.parent.mkdir(parents=True, exist_ok=True)
            at.symlink_to(self.base / "sys" / path)

    def mounts(self, number: str, where: str, kind: str, source: str) -> None:
        """Write the mount table."""
        self.put(
            "proc/self/mountinfo",
            "21 1 0:20 / /proc rw,relatime - proc proc rw\n"
            "22 1 0:5 / / rw - rootfs rootfs rw\n"
            f"23 22 {number} / {where} ro,relatime shared:1 - {kind} {source} ro\n"
            "24 23 254:6 / /var rw,relatime shared:2 - ext4 /dev/vda6 rw\n",
        )

    def variable(self, text: str) -> None:
        """Set LoaderDevicePartUUID."""
        name = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        self.put(f"sys/firmware/efi/efivars/{name}", b"\6\0\0\0" + text.encode("utf-16-le") + b"\0\0")

    def discover(self) -> LiveRoot:
        """Run the discovery."""
        return discover_live_root(self.base, self.udev, layout=self.layout)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_disk_the_slot_and_the_esp_are_found(machine: Machine) -> None:
    found = machine.discover()
    assert found.disk == machine.base / "dev/vda"
    assert (found.data_partition, found.hash_partition, found.esp_partition) == (2, 3, 1)
    assert (found.root_hash, found.mount_point) == (HASH, "/")
    assert found.device(2) == machine.base / "dev/vda2"
    assert found.gpt.partitions == machine.table.partitions
    with pytest.raises(EnvironmentFailure, match="knows no partition 9"):
        found.device(9)


def test_names_do_not_tell_data_from_hash(machine: Machine) -> None:
    # The superblock on the other partition: the table's labels and order say nothing.
    machine.put("dev/vda2", superblock(ROOT))
    machine.put("dev/vda3", bytes(4096))
    with pytest.raises(EnvironmentFailure, match="only one PARTUUID"):
        machine.discover()


def test_fixed_partuuids_are_fine_where_the_superblock_tells(machine: Machine) -> None:
    other = HASH[:32][::-1]
    machine.put("proc/cmdline", f"roothash={other * 2}")
    found = machine.discover()
    assert (found.data_partition, found.hash_partition) == (2, 3)


def test_the_usr_layout_is_found_behind_a_file_system_without_a_device_number(machine: Machine) -> None:
    (machine.base / "dev/mapper/root").unlink()
    (machine.base / "dev/dm-0").write_bytes(b"")
    (machine.base / "dev/mapper/usr").symlink_to("../dm-0")
    machine.mounts("0:34", "/usr", "btrfs", "/dev/mapper/usr")
    machine.put("proc/cmdline", f"usrhash={HASH} roothash={OTHER_HASH}")
    assert machine.discover().mount_point == "/usr"


def test_the_loader_agrees_on_the_esp(machine: Machine) -> None:
    machine.variable(str(machine.table.partition(1).unique_guid).upper())
    assert machine.discover().esp_partition == 1
    machine.variable("12345678-0000-0000-0000-000000000000")
    with pytest.raises(Refused) as caught:
        machine.discover()
    assert caught.value.reason == "wrong-esp"


def test_a_copy_of_the_disk_is_refused_naming_both(machine: Machine) -> None:
    twin = dict(machine.udev.devices["vda2"], DEVNAME="/dev/vdb2", ID_PART_ENTRY_DISK="254:16")
    machine.udev.devices["vdb2"] = twin
    with pytest.raises(Refused, match=r"/dev/vdb2 has the same PARTUUID as .*/dev/vda2") as caught:
        machine.discover()
    assert caught.value.reason == "ambiguous-disk"


def test_a_second_disk_with_our_labels_is_refused_naming_both(machine: Machine) -> None:
    machine.layout = load_layout("dps-root")
    machine.udev.devices["vdb7"] = {
        "DEVNAME": "/dev/vdb7",
        "ID_PART_ENTRY_UUID": str(UUID(int=99)),
        "ID_PART_ENTRY_NAME": r"root\x2da",
        "ID_PART_ENTRY_DISK": "254:16",
    }
    with pytest.raises(Refused, match=r"/dev/vdb7 has the same label as .*/dev/vda2, root-a") as caught:
        machine.discover()
    assert caught.value.reason == "ambiguous-disk"
    machine.udev.devices["vdb7"]["ID_PART_ENTRY_NAME"] = "photographs"
    assert machine.discover().data_partition == 2


@pytest.mark.parametrize(("disk", "joint"), [("nvme0n1", "p"), ("sda", ""), ("mmcblk0", "p"), ("nvme0n12", "p")])
@pytest.mark.parametrize("sector", [512, 4096])
def test_disks_of_any_name_and_sector_are_found(tmp_path: Path, disk: str, joint: str, sector: int) -> None:
    machine = Machine(tmp_path, disk=disk, joint=joint, sector=sector)
    found = machine.discover()
    assert found.disk == tmp_path / f"dev/{disk}"
    assert (found.data_partition, found.hash_partition, found.esp_partition) == (2, 3, 1)
    assert found.device(2) == tmp_path / f"dev/{disk}{joint}2"
    assert found.gpt.sector_bytes == sector
    assert found.gpt.partition(2).offset_bytes == machine.table.partition(2).offset_bytes


def test_a_tree_inside_the_data_partition_is_found_where_the_layout_says(machine: Machine) -> None:
    flatcar = load_layout("flatcar")
    machine.layout = flatcar
    machine.mounts("253:0", "/usr", "btrfs", "/dev/mapper/usr")
    machine.put("proc/cmdline", f"usrhash={HASH}")
    with pytest.raises(EnvironmentFailure, match="not on one partition"):
        machine.discover()
    for path in sorted((machine.base / "sys/class/block/dm-0/slaves/vda3").iterdir()):
        path.unlink()
    (machine.base / "sys/class/block/dm-0/slaves/vda3").rmdir()
    with pytest.raises(EnvironmentFailure, match="0 of vda2 carry the superblock"):
        machine.discover()
    with (machine.base / "dev/vda2").open("r+b") as file:
        file.seek(1065345024)
        file.write(superblock(ROOT))
    found = machine.discover()
    assert (found.data_partition, found.hash_partition, found.mount_point) == (2, 2, "/usr")


def test_a_machine_without_uefi_has_no_esp(machine: Machine) -> None:
    machine.layout = load_layout("grub-bios")
    assert machine.discover().esp_partition is None


def test_a_partition_of_another_disk_that_is_its_own_is_fine(machine: Machine) -> None:
    machine.udev.devices["vdb1"] = {
        "DEVNAME": "/dev/vdb1",
        "ID_PART_ENTRY_UUID": str(UUID(int=99)),
        "ID_PART_ENTRY_DISK": "254:16",
    }
    assert machine.discover().data_partition == 2


def spoil(path: str, content: str | bytes) -> Callable[[Machine], None]:
    """Return what overwrites one file."""
    return lambda machine: machine.put(path, content)


def spoil_udev(key: str, value: str) -> Callable[[Machine], None]:
    """Return what changes one udev property of the data partition."""
    return lambda machine: machine.udev.devices["vda2"].update({key: value})


def third_slave(machine: Machine) -> None:
    """Put a third device below the verity device."""
    machine.put("sys/class/block/dm-0/slaves/vda1/dev", "")


LIES: dict[str, tuple[Callable[[Machine], None], str]] = {
    "no proc": (lambda machine: (machine.base / "proc/self/mountinfo").unlink(), "file-error"),
    "root is no verity device": (spoil("sys/class/block/dm-0/dm/uuid", "LVM-abc"), "no-live-root"),
    "root is in memory": (lambda machine: machine.mounts("0:99", "/", "overlay", "overlay"), "no-live-root"),
    "no root hash": (spoil("proc/cmdline", "quiet"), "no-live-root"),
    "two root hashes": (spoil("proc/cmdline", f"roothash={HASH} roothash={OTHER_HASH}"), "no-live-root"),
    "a root hash that is none": (spoil("proc/cmdline", "roothash=auto"), "no-live-root"),
    "three devices below": (third_slave, "no-live-root"),
    "another superblock": (spoil("dev/vda3", superblock(FOREIGN)), "no-live-root"),
    "no superblock": (spoil("dev/vda3", bytes(4096)), "no-live-root"),
    "both superblocks": (spoil("dev/vda2", superblock(ROOT)), "no-live-root"),
    "the kernel's start differs": (spoil("sys/class/block/vda2/start", "1"), "no-live-root"),
    "the kernel's size differs": (spoil("sys/class/block/vda2/size", "99"), "no-live-root"),
    "no table": (spoil("dev/vda", bytes(1 << 20)), "gpt-invalid"),
    "no disk": (lambda machine: (machine.base / "dev/vda").unlink(), "open-failed"),
    "udev's PARTUUID differs": (spoil_udev("ID_PART_ENTRY_UUID", str(UUID(int=1))), "udev-disagrees"),
    "udev's number differs": (spoil_udev("ID_PART_ENTRY_NUMBER", "4"), "udev-disagrees"),
    "udev's disk differs": (spoil_udev("ID_PART_ENTRY_DISK", "8:0"), "udev-disagrees"),
    "udev's scheme differs": (spoil_udev("ID_PART_ENTRY_SCHEME", "dos"), "udev-disagrees"),
    "udev knows nothing": (lambda machine: machine.udev.devices["vda3"].clear(), "udev-disagrees"),
    "a slave that is no partition": (
        lambda machine: (machine.base / "sys/class/block/vda2/partition").unlink(),
        "no-live-root",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_any_witness_that_disagrees_stops_it(machine: Machine, lie: str) -> None:
    tell, reason = LIES[lie]
    machine.discover()
    tell(machine)
    with pytest.raises(UpdaterError) as caught:
        machine.discover()
    assert caught.value.reason == reason
    assert caught.value.mend


def test_the_udev_of_this_machine_answers() -> None:
    pytest.importorskip("pyudev")
    from updater.devices import PyUdev

    try:
        udev = PyUdev()
    except ImportError as error:
        pytest.skip(f"libudev is not installed: {error}")
    assert udev.of("no-such-device") == {}
    assert all("DEVNAME" in properties for properties in udev.partitions())


def test_the_newest_mount_is_the_one_that_is_seen() -> None:
    mounts = parse_mountinfo(
        "1 0 8:1 / /mnt/with\\040space rw - ext4 /dev/sda1 rw\n"
        "2 0 8:2 / /mnt/with\\040space rw shared:3 master:1 - vfat /dev/sda2 rw\n"
        "broken line\n"
    )
    seen = mounted_at(mounts, "/mnt/with space")
    assert seen is not None
    assert (seen.device, seen.file_system, seen.source) == ((8, 2), "vfat", "/dev/sda2")
    assert mounted_at(mounts, "/mnt") is None


@given(text=st.text())
def test_garbage_in_the_mount_table_is_skipped(text: str) -> None:
    parse_mountinfo(text)


class RecordingMounter:
    """A `Mounter` that keeps what is mounted, in a file like the kernel's."""

    def __init__(self, proc: Path) -> None:
        """Begin with nothing mounted."""
        self.mountinfo = proc / "self/mountinfo"
        self.mountinfo.parent.mkdir(parents=True)
        self.mountinfo.write_text("")
        self.options = ""
        self.busy = False

    @property
    def mounted(self) -> list[str]:
        """Return the mount points."""
        return [mount.mount_point for mount in parse_mountinfo(self.mountinfo.read_text())]

    def mount(self, device: Path, target: Path, options: str) -> None:
        """Add a mount."""
        if self.busy:
            raise EnvironmentFailure("mount: already mounted or mount point busy")
        self.options = options
        with self.mountinfo.open("a") as file:
            file.write(f"1 0 8:1 / {target} rw - vfat {device} rw\n")

    def unmount(self, target: Path) -> None:
        """Take a mount away."""
        lines = self.mountinfo.read_text().splitlines(keepends=True)
        assert any(f" {target} " in line for line in lines)
        self.mountinfo.write_text("".join(line for line in lines if f" {target} " not in line))


@pytest.fixture
def mounter(tmp_path: Path) -> RecordingMounter:
    return RecordingMounter(tmp_path / "proc")


def mounted(tmp_path: Path, mounter: RecordingMounter) -> AbstractContextManager[MountedDirectory]:
    """Return the context under test."""
    return mounted_esp(Path("/dev/vda1"), mounts=tmp_path / "esp", mounter=mounter, proc=tmp_path / "proc")


def test_the_esp_is_mounted_for_the_block_and_gone_afterwards(tmp_path: Path, mounter: RecordingMounter) -> None:
    (tmp_path / "proc" / str(os.getpid())).mkdir()
    with mounted(tmp_path, mounter) as esp:
        assert mounter.mounted == [str(esp.base)]
        esp.write_new("loader/entries/a.conf", [b"x"])
        assert set(mounter.options.split(",")) >= {"rw", "nosuid", "nodev", "noexec", "umask=0077"}
        assert (tmp_path / "esp").stat().st_mode & 0o777 == 0o700
        with mounted(tmp_path, mounter) as second:
            assert second.base != esp.base
            assert len(mounter.mounted) == 2
        assert mounter.mounted == [str(esp.base)]
        esp.remove("loader")
    assert mounter.mounted == []
    assert list((tmp_path / "esp").iterdir()) == []


def test_the_esp_is_unmounted_when_the_block_fails(tmp_path: Path, mounter: RecordingMounter) -> None:
    with pytest.raises(KeyboardInterrupt), mounted(tmp_path, mounter):
        raise KeyboardInterrupt
    assert mounter.mounted == []


def test_what_a_killed_process_left_mounted_is_taken_away(tmp_path: Path, mounter: RecordingMounter) -> None:
    left = tmp_path / "esp/4242-abc"
    left.mkdir(parents=True)
    mounter.mount(Path("/dev/vda1"), left, "rw")
    alive = tmp_path / "esp/4343-abc"
    alive.mkdir()
    mounter.mount(Path("/dev/vda1"), alive, "rw")
    (tmp_path / "proc/4343").mkdir()
    with mounted(tmp_path, mounter) as esp:
        assert sorted(mounter.mounted) == sorted([str(alive), str(esp.base)])
        assert not left.exists()
    assert mounter.mounted == [str(alive)]


def test_an_esp_that_cannot_be_mounted_is_an_error_that_says_how_to_look(
    tmp_path: Path, mounter: RecordingMounter
) -> None:
    mounter.busy = True
    with pytest.raises(EnvironmentFailure, match="findmnt -S /dev/vda1") as caught, mounted(tmp_path, mounter):
        pass
    assert caught.value.reason == "esp-not-mounted"
    assert list((tmp_path / "esp").iterdir()) == []
