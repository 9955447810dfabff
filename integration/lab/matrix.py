"""The catalogue run as a whole: which faults have a verdict for these sources, and a verdict for the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.lab.catalogue import FaultFile
from updater.schema import encode_json

_TOP = Path(__file__).resolve().parents[2]
_SOURCES = ("updater", "rollback", "partition-layouts", "integration/images", "integration/lab")
_PAUSE_S = 0.5
_LEAVE_S = 60.0
Verdict = str
PASS, FAIL, ERROR = "pass", "fail", "error"


@dataclass(frozen=True, slots=True)
class Judged:
    """A fault with its verdict: `pass`, `fail` or `error`; `problem` is why it is not a pass."""

    fault: FaultFile
    verdict: Verdict
    seconds: float
    boots: int
    problem: str
    remembered: bool = False


def source_state(fault: FaultFile, *, short: bool) -> str:
    """Return a digest of all that a verdict depends on: product, images, lab, and the fault's own file."""
    return hashlib.sha256(f"{_sources()} {short} ".encode() + encode_json(fault)).hexdigest()[:16]


_digest: list[str] = []


def _sources() -> str:
    if not _digest:
        digest = hashlib.sha256()
        for name in _SOURCES:
            for path in sorted((_TOP / name).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    digest.update(f"{path.relative_to(_TOP)}\0".encode() + path.read_bytes() + b"\0")
        _digest.append(digest.hexdigest())
    return _digest[0]


def known(fault: FaultFile, out: Path, *, short: bool) -> Judged | None:
    """Return the verdict that an earlier run left in `out` for the same sources; an error is none."""
    try:
        document = json.loads((out / fault.name / "report.json").read_bytes())
        state = (out / fault.name / "sources").read_text().strip()
    except (OSError, ValueError):
        return None
    if state != source_state(fault, short=short) or document.get("error"):
        return None
    return judged(fault, document, remembered=True)


def judged(fault: FaultFile, document: Mapping[str, Any], *, remembered: bool = False) -> Judged:
    """Return the verdict of a run's report."""
    failed = [
        f"{held['what']}: expected {held['expected']}, found {held['found']}"
        for held in document.get("expectations", [])
        if not held["ok"]
    ]
    error = document.get("error")
    verdict = ERROR if error else (PASS if document.get("verdict") == "pass" else FAIL)
    problem = str(error or "; ".join(failed) or ("" if verdict == PASS else "nothing was expected of it"))
    return Judged(
        fault, verdict, float(document.get("seconds", 0)), len(document.get("boots", [])), problem, remembered
    )


class Matrix:
    """Runs faults in processes of their own, some at a time."""

    def __init__(
        self,
        out: Path,
        *,
        jobs: int,
        short: bool,
        tell: Callable[[Matrix], None],
        paths: Mapping[str, Path] | None = None,
    ) -> None:
        """Leave each fault's reports in a folder of `out`; `tell` is called after every change.

        `paths` are the files of faults that do not ship with the lab, by name.
        """
        self.out = out
        self.paths = paths or {}
        self.jobs = jobs
        self.short = short
        self.tell = tell
        self.done: list[Judged] = []
        self.running: dict[str, float] = {}
        self.waiting: list[str] = []

    def run(self, faults: Sequence[FaultFile], *, again: bool) -> list[Judged]:
        """Judge every fault; return the verdicts in the catalogue's order.

        A verdict that is there already for these sources counts, unless `again`.
        """
        todo = []
        for fault in faults:
            before = None if again else known(fault, self.out, short=self.short)
            if before is None:
                todo.append(fault)
            else:
                self.done.append(before)
        # Those without a boot first: they take seconds.
        todo.sort(key=lambda fault: fault.needs_boots)
        self.waiting = [fault.name for fault in todo]
        self.tell(self)
        with Workers() as workers:
            self._work(todo, workers)
        order = {fault.name: n for n, fault in enumerate(faults)}
        return sorted(self.done, key=lambda one: order[one.fault.name])

    def _work(self, todo: list[FaultFile], workers: Workers) -> None:
        left = list(todo)
        while left or workers.count:
            while left and workers.count < self.jobs:
                fault = left.pop(0)
                workers.start(fault, self._command(fault), self.out / fault.name)
                self.waiting.remove(fault.name)
                self.running[fault.name] = time.monotonic()
                self.tell(self)
            for fault, code in workers.ended():
                began = self.running.pop(fault.name)
                self.done.append(self._verdict(fault, code, time.monotonic() - began))
                self.tell(self)
            time.sleep(_PAUSE_S)

    def _command(self, fault: FaultFile) -> list[str]:
        start = "import sys; from integration.lab.cli import main; sys.exit(main())"
        named = str(self.paths.get(fault.name, fault.name))
        words = [sys.executable, "-c", start, "run", "--fault", named, "--json", "--out", str(self.out)]
        return [*words, *(["--short"] if self.short else [])]

    def _verdict(self, fault: FaultFile, code: int, seconds: float) -> Judged:
        folder = self.out / fault.name
        try:
            result = judged(fault, json.loads((folder / "report.json").read_bytes()))
        except (OSError, ValueError):
            said = _tail(folder.with_name(f"{fault.name}.log"))
            return Judged(fault, ERROR, seconds, 0, f"it ended with {code} and left no report: {said}")
        (folder / "sources").write_text(source_state(fault, short=self.short) + "\n")
        return result


class Workers:
    """Child processes; leaving the context ends them in good order, so that no machine stays behind."""

    def __init__(self) -> None:
        """Begin with none."""
        self._running: list[tuple[FaultFile, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for _fault, process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for _fault, process in self._running:
            try:
                process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def count(self) -> int:
        """Return how many run."""
        return len(self._running)

    @property
    def pids(self) -> list[int]:
        """Return the process numbers of those that run."""
        return [process.pid for _, process in self._running]

    def start(self, fault: FaultFile, argv: Sequence[str], folder: Path) -> None:
        """Start one, with its words in a log beside `folder`."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").unlink(missing_ok=True)
        log = folder.with_name(f"{fault.name}.log")
        with log.open("wb") as output:
            # A matrix that is killed outright takes its runs with it, and they their machines.
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append((fault, process))

    def ended(self) -> Iterator[tuple[FaultFile, int]]:
        """Yield those that have ended, with their exit codes, and forget them."""
        for item in list(self._running):
            code = item[1].poll()
            if code is not None:
                self._running.remove(item)
                yield item[0], code


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[-300:]
    except OSError:
        return "nothing"
