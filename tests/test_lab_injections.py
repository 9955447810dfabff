"""What breaks a machine from outside: its variable store, its disks, the metadata of its repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.lab import attacks, firmware_store
from integration.lab.emulator import Emulator, Given, Hardware, Wires, command
from integration.lab.injections import Tamper
from integration.lab.storage import SectorError, disk_options
from tests.test_efivars import empty_store
from tests.trust_site import Node, Site, served
from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID
from updater.errors import EnvironmentFailure, InvalidDocument, Untrusted

EMULATOR = Emulator(("qemu",), Path("code.fd"), Path("vars.fd"))


# -- the variable store ----------------------------------------------------------------------------------------------


def test_a_forgotten_boot_order_leaves_everything_else(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "vars.fd")
    variables = FileEfiVariables(store)
    for name in ("BootOrder", "Boot0001", "BootNext", "Lang"):
        variables.write(name, b"\x01\x00", GLOBAL_GUID)
    firmware_store.forget_boot_order(store)
    assert FileEfiVariables(store).names(GLOBAL_GUID) == ["Lang"]


def test_a_store_without_boot_options_has_nothing_to_forget(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        firmware_store.forget_boot_order(empty_store(tmp_path / "vars.fd"))
    assert caught.value.reason == "fault-not-injected"


def test_a_full_store_keeps_what_it_held(tmp_path: Path) -> None:
    store = empty_store(tmp_path / "vars.fd")
    FileEfiVariables(store).write("BootOrder", b"\x01\x00", GLOBAL_GUID)
    left = firmware_store.fill(store)
    assert left < 1000
    assert FileEfiVariables(store).read("BootOrder", GLOBAL_GUID) == b"\x01\x00"
    assert FileEfiVariables(store).free_bytes() == left


def test_a_wiped_store_is_as_new(tmp_path: Path) -> None:
    empty = empty_store(tmp_path / "empty.fd")
    store = empty_store(tmp_path / "vars.fd")
    FileEfiVariables(store).write("BootOrder", b"\x01\x00", GLOBAL_GUID)
    firmware_store.wipe(store, empty)
    assert store.read_bytes() == empty.read_bytes()


# -- the machine -----------------------------------------------------------------------------------------------------


def argv(hardware: Hardware) -> str:
    wires = Wires(agent=3, qmp=4)
    return " ".join(command(EMULATOR, hardware, Given(), wires, disk=Path("d.raw"), variables=Path("v.fd")))


def test_a_plain_machine_has_one_disk_and_the_hosts_time() -> None:
    words = argv(Hardware())
    assert words.count("virtio-blk-pci") == 1
    assert "-rtc base=utc,clock=host" in words
    assert "blkdebug" not in words
    assert "throttle" not in words


def test_a_clock_a_twin_and_a_second_serial_port_are_options() -> None:
    words = argv(Hardware(clock="1970-01-01T00:00:00", twin=Path("twin,1.raw"), shell=Path("/run/s.sock")))
    assert "-rtc base=1970-01-01T00:00:00,clock=host" in words
    assert "filename=twin,,1.raw" in words
    assert words.count("virtio-blk-pci") == 2
    assert "path=/run/s.sock,server=on,wait=off" in words
    # The console is the first serial port.
    assert words.index("chardev:serial") < words.index("chardev:shell")


def test_read_only_variables_lock_the_second_flash_alone() -> None:
    assert argv(Hardware()).count("readonly=on") == 1
    assert argv(Hardware(variables_read_only=True)).count("readonly=on") == 2


def test_bad_sectors_lie_below_the_throttle_and_the_disk_on_top() -> None:
    bad = (SectorError(2048, "read"), SectorError(4096, "write"))
    words = disk_options(Path("d.raw"), sector_bytes=512, slow=1000, bad_sectors=bad, twin=None)
    text = " ".join(words)
    assert "inject-error.0.sector=2048" in text
    assert "inject-error.1.iotype=write" in text
    assert "throttle-group=slow,file=bad" in text
    assert "node-name=disk,file=throttled" in text


@pytest.mark.parametrize(
    "document",
    [
        {"file": "EFI/acl/b.efi", "zero": True, "remove": True},
        {"partition": "state"},
        {"slot": "b", "block": 0, "partition": "state", "zero_bytes": 1},
        {},
    ],
)
def test_tampering_with_two_things_or_nothing_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(InvalidDocument):
        Tamper(**document)  # type: ignore[arg-type]


# -- the repository --------------------------------------------------------------------------------------------------


@pytest.fixture
def site(quick_path: Path) -> Site:
    """Return a publisher whose own time is now, as the lab's is."""
    from updater.release.repository import utc_now

    made = Site(quick_path / "site")
    made.now = utc_now()
    made.refresh("snapshot", "timestamp", "channels", "releases", "targets")
    made.publish("1.0.0")
    made.promote("1.0.0")
    return made


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mixed", "metadata-mixed"),
        ("wrong-key", "metadata-unsigned"),
        ("unsigned", "metadata-unsigned"),
        ("short-threshold", "metadata-unsigned"),
        ("huge", "metadata-too-large"),
    ],
)
def test_a_forgery_is_refused_for_what_it_is(site: Site, quick_path: Path, kind: str, reason: str) -> None:
    node = Node(quick_path / "state", site.roots, site.clock)
    attacks.forge(kind, site.repo, site.keys)
    with served(site.repo) as url, pytest.raises(Untrusted) as caught:
        node.trust(url).refresh()
    assert caught.value.reason == reason


def test_a_chain_of_delegations_ends_the_search(site: Site, quick_path: Path) -> None:
    node = Node(quick_path / "state", site.roots, site.clock)
    attacks.forge("deep", site.repo, site.keys)
    with served(site.repo) as url:
        trust = node.trust(url)
        trust.refresh()
        with pytest.raises(Untrusted):
            trust.manifest("1.0.0")
        # What is not delegated further is still served.
        assert trust.channel("stable").release == "1.0.0"


def test_a_repository_without_metadata_cannot_be_forged(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        attacks.forge("huge", tmp_path, tmp_path)
    assert caught.value.reason == "fault-not-injected"
