"""The reports of many runs as one: a page, JUnit XML and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from integration.lab.report import printable
from integration.lab.report_html import STYLE, clock
from integration.lab.terms import Misuse
from updater.errors import UpdaterError
from updater.files import MountedDirectory
from updater.schema import encode_json

Document = Mapping[str, Any]


def find_reports(folder: Path) -> list[Document]:
    """Return the reports in the folders of `folder`, sorted by name; raise UpdaterError when there is none."""
    found: list[Document] = []
    for path in sorted(folder.glob("*/report.json")):
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise UpdaterError(
                f"{path} is no report: {error}", mend="run that scenario again", reason="report-damaged"
            ) from error
        found.append({**document, "folder": path.parent.name})
    if not found:
        raise Misuse(
            f"{folder} holds no reports", mend="give the --out of `acl-lab run` or `matrix`", reason="no-reports"
        )
    return found


def verdict_of(document: Document) -> str:
    """Return `pass`, `fail` or `error`: a run that could not be judged has not passed."""
    return "error" if document.get("error") else ("pass" if document.get("verdict") == "pass" else "fail")


def problem_of(document: Document) -> str:
    """Return why a run did not pass, one line per cause."""
    lines = [str(document["error"])] if document.get("error") else []
    lines += [
        f"{held['what']}: expected {held['expected']}, found {held['found']}"
        for held in document.get("expectations", [])
        if not held["ok"]
    ]
    return "\n".join(lines)


def write_merged(folder: Path, documents: Sequence[Document]) -> list[Path]:
    """Write `report.html`, `report.json` and `junit.xml` into a folder; return their paths."""
    files = MountedDirectory(folder)
    counts = {word: sum(verdict_of(one) == word for one in documents) for word in ("pass", "fail", "error")}
    files.replace("report.json", encode_json({"format": 1, "verdicts": counts, "runs": list(documents)}))
    files.replace("junit.xml", merged_junit(documents))
    files.replace("report.html", page(documents).encode())
    return [folder / name for name in ("report.html", "report.json", "junit.xml")]


def merged_junit(documents: Sequence[Document], *, suite: str = "acl-lab") -> bytes:
    """Return JUnit XML of reports that were read back."""
    verdicts = [verdict_of(one) for one in documents]
    root = ElementTree.Element(
        "testsuite",
        name=suite,
        tests=str(len(documents)),
        failures=str(verdicts.count("fail")),
        errors=str(verdicts.count("error")),
        time=f"{sum(float(one.get('seconds', 0)) for one in documents):.1f}",
    )
    for document, verdict in zip(documents, verdicts, strict=True):
        seconds = f"{float(document.get('seconds', 0)):.1f}"
        case = ElementTree.SubElement(root, "testcase", classname=suite, name=str(document["name"]), time=seconds)
        if verdict != "pass":
            problem = problem_of(document) or "nothing was expected of it"
            kind = "error" if verdict == "error" else "failure"
            ElementTree.SubElement(case, kind, message=printable(problem.partition("\n")[0])).text = printable(problem)
    raw: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return raw


def page(documents: Sequence[Document]) -> str:
    """Return one page with a row for each run, which links to that run's own page beside it."""
    bad = [one for one in documents if verdict_of(one) != "pass"]
    good = len(documents) - len(bad)
    rows = "".join(_row(one) for one in [*bad, *(one for one in documents if one not in bad)])
    seconds = sum(float(one.get("seconds", 0)) for one in documents)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>acl-lab: {good} of {len(documents)} pass</title><style>{STYLE}</style><main>"
        f"<header><div><h1>acl-lab</h1><p>{good} of {len(documents)} runs pass, "
        f"{sum(len(one.get('boots', [])) for one in documents)} boots, {clock(seconds)} of machine time</p></div>"
        f'<div class="verdict {"bad" if bad else "good"}">{"fail" if bad else "pass"}</div></header>'
        "<section><table><tr><th>verdict<th>run<th>boots<th>took<th></tr>"
        f"{rows}</table></section></main></html>\n"
    )


def _row(document: Document) -> str:
    verdict = verdict_of(document)
    name = escape(str(document["name"]))
    link = f'<a href="{escape(str(document["folder"]))}/report.html">{name}</a>' if document.get("folder") else name
    outcomes = ", ".join(escape(str(boot.get("outcome", "?"))) for boot in document.get("boots", []))
    words = escape(problem_of(document)) if verdict != "pass" else escape(str(document.get("summary", "")))
    return (
        f'<tr><td><span class="chip {"good" if verdict == "pass" else "bad"}">{verdict}</span><td>{link}'
        f"<td>{outcomes}<td class=at>{clock(float(document.get('seconds', 0)))}<td class=wrap>{words}</tr>"
    )
