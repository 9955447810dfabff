"""Reports: one set of values as JSON, JUnit and a page."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from integration.lab.boots import Event
from integration.lab.report import Held, Report, junit, report_document, write_reports
from integration.lab.report_html import render
from integration.lab.serial import Mark, Sighting
from integration.lab.timeline import Boot, Ending, Outcome, Phase, Span

BOOTS = (
    Boot(
        n=1,
        slot="a",
        release="1.0.0",
        outcome=Outcome.HEALTHY,
        seconds=40.0,
        started_s=0.0,
        spans=(Span(Phase.FIRMWARE, 0.0, 1.0), Span(Phase.UP, 1.0, 40.0)),
        sightings=(Sighting(Mark.LOGIN, 30.0),),
        ending=Ending.RESET,
        entry="a.conf",
        faults=(),
        serial_log="serial-01.log",
    ),
    Boot(
        n=2,
        slot=None,
        release=None,
        outcome=Outcome.LOADER_ERROR,
        seconds=6.0,
        started_s=40.5,
        spans=(Span(Phase.FIRMWARE, 0.0, 6.0),),
        sightings=(),
        ending=Ending.RESET,
        entry=None,
        faults=("2.0.0:truncated",),
        serial_log="serial-02.log",
        detail="<script>alert('&')</script>",
    ),
)
REPORT = Report(
    name="demo",
    summary="A good and a bad update.",
    started_utc="2026-11-20T05:00:00Z",
    seconds=61.0,
    boots=BOOTS,
    events=(Event(1.0, 1, "kernel", "slot a boots release 1.0.0"), Event(2.0, 1, "panic", "bad \x00 byte ]]>")),
    expectations=(Held("slot that booted", "a", "a", ok=True),),
    about={"accelerator": "tcg"},
)


def test_the_document_holds_what_it_promises() -> None:
    document = report_document(REPORT)
    assert document["verdict"] == "pass"
    assert {"n", "slot", "release", "outcome", "seconds"} <= document["boots"][0].keys()
    assert [boot["outcome"] for boot in document["boots"]] == ["healthy", "loader error"]
    assert document["expectations"] == [{"what": "slot that booted", "expected": "a", "found": "a", "ok": True}]


def test_a_failed_expectation_fails_the_run_and_an_error_is_no_failure_of_the_product() -> None:
    failed = dataclasses.replace(REPORT, expectations=(Held("slot", "b", "a", ok=False),))
    errored = dataclasses.replace(REPORT, error="the fault was never injected")
    assert not failed.passed
    assert not errored.passed
    suite = ElementTree.fromstring(junit([REPORT, failed, errored]))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert suite.find("testcase/failure") is not None
    assert suite.find("testcase/error") is not None


def test_a_run_that_expected_nothing_has_not_passed() -> None:
    assert not dataclasses.replace(REPORT, expectations=()).passed


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("href", "src") and value]


def test_the_page_needs_nothing_beside_itself_and_links_every_serial_log() -> None:
    page = _Page()
    page.feed(render(REPORT))
    assert page.links == ["serial-01.log", "serial-02.log"]
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_the_page_shows_what_a_guest_printed_as_words() -> None:
    html = render(REPORT)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_the_page_has_each_boots_console_beside_its_phases(tmp_path: Path) -> None:
    (tmp_path / "serial-01.log").write_bytes(b"\x1b[0mLinux version 6\r\n\r\n<b>login:\n")
    (tmp_path / "serial-02.log").write_bytes(b"first\n" + b"x" * 99 + b"\n" * 400_000 + b"the end\n")
    write_reports(tmp_path, REPORT)
    html = (tmp_path / "report.html").read_text()
    assert "console of boot 1, 2 lines</summary><pre>Linux version 6\n&lt;b&gt;login:</pre>" in html
    assert "bytes are in the file alone\nthe end</pre>" in html
    assert "first" not in html.partition("console of boot 2")[2].partition("</pre>")[0].replace("the first", "")


@pytest.mark.parametrize("boots", [(), BOOTS[1:]])
def test_a_page_can_be_made_of_a_run_that_ended_early(boots: tuple[Boot, ...]) -> None:
    assert "<main>" in render(dataclasses.replace(REPORT, boots=boots, events=(), expectations=(), error="no QEMU"))


def test_reports_are_written_side_by_side(tmp_path: Path) -> None:
    write_reports(tmp_path, REPORT)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html", "junit.xml"}
    assert json.loads((tmp_path / "report.json").read_bytes())["verdict"] == "pass"
