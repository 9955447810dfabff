"""What a run leaves for people and machines: JSON and JUnit, from one set of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from integration.lab.boots import Event
from integration.lab.timeline import Boot
from updater.files import MountedDirectory
from updater.schema import encode_json

_SHOWN_LOG_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """One expectation: what was expected, what was found, and whether they agree."""

    what: str
    expected: str
    found: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one scenario. `error` says why it could not be judged: then it neither passed nor failed."""

    name: str
    summary: str
    started_utc: str
    seconds: float
    boots: tuple[Boot, ...]
    events: tuple[Event, ...]
    expectations: tuple[Held, ...]
    error: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Tell whether every expectation held; a run without any proves nothing."""
        return self.error is None and bool(self.expectations) and all(held.ok for held in self.expectations)

    @property
    def verdict(self) -> str:
        """Return `pass` or `fail`."""
        return "pass" if self.passed else "fail"

    @property
    def problem(self) -> str:
        """Return why it did not pass, one line per cause."""
        lines = [self.error] if self.error else []
        lines += [f"{h.what}: expected {h.expected}, found {h.found}" for h in self.expectations if not h.ok]
        if not lines and not self.expectations:
            lines = ["nothing was expected of it"]
        return "\n".join(lines)


def boot_document(boot: Boot) -> dict[str, Any]:
    """Return a boot as plain values."""
    return {
        "n": boot.n,
        "slot": boot.slot,
        "release": boot.release,
        "outcome": boot.outcome.value,
        "seconds": boot.seconds,
        "started_s": round(boot.started_s, 1),
        "phases": [
            {"phase": span.phase.value, "from_s": round(span.from_s, 1), "to_s": round(span.to_s, 1)}
            for span in boot.spans
        ],
        "entry": boot.entry,
        "ending": boot.ending.value,
        "detail": boot.detail,
        "faults": list(boot.faults),
        "serial_log": boot.serial_log,
    }


def report_document(report: Report) -> dict[str, Any]:
    """Return a report as plain values: `verdict`, `boots`, `events`, `expectations` and what surrounds them."""
    return {
        "format": 1,
        "name": report.name,
        "summary": report.summary,
        "verdict": report.verdict,
        "error": report.error,
        "started_utc": report.started_utc,
        "seconds": round(report.seconds, 1),
        "about": dict(report.about),
        "boots": [boot_document(boot) for boot in report.boots],
        "events": [
            {"at_s": round(event.at_s, 1), "boot": event.boot, "kind": event.kind, "text": event.text}
            for event in report.events
        ],
        "expectations": [
            {"what": held.what, "expected": held.expected, "found": held.found, "ok": held.ok}
            for held in report.expectations
        ],
    }


def junit(reports: Iterable[Report], *, suite: str = "acl-lab") -> bytes:
    """Return JUnit XML: a failed expectation is a failure, a run that could not be judged is an error."""
    cases: Sequence[Report] = list(reports)
    root = ElementTree.Element(
        "testsuite",
        name=suite,
        tests=str(len(cases)),
        failures=str(sum(1 for case in cases if not case.passed and case.error is None)),
        errors=str(sum(1 for case in cases if case.error is not None)),
        time=f"{sum(case.seconds for case in cases):.1f}",
    )
    for report in cases:
        case = ElementTree.SubElement(root, "testcase", classname=suite, name=report.name, time=f"{report.seconds:.1f}")
        if not report.passed:
            kind = "error" if report.error is not None else "failure"
            first, _, _ = report.problem.partition("\n")
            ElementTree.SubElement(case, kind, message=printable(first)).text = printable(report.problem)
        out = "\n".join(f"{event.at_s:8.1f}  {event.kind:10}  {event.text}" for event in report.events)
        ElementTree.SubElement(case, "system-out").text = printable(out)
    raw: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return raw


def write_reports(folder: Path, report: Report) -> None:
    """Write `report.json`, `report.html` and `junit.xml` to the folder that holds the run's serial logs."""
    from integration.lab.report_html import render

    files = MountedDirectory(folder)
    files.replace("report.json", encode_json(report_document(report)))
    files.replace("report.html", render(report, serial_texts(folder, report.boots)).encode())
    files.replace("junit.xml", junit([report]))


def serial_texts(folder: Path, boots: Iterable[Boot]) -> dict[str, str]:
    """Return the serial logs of boots by file name, as words: the end of one that is very long."""
    from integration.lab.serial import plain

    texts: dict[str, str] = {}
    for boot in boots:
        try:
            raw = (folder / boot.serial_log).read_bytes()
        except OSError:
            continue
        lines = raw[-_SHOWN_LOG_BYTES:].decode("utf-8", "replace").split("\n")
        cut = [f"… the first {len(raw) - _SHOWN_LOG_BYTES} bytes are in the file alone"] * (len(raw) > _SHOWN_LOG_BYTES)
        texts[boot.serial_log] = "\n".join([*cut, *(shown for line in lines if (shown := printable(plain(line))))])
    return texts


def printable(text: str) -> str:
    """Return text without the control characters that XML 1.0 cannot hold."""
    return "".join(c if c in "\n\t" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF) else "·" for c in text)
