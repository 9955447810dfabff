"""A run's report: report.json for programs, Markdown for docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from integration.bench.results import Failure, Making, Sample
from integration.bench.run import Record
from integration.bench.tables import (
    Table,
    costs,
    growth,
    kinds,
    making,
    parts_table,
    resumed,
    steps_table,
    target_table,
)
from integration.bench.targets import targets
from updater.run import run

# A load average at the start above which somebody else was at work.
_BUSY_LOAD = 0.5
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run took place; `load` is the load average (one minute) when it began and when it ended."""

    processor: str
    processors: int
    memory_bytes: int
    kernel: str
    file_system: str
    load: tuple[float, float]


def this_machine(folder: Path, load_before: float) -> Machine:
    """Describe this machine; `folder` is where the slots lie."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return Machine(
        name or platform.machine(),
        os.cpu_count() or 1,
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        platform.release(),
        _file_system(folder.resolve()),
        (round(load_before, 1), round(os.getloadavg()[0], 1)),
    )


def this_source(top: Path) -> str:
    """Return the commit of a checkout, and whether its code differs from it; empty where there is none."""
    git: list[str | Path] = ["git", "-C", top]
    found = run([*git, "describe", "--always"], check=False)
    if found.returncode != 0:
        return ""
    changed = run([*git, "diff", "--quiet", "HEAD", "--", "updater", "integration"], check=False).returncode
    return found.stdout.decode().strip() + (" and changes to it" if changed else "")


def _file_system(folder: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, _ = line.split(" ", 3)
        if folder.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run saw, and where and when."""

    course: str
    began: datetime
    took_s: float
    machine: Machine
    versions: Mapping[str, str]
    record: Record
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> Report:
        """Return a report from its JSON."""
        raw = json.loads(text)
        record = Record(
            [Sample(**item) for item in raw["samples"]],
            [Making(**item) for item in raw["makings"]],
            [Failure(**item) for item in raw["failures"]],
            *(raw[name] for name in ("pairs", "lines", "summaries", "notes")),
        )
        machine = Machine(**{**raw["machine"], "load": tuple(raw["machine"]["load"])})
        began = datetime.fromisoformat(raw["began"])
        return cls(raw["course"], began, raw["took_s"], machine, raw["versions"], record, raw.get("source", ""))

    def followed_by(self, later: Report) -> Report:
        """Return one report of two runs on one machine with one set of peers; the later one's makings count.

        Raises ValueError where machine or versions differ.
        """
        if (self.machine.processor, self.versions) != (later.machine.processor, later.versions):
            raise ValueError("two runs on different machines, or with different peers, are not one")
        fresh = [m for m in later.record.makings if not m.reused]
        known = {(m.contender, m.pair) for m in fresh}
        record = Record(
            self.record.samples + later.record.samples,
            [m for m in self.record.makings if (m.contender, m.pair) not in known] + fresh,
            self.record.failures + later.record.failures,
            self.record.pairs | later.record.pairs,
            self.record.lines | later.record.lines,
            self.record.summaries | later.record.summaries,
            self.record.notes | later.record.notes,
        )
        machine = replace(later.machine, load=(self.machine.load[0], later.machine.load[1]))
        source = ", ".join(dict.fromkeys(filter(None, (self.source, later.source))))
        took_s = self.took_s + later.took_s
        return Report(later.course, self.began, took_s, machine, later.versions, record, source)

    @property
    def tables(self) -> list[Table]:
        """Return the tables, the targets first."""
        record = self.record
        pair_s, pair_k = ("S", "K") if {"S", "K"} & set(record.pairs) else ("Q", "Q")
        found = [target_table(targets(record.samples, record.makings, pair_s, pair_k))]
        found += [costs(record.samples, *kind) for kind in kinds(record.samples)]
        found += [resumed(record.samples), growth(record.samples), steps_table(record.samples)]
        found += [parts_table(record.samples), making(record.makings)]
        return [table for table in found if table.rows]

    def as_json(self) -> str:
        """Return everything as JSON."""
        document = {
            "format": 1,
            "course": self.course,
            "began": self.began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "took_s": round(self.took_s, 1),
            "machine": asdict(self.machine),
            "source": self.source,
            "versions": dict(self.versions),
            **asdict(self.record),
            "tables": [asdict(table) for table in self.tables],
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """Return the tables with what must be known to read them."""
        lines = [*self.circumstances(), ""]
        for table in self.tables:
            lines += ["", f"### {table.title}", "", *markdown(table)]
        lines += ["", "### Not measured, or not as one would wish", "", *(f"- {note}" for note in self.caveats())]
        return "\n".join(lines) + "\n"

    def circumstances(self) -> list[str]:
        """Return where, when and on what, as lines of a list."""
        machine, record = self.machine, self.record
        lines = [
            f"- {self.began:%Y-%m-%d %H:%M} UTC, course `{self.course}`, {self.took_s / 60:.0f} minutes",
            f"- {machine.processor}, {machine.processors} processors, {machine.memory_bytes / 1e9:.0f} GB of memory, "
            f"Linux {machine.kernel}, slots in files on {machine.file_system}; load average {machine.load[0]} at the "
            f"start, {machine.load[1]} at the end",
            "- " + ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items())),
        ]
        if self.source:
            lines.append(f"- our source: {self.source}")
        if machine.load[0] >= _BUSY_LOAD:
            lines.append(
                "- other work shared the machine: contenders take turns, so that ratios and medians of several runs "
                "say more than seconds; bytes, requests and memory do not depend on it"
            )
        for name, about in record.pairs.items():
            updated = about["updated"]
            count = len(updated) if isinstance(updated, list) else 0
            old, new, uki = (int(str(about[key])) for key in ("old_bytes", "new_bytes", "uki_bytes"))
            lines.append(
                f"- pair {name}: {about['summary']}; {old / 1e6:.1f} → {new / 1e6:.1f} MB, UKI {uki / 1e6:.1f} MB, "
                f"{count} packages differ"
            )
        lines += [f"- line {name}: {made_by}" for name, made_by in record.lines.items()]
        return lines

    def caveats(self) -> list[str]:
        """Return what could not be run, and how to read what was."""
        record = self.record
        found = [f"{name}: {note}" for name, note in sorted(record.notes.items())]
        found += [f"{f.contender}, pair {f.pair}, {f.where}: failed (…{f.message[-200:]})" for f in record.failures]
        return [" ".join(line.split()) for line in found] or ["nothing"]


