"""SSH into a machine of the lab: keys, units and `ssh-config`, without a machine."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.lab import ssh
from integration.lab.cli import main
from integration.lab.emulator import Emulator, Given, Hardware, Wires, command, smbios_strings
from updater.errors import EnvironmentFailure, ExitCode

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no OpenSSH client on this host")


def fields(raw: bytes) -> list[bytes]:
    found = []
    while raw:
        (length,) = struct.unpack(">I", raw[:4])
        found.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return found


@pytest.fixture
def greeter(tmp_path: Path) -> Iterator[Path]:
    """Return a folder whose machine's port drops the first connection, as QEMU does, and greets the second."""
    ssh.open_door(tmp_path, own_image=False)
    listener = socket.create_server(("127.0.0.1", 0))
    config = tmp_path / ssh.CONFIG
    config.write_text(config.read_text().replace(f"Port {ssh.port_of(tmp_path)}", f"Port {listener.getsockname()[1]}"))

    def answer() -> None:
        for greeting in (b"", b"SSH-2.0-test\r\n"):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield tmp_path
    thread.join(10)
    listener.close()


def test_the_guest_gets_the_login_key_a_host_key_and_units_that_start_a_server_for_a_connection(tmp_path: Path) -> None:
    door = ssh.open_door(tmp_path, own_image=False)
    names = set(door.credentials)
    assert {"ssh.authorized_keys.root", "systemd.extra-unit.acl-lab-ssh.socket"} <= names
    assert "systemd.wants=acl-lab-ssh.socket" in door.kernel_parameters
    # Each credential travels in one SMBIOS string, whose length is a word less than the table's.
    strings = smbios_strings(Given(door.kernel_parameters, door.credentials))
    assert max(map(len, strings)) < 1024
    assert (tmp_path / "ssh-key").stat().st_mode & 0o777 == 0o600


def test_the_host_key_that_the_guest_gets_is_the_one_that_ssh_expects(tmp_path: Path) -> None:
    door = ssh.open_door(tmp_path, own_image=False)
    given = door.credentials["acl-lab.ssh-host-key"]
    assert isinstance(given, bytes)
    name, pair = fields(given)
    host, algorithm, public = (tmp_path / "ssh-known-hosts").read_text().split()
    assert (host, algorithm, len(pair)) == (ssh.HOST, name.decode(), 64)
    assert public.encode() == ssh.public_line(pair[32:]).split()[1].encode()


@needs_ssh
def test_openssh_reads_the_config_and_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    door = ssh.open_door(folder, own_image=False)
    said = subprocess.run(
        ["ssh", "-G", "-F", folder / ssh.CONFIG, ssh.HOST], capture_output=True, check=True, text=True
    ).stdout
    assert f"port {door.port}\n" in said
    assert "hostname 127.0.0.1\n" in said
    assert "stricthostkeychecking true\n" in said
    public = subprocess.run(["ssh-keygen", "-y", "-f", folder / "ssh-key"], capture_output=True, check=True, text=True)
    assert public.stdout.split()[:2] == str(door.credentials["ssh.authorized_keys.root"]).split()[:2]


def test_every_machine_has_keys_of_its_own(tmp_path: Path) -> None:
    first, second = (ssh.open_door(tmp_path, own_image=False).credentials for _ in range(2))
    for name in ("ssh.authorized_keys.root", "acl-lab.ssh-host-key"):
        assert first[name] != second[name]


def test_ones_own_image_keeps_the_login_key_that_systemd_wrote_to_its_disk_once(tmp_path: Path) -> None:
    first = ssh.open_door(tmp_path, own_image=True).credentials
    config = (tmp_path / ssh.CONFIG).read_text()
    assert "HostKeyAlias own-image" in config
    assert "StrictHostKeyChecking accept-new" in config
    assert (tmp_path / "ssh-known-hosts").read_text() == ""
    (tmp_path / "ssh-known-hosts").write_text("node ssh-ed25519 of-its-own\n")
    second = ssh.open_door(tmp_path, own_image=True).credentials
    assert first["ssh.authorized_keys.root"] == second["ssh.authorized_keys.root"]
    assert (tmp_path / "ssh-known-hosts").read_text() == "node ssh-ed25519 of-its-own\n"


def test_the_port_is_open_on_the_hosts_loopback_alone() -> None:
    emulator = Emulator(("qemu",), Path("code.fd"), Path("vars.fd"))
    for port in (None, 2222):
        hardware = Hardware(ssh_port=port)
        words = command(emulator, hardware, Given(), Wires(3, 4), disk=Path("d"), variables=Path("v"))
        netdev = words[words.index("-netdev") + 1]
        assert netdev == "user,id=net" + (",hostfwd=tcp:127.0.0.1:2222-:22" if port else "")


def test_a_connection_without_a_greeting_is_not_taken_for_a_server(greeter: Path) -> None:
    ssh.wait_for_server(greeter, timeout_s=60)


def test_a_machine_that_is_off_or_was_never_there_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shell", "--ssh", str(tmp_path)]) == ExitCode.ENVIRONMENT
    assert "no machine offers SSH" in capsys.readouterr().err
    ssh.open_door(tmp_path, own_image=False)
    with pytest.raises(EnvironmentFailure, match="is off"):
        ssh.wait_for_server(tmp_path, timeout_s=60)
