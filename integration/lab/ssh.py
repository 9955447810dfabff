"""SSH into a machine that `acl-lab boot` started: its keys, its port, its units, all given from outside."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure

CONFIG = "ssh-config"
HOST = "node"
_KEY = "ssh-key"
_KNOWN = "ssh-known-hosts"
_LOOPBACK = "127.0.0.1"
_LOGIN_KEY = "ssh.authorized_keys.root"
_HOST_KEY = "acl-lab.ssh-host-key"
_SERVER = "/usr/lib/acl-lab/dropbear"
_ALGORITHM = b"ssh-ed25519"
# PID 1 listens, and starts a server only for a connection: a boot pays for one socket. An image without the lab's
# server gets none, so that whatever it has itself finds the port free.
_UNITS = {
    "acl-lab-ssh.socket": f"[Unit]\nConditionPathExists={_SERVER}\n[Socket]\nListenStream=22\nAccept=yes\n",
    "acl-lab-ssh@.service": "[Service]\n"
    f"ExecStart=-{_SERVER} -i -s -E -r %d/host-key -D %d\n"
    "StandardInput=socket\nStandardError=journal\n"
    f"LoadCredential=authorized_keys:{_LOGIN_KEY}\n"
    f"LoadCredential=host-key:{_HOST_KEY}\n",
}
_PARAMETERS = ("systemd.wants=acl-lab-ssh.socket",)


@dataclass(frozen=True, slots=True)
class Door:
    """A machine's way in: the port of the host's loopback, and what the machine must be given."""

    port: int
    credentials: dict[str, str | bytes]
    kernel_parameters: tuple[str, ...] = _PARAMETERS


def open_door(folder: Path, *, own_image: bool) -> Door:
    """Make keys for a machine in `folder`, and `ssh-config` for `ssh -F`; return what the machine is given.

    An image of the lab starts its dropbear, with a host key that `ssh` knows already. One's `own_image` with a server
    of its own finds the login key in the credential `ssh.authorized_keys.root`, which systemd writes to its disk once:
    both keys stay over any number of boots, and its host key is taken at first sight.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    if not own_image:
        (folder / _KEY).unlink(missing_ok=True)
    login = _login_key(folder / _KEY)
    seed, public = _ed25519()
    credentials: dict[str, str | bytes] = {_LOGIN_KEY: login, _HOST_KEY: _dropbear_key(seed, public)}
    credentials |= {f"systemd.extra-unit.{name}": text for name, text in _UNITS.items()}
    if own_image:
        (folder / _KNOWN).touch()
    else:
        (folder / _KNOWN).write_text(f"{HOST} {public_line(public)}\n")
    port = _free_port()
    # Another name for another machine in the same folder: its key is no change of the first one's.
    names = ("own-image", "accept-new") if own_image else (HOST, "yes")
    (folder / CONFIG).write_text(_config(folder.resolve(), port, *names))
    return Door(port, credentials)


def command(folder: Path, words: Sequence[str]) -> list[str]:
    """Return the argv that runs `words` in the machine in `folder`, or opens a shell there; raise when none can be."""
    config = folder / CONFIG
    if not config.is_file():
        raise EnvironmentFailure(
            f"no machine offers SSH in {folder}",
            mend="start one with `acl-lab boot`, in another terminal",
            reason="lab-no-machine",
        )
    program = shutil.which("ssh")
    if program is None:
        raise EnvironmentFailure(
            "there is no ssh on this host",
            mend="install an SSH client, or leave --ssh away",
            reason="tool-missing",
        )
    return [program, "-F", str(config.resolve()), HOST, *words]


def wait_for_server(folder: Path, *, timeout_s: float) -> None:
    """Return once an SSH server answers in the machine; raise EnvironmentFailure after `timeout_s` seconds.

    QEMU takes a connection before the guest has a network, and drops it: only a greeting proves a server.
    """
    port = port_of(folder)
    end = time.monotonic() + timeout_s
    said = "nothing answered"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((_LOOPBACK, port), timeout=min(left, 10)) as connection:
                said = "it sent no greeting"
                if connection.recv(4) == b"SSH-":
                    return
        except ConnectionRefusedError as error:
            raise EnvironmentFailure(
                f"the machine in {folder} is off",
                mend="start it with `acl-lab boot`, in another terminal",
                reason="lab-no-machine",
            ) from error
        except OSError as error:
            said = str(error)
        time.sleep(0.2)
    raise EnvironmentFailure(
        f"no SSH server answered in the machine within {timeout_s:g} s: {said}",
        mend="see its console: it may still boot; `acl-lab shell` without --ssh needs no network",
        reason="lab-timeout",
    )


def run(folder: Path, words: Sequence[str], *, timeout_s: float) -> int:
    """Run ssh in the machine with this terminal as its own; return its exit code, 255 where the connection failed."""
    argv = command(folder, words)
    wait_for_server(folder, timeout_s=timeout_s)
    return subprocess.run(argv, check=False).returncode


def _config(folder: Path, port: int, alias: str, checking: str) -> str:
    lines = (
        f"Host {HOST}",
        f"HostName {_LOOPBACK}",
        f"Port {port}",
        "User root",
        f'IdentityFile "{folder / _KEY}"',
        "IdentitiesOnly yes",
        f'UserKnownHostsFile "{folder / _KNOWN}"',
        "GlobalKnownHostsFile none",
        f"HostKeyAlias {alias}",
        f"StrictHostKeyChecking {checking}",
        "PasswordAuthentication no",
        "LogLevel ERROR",
    )
    return "\n    ".join(lines) + "\n"


def port_of(folder: Path) -> int:
    """Return the port of the host's loopback that leads to the machine in `folder`."""
    words = (folder / CONFIG).read_text().split()
    return int(words[words.index("Port") + 1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _login_key(path: Path) -> str:
    """Write a private key as OpenSSH reads it, for its owner alone, unless there is one; return what lets it in."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        text = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
    key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode() + " acl-lab\n"


def _ed25519() -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def _string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def public_line(public: bytes) -> str:
    """Return an ed25519 public key as OpenSSH writes it in a line."""
    return f"{_ALGORITHM.decode()} {b64encode(_string(_ALGORITHM) + _string(public)).decode()}"


def _dropbear_key(seed: bytes, public: bytes) -> bytes:
    """Return a host key in dropbear's own format, the only one that it reads: its name, then seed and public key."""
    return _string(_ALGORITHM) + _string(seed + public)
