"""The HTML page of a run: its tables, and bars that can be compared at a glance."""

from __future__ import annotations

from html import escape

from integration.bench.report import Report
from integration.bench.results import Sample, grouped, spread
from integration.bench.tables import Table, kinds, megabytes

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c1e21; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #d8dbe0; padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0 2rem; } figcaption { font-weight: 600; }
svg text { font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e4e6ea; } svg text { fill: #e4e6ea; } }
"""
_BAR, _GAP, _LABEL, _WIDTH = 16, 6, 130, 560
_OURS, _THEIRS = "#2b7a4b", "#8a94a3"


def page(report: Report) -> str:
    """Return the whole page; it needs nothing from elsewhere."""
    lines = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Benchmarks of the data path</title>",
        f"<style>{_STYLE}</style><h1>Benchmarks of the data path</h1><ul>",
        *(f"<li>{escape(line.removeprefix('- '))}</li>" for line in report.circumstances()),
        "</ul>",
    ]
    first, *others = report.tables
    lines += _table(first)
    for pair, other_slot, line in kinds(report.record.samples):
        groups = [
            (key[0], found)
            for key, found in grouped(report.record.samples).items()
            if key[1:] == (pair, other_slot, line)
        ]
        where = f"pair {pair}, other slot: {other_slot}, line: {line}"
        lines += _bars(f"Fetched, MB ({where})", [(n, _middle(f, "fetched_bytes")) for n, f in groups], megabytes)
        lines += _bars(f"Wall time, s ({where})", [(n, _middle(f, "wall_s")) for n, f in groups], "{:.2f}".format)
        lines += _bars(f"Peak memory, MB ({where})", [(n, _middle(f, "rss_bytes")) for n, f in groups], megabytes)
    for table in others:
        lines += _table(table)
    lines += ["<h2>Not measured, or not as one would wish</h2><ul>"]
    lines += [f"<li>{escape(line)}</li>" for line in report.caveats()]
    return "\n".join([*lines, "</ul></html>", ""])


def _middle(samples: list[Sample], name: str) -> float:
    return spread(samples, lambda sample: float(getattr(sample, name))).middle


def _table(table: Table) -> list[str]:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows]
    return [f"<h2>{escape(table.title)}</h2>", f"<table><tr>{head}</tr>", *rows, "</table>"]


def _bars(title: str, values: list[tuple[str, float]], show: object) -> list[str]:
    assert callable(show)
    drawn = [(name, value) for name, value in values if value > 0]
    if not drawn:
        return []
    most = max(value for _, value in drawn)
    height = len(drawn) * (_BAR + _GAP)
    lines = [
        f"<figure><figcaption>{escape(title)}</figcaption>",
        f"<svg width='{_LABEL + _WIDTH + 90}' height='{height}' role='img' aria-label='{escape(title)}'>",
    ]
    for row, (name, value) in enumerate(drawn):
        top = row * (_BAR + _GAP)
        width = max(1.0, _WIDTH * value / most)
        colour = _OURS if name.startswith("ours") else _THEIRS
        baseline = top + _BAR - 4
        lines += [
            f"<text x='{_LABEL - 8}' y='{baseline}' text-anchor='end'>{escape(name)}</text>",
            f"<rect x='{_LABEL}' y='{top}' width='{width:.1f}' height='{_BAR}' fill='{colour}'/>",
            f"<text x='{_LABEL + width + 6:.1f}' y='{baseline}'>{escape(str(show(value)))}</text>",
        ]
    return [*lines, "</svg></figure>"]
