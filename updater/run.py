"""The one way in which external commands are run."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from updater.errors import EnvironmentFailure

log = logging.getLogger(__name__)

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def search_path() -> str:
    """Return PATH with the administrator's folders, which unprivileged shells leave out."""
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return f"{path}:{_SBIN}"


def find_tool(name: str, *, package: str = "") -> str:
    """Return the path of a command; raise EnvironmentFailure that names the package to install."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise EnvironmentFailure(
            f"the command {name!r} is not installed",
            mend=f"install the package {package or name}",
            reason="tool-missing",
        )
    return found


def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | None = None,
    timeout_s: float = 120.0,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end in a known environment; return its output as bytes.

    Raises EnvironmentFailure with a command line that can be pasted and the tail of stderr, on a missing
    command, on a non-zero exit (unless `check` is false) and on a timeout (the process is killed).
    """
    words = [str(word) for word in argv]
    environment = {"PATH": search_path(), "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}
    environment.update(env or {})
    shown = shlex.join(words)
    log.debug("run: %s", shown)
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except FileNotFoundError as error:
        raise EnvironmentFailure(
            f"cannot run `{shown}`: {words[0]} is not installed",
            mend="install it or mend PATH",
            reason="tool-missing",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailure(
            f"`{shown}` did not end within {timeout_s:g} s",
            mend="see what it waits for",
            reason="tool-timeout",
        ) from error
    if check and done.returncode != 0:
        tail = done.stderr.decode("utf-8", "replace").strip()[-800:]
        raise EnvironmentFailure(
            f"`{shown}` failed with exit code {done.returncode}" + (f" ({tail})" if tail else ""),
            mend="run it by hand to see more",
            reason="tool-failed",
        )
    return done
