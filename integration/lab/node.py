"""The one place where the lab speaks to `acl-updater`: in a guest, and on a powered-off disk."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.lab.machine import Machine
from updater.errors import EnvironmentFailure

SCRATCH = "updater-scratch"


@dataclass(frozen=True, slots=True)
class Did:
    """What one call of `acl-updater` did; `document` is what `--json` wrote, `killed` why it was ended."""

    words: str
    exit_code: int
    stdout: str
    stderr: str
    document: Mapping[str, Any] = field(default_factory=dict)
    killed: str | None = None

    @property
    def reason(self) -> str | None:
        """Return the code of its error."""
        reason = self.document.get("reason") if "error" in self.document else None
        return str(reason) if reason else None

    @property
    def sentence(self) -> str:
        """Return its error, or the sentence that explains, or nothing."""
        return str(self.document.get("error") or self.document.get("sentence") or "")

    @property
    def text(self) -> str:
        """Return all that it wrote."""
        return f"{self.stdout}\n{self.stderr}"


@dataclass(frozen=True, slots=True)
class Status:
    """What `acl-updater status --json` says, as far as scenarios expect something of it."""

    document: Mapping[str, Any]

    @property
    def phase(self) -> str:
        """Return the phase in the journal: what was last meant."""
        return str(self.document.get("phase", ""))

    @property
    def situation(self) -> str:
        """Return where the node stands, as decided from its disk."""
        return str(self.document.get("situation", ""))

    @property
    def quarantine(self) -> list[str]:
        """Return the versions that this node will not try again."""
        return sorted(item["version"] for item in self._quarantine() if not item.get("until"))

    @property
    def put_off(self) -> list[str]:
        """Return the versions whose try ended without evidence, to be tried again later."""
        return sorted(item["version"] for item in self._quarantine() if item.get("until"))

    def _quarantine(self) -> list[Mapping[str, Any]]:
        return list(self.document.get("quarantine") or [])

    @property
    def told(self) -> list[str]:
        """Return what the node tells beside its situation: its quarantine, obstacles and notes."""
        quarantine = [
            f"release {item['version']} {'put off' if item.get('until') else 'quarantined'}: {reason}"
            for item, reason in zip(self._quarantine(), self.reasons, strict=True)
        ]
        obstacles = (self.document.get("boot") or {}).get("obstacles") or []
        return [*quarantine, *map(str, obstacles), *map(str, self.document.get("notes") or [])]

    @property
    def reasons(self) -> list[str]:
        """Return why each release of the quarantine is there: `stage/cause: sentence`, and the checks behind it."""
        return [
            f"{item.get('stage')}/{item.get('cause')}: {item.get('sentence')}"
            + (f" ({', '.join(item['checks'])})" if item.get("checks") else "")
            for item in self._quarantine()
        ]


def offline(
    disk: Path,
    words: str,
    *,
    config: Path,
    timeout_s: float,
    variables: Path | None = None,
    kill_when: Callable[[], str | None] | None = None,
) -> Did:
    """Run `acl-updater --disk` on a powered-off disk, and kill it the moment `kill_when` returns a reason.

    `variables` is the machine's store, for a loader that lives by it.
    """
    start = "import sys; from updater.cli import main; sys.exit(main())"
    store = ["--efi-vars", str(variables)] if variables is not None else []
    argv = [sys.executable, "-c", start, "--json", "--disk", str(disk), *store, "--config", str(config)]
    argv += shlex.split(words)
    # An updater whose power is cut removes none of its temporary files.
    scratch = disk.parent / SCRATCH
    scratch.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "TMPDIR": str(scratch.resolve()),
        "PATH": f"{_tools()}:{os.environ.get('PATH', '')}",
        "LC_ALL": "C.UTF-8",
    }
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    killed: str | None = None
    end = time.monotonic() + timeout_s
    try:
        while True:
            try:
                out, err = process.communicate(timeout=0.002 if kill_when is not None else max(0.1, timeout_s))
                break
            except subprocess.TimeoutExpired:
                if kill_when is not None and killed is None and (killed := kill_when()):
                    _kill(process)
                elif time.monotonic() > end:
                    raise EnvironmentFailure(
                        f"`acl-updater --disk {disk} {words}` did not end within {timeout_s:g} s",
                        mend="run it by hand",
                        reason="lab-timeout",
                    ) from None
    finally:
        _kill(process)
        shutil.rmtree(scratch, ignore_errors=True)
    return did(words, process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), killed)


def in_guest(machine: Machine, words: str, *, budget_s: float) -> Did:
    """Run `acl-updater --json` in the guest."""
    ran = machine.guest("acl-updater", "--json", *shlex.split(words), budget_s=budget_s)
    return did(words, ran.exit_code, ran.stdout, ran.stderr)


def did(words: str, exit_code: int, stdout: str, stderr: str, killed: str | None = None) -> Did:
    """Return a call's result with its JSON document, which is its whole output or the last line of it."""
    for text in (stdout, stdout.strip().rpartition("\n")[2], stderr.strip().rpartition("\n")[2]):
        with contextlib.suppress(ValueError):
            document = json.loads(text)
            if isinstance(document, dict):
                return Did(words, exit_code, stdout, stderr, document, killed)
            if isinstance(document, list):
                return Did(words, exit_code, stdout, stderr, {"items": document}, killed)
    return Did(words, exit_code, stdout, stderr, {}, killed)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tools() -> Path:
    from integration.images.tooltree import tool_tree

    return tool_tree().bin