def markdown(table: Table) -> list[str]:
    """Return a table as Markdown lines."""
    head = "| " + " | ".join(table.head) + " |"
    rule = "| " + " | ".join("---" for _ in table.head) + " |"
    return [head, rule, *("| " + " | ".join(row) + " |" for row in table.rows)]


def update_page(page: Path, measured: str) -> None:
    """Put `measured` between the page's two marks; raise ValueError when it has none."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no marks {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n\n{measured}\n{END}{rest.split(END, 1)[1]}")


def ratios(report: Report) -> str:
    """Return what `bench-quick` prints: ratios, and nothing that depends on this machine."""
    lines = []
    for table in report.tables[:1]:
        widths = [max(len(row[i]) for row in (table.head, *table.rows)) for i in range(len(table.head))]
        for row in (table.head, *table.rows):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    lines += _against_image(report)
    return "\n".join(lines) + "\n"


def _against_image(report: Report) -> Sequence[str]:
    from integration.bench.course import ZEROS
    from integration.bench.link import LOCAL
    from integration.bench.results import grouped, spread

    lines = ["", "bytes fetched as a share of the image, and requests (local line, other slot zeros):"]
    for (name, pair, other_slot, line), found in grouped(report.record.samples).items():
        if (other_slot, line) != (ZEROS, LOCAL.name) or name == "dd":
            continue
        if pair not in report.record.pairs:
            continue
        length = int(str(report.record.pairs[pair]["new_bytes"]))
        share = spread(found, lambda s: s.fetched_bytes - s.parts.get("uki", 0)).middle / length
        lines.append(f"  {name:<14} {share:8.2%}  {found[-1].requests:>6}")
    return lines


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)
