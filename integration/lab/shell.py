"""A root shell in a machine that `acl-lab boot` started, over its second serial port."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shlex
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path

from updater.errors import EnvironmentFailure

SOCKET = "shell.sock"
# Where PID 1 starts a root shell that asks for no password; the console keeps its log to itself.
KERNEL_PARAMETERS = ("systemd.debug_shell=ttyS1",)
_LEAVE = b"\x1d"
_LONGEST_SOCKET = 100


def socket_path(folder: Path) -> Path:
    """Return where a machine in `folder` offers its shell; raise EnvironmentFailure for too long a path."""
    path = folder.resolve() / SOCKET
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise EnvironmentFailure(
            f"{path} is too long for a socket's name", mend="give a shorter --out", reason="lab-socket"
        )
    return path


def connect(folder: Path) -> socket.socket:
    """Return a connection to the machine in `folder`; raise EnvironmentFailure when none runs there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(socket_path(folder)))
    except OSError as error:
        connection.close()
        raise EnvironmentFailure(
            f"no machine offers a shell in {folder}: {error.strerror}",
            mend="start one with `acl-lab boot`, in another terminal",
            reason="lab-no-machine",
        ) from error
    return connection


def interact(connection: socket.socket) -> None:
    """Pass the terminal through to the machine until Ctrl-], or until the machine is gone."""
    connection.sendall(b"\n")
    with _raw_terminal():
        while True:
            ready, _, _ = select.select([sys.stdin, connection], [], [])
            if connection in ready:
                data = connection.recv(65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
            if sys.stdin in ready:
                typed = os.read(sys.stdin.fileno(), 4096)
                before, leave, _ = typed.partition(_LEAVE)
                connection.sendall(before)
                if leave or not typed:
                    return


def run_command(connection: socket.socket, command: str, *, timeout_s: float) -> tuple[int, str]:
    """Run one command in the machine's shell; return its exit code and output, or raise EnvironmentFailure.

    What the shell was doing before is interrupted.
    """
    mark = f"acl-lab-{secrets.token_hex(6)}"
    # The mark is put together by the shell, so that its echo of the line is not taken for the answer.
    head, tail = mark[:10], mark[10:]
    # One line, since the shell prints its prompt between two; a subshell, so that `exit` ends the command only. Whoever
    # types there next wants to see it.
    run = f"(eval {shlex.quote(command)}); code=$?; stty echo 2>/dev/null"
    line = f"echo {head}''{tail} begin; {run}; echo {head}''{tail} end $code\n"
    connection.sendall(b"\x03\nstty -echo 2>/dev/null\n" + line.encode())
    pattern = re.compile(rf"{mark} begin\r?\n(.*?){mark} end (\d+)", re.DOTALL)
    heard = b""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([connection], [], [], left)
        if not ready:
            break
        data = connection.recv(65536)
        if not data:
            raise EnvironmentFailure(
                "the machine went away before its shell had answered",
                mend="see its console; `acl-lab boot` starts another one",
                reason="lab-no-machine",
            )
        heard += data
        match = pattern.search(heard.decode("utf-8", "replace"))
        if match:
            return int(match.group(2)), match.group(1).replace("\r\n", "\n")
    raise EnvironmentFailure(
        f"the machine's shell did not answer within {timeout_s:g} s",
        mend="see its console: it may still boot, or hang",
        reason="lab-timeout",
    )


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
