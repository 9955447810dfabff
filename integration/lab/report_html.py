"""A run's report as one self-contained page that a person likes to look at."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from integration.lab.boots import Event
from integration.lab.report import Held, Report
from integration.lab.timeline import Boot, Outcome, Phase

_GOOD = {Outcome.HEALTHY, Outcome.COMMITTED}
_NEUTRAL = {Outcome.RUNNING, Outcome.HALTED, Outcome.POWER_CUT, Outcome.REBOOTED}
_LOUD_EVENTS = {"commit", "panic", "watchdog", "emergency", "verity", "power cut", "fault", "lab", "expect"}

STYLE = """
:root { color-scheme: light dark;
  --bg:#f6f7f9; --card:#fff; --ink:#1b2330; --soft:#5d6979; --line:#dfe4ea; --good:#1a7f4b; --good-bg:#dcf5e7;
  --bad:#b3261e; --bad-bg:#fde7e5; --calm:#7a5c00; --calm-bg:#fdf1cf; --a:#2f6fde; --b:#b4540a; --a-bg:#e3edfd;
  --b-bg:#fdeadb; --firmware:#9aa5b4; --loader:#7c8a9d; --kernel:#7aa6e8; --initrd:#6bb7c4; --userspace:#86c38a;
  --trial:#e0b13c; --verdict:#c2503f; --up:#3f9d62; }
@media (prefers-color-scheme: dark) { :root {
  --bg:#12161c; --card:#1a2029; --ink:#e6ebf2; --soft:#98a4b5; --line:#2c3542; --good:#63d297; --good-bg:#163a28;
  --bad:#ff8a80; --bad-bg:#44211f; --calm:#f0cd6b; --calm-bg:#3c3214; --a:#84b1ff; --b:#ffb074; --a-bg:#1c2f50;
  --b-bg:#472b15; --firmware:#66717f; --loader:#556170; --kernel:#42699f; --initrd:#3a7f8b; --userspace:#4b8250;
  --trial:#a97f1b; --verdict:#a5473a; --up:#2f8550; } }
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif }
main { max-width:1120px; margin:0 auto; padding:32px 20px 64px }
h1 { font-size:26px; margin:0 0 4px; letter-spacing:-.01em } h2 { font-size:17px; margin:0 0 14px }
p { margin:0 } .soft { color:var(--soft) } code,.mono { font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace }
header { display:flex; gap:20px; align-items:flex-start; justify-content:space-between; margin-bottom:24px }
section { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:20px; margin-bottom:20px }
.verdict { font-weight:700; font-size:18px; padding:8px 18px; border-radius:999px; white-space:nowrap }
.good { color:var(--good); background:var(--good-bg) } .bad { color:var(--bad); background:var(--bad-bg) }
.calm { color:var(--calm); background:var(--calm-bg) }
.chip { display:inline-block; padding:1px 10px; border-radius:999px; font-size:13px; font-weight:600;
  white-space:nowrap }
.slot-a { color:var(--a); background:var(--a-bg) } .slot-b { color:var(--b); background:var(--b-bg) }
.facts { display:flex; flex-wrap:wrap; gap:8px 28px; margin-top:10px; color:var(--soft); font-size:14px }
.facts b { color:var(--ink); font-weight:600 }
.lanes { display:grid; grid-template-columns:64px 1fr; row-gap:8px; align-items:center }
.lane { position:relative; height:44px; border-radius:8px; background:var(--bg); overflow:hidden }
.life { position:absolute; top:0; bottom:0; border-radius:6px; padding:3px 8px; overflow:hidden; white-space:nowrap;
  font-size:12px; line-height:1.35; border-left:4px solid currentColor; min-width:4px }
.axis { position:relative; height:20px; font-size:12px; color:var(--soft) }
.axis span { position:absolute; transform:translateX(-50%) } .axis span:first-child { transform:none }
.axis span:last-child { transform:translateX(-100%) }
.boot { display:grid; grid-template-columns:34px 190px 1fr 150px; gap:4px 14px; align-items:center; padding:12px 0;
  border-top:1px solid var(--line) } .boot:first-of-type { border-top:0 }
.n { font-size:20px; font-weight:700; color:var(--soft); text-align:right }
.bar { display:flex; height:26px; border-radius:6px; overflow:hidden; background:var(--bg) }
.bar i { display:block; height:100%; font-style:normal; font-size:11px; line-height:26px; text-align:center;
  overflow:hidden; color:#fff; min-width:2px; text-shadow:0 1px 1px #0006 }
.detail { grid-column:3/5; font-size:13px; color:var(--soft) }
.log { grid-column:2/5; min-width:0 } .log pre { max-height:480px; overflow:auto; margin:8px 0 0; padding:10px;
  border-radius:8px; background:var(--bg); font:12px/1.45 ui-monospace,SFMono-Regular,Menlo,monospace }
.ends { text-align:right } .ends a { font-size:13px } a { color:var(--a) }
.legend { display:flex; flex-wrap:wrap; gap:6px 16px; font-size:13px; color:var(--soft); margin-bottom:10px }
.legend i { display:inline-block; width:12px; height:12px; border-radius:3px; margin-right:6px; vertical-align:-1px }
table { width:100%; border-collapse:collapse; font-size:14px } td,th { padding:7px 10px 7px 0; text-align:left;
  vertical-align:top; border-top:1px solid var(--line) } th { color:var(--soft); font-weight:600; border-top:0 }
td.at { text-align:right; color:var(--soft); white-space:nowrap; font-variant-numeric:tabular-nums; width:72px }
tr.quiet td { color:var(--soft) } .wrap { overflow-wrap:anywhere } details summary { cursor:pointer; color:var(--soft) }
footer { color:var(--soft); font-size:13px }
@media (max-width:760px) { .boot { grid-template-columns:28px 1fr }
  .bar,.detail,.ends,.log { grid-column:2; text-align:left }
  header { flex-direction:column } }
@media print { body { background:#fff } section { break-inside:avoid } }
"""


def render(report: Report, logs: Mapping[str, str] | None = None) -> str:
    """Return the page, which needs nothing beside itself; `logs` are the consoles by the names of their files."""
    verdict = "pass" if report.passed else ("error" if report.error else "fail")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<title>{escape(report.name)}: {verdict}</title><style>{STYLE}</style><main>",
        _header(report, verdict),
        _life(report.boots),
        _boots(report.boots, logs or {}),
        _expectations(report.expectations, report.error),
        _events(report.events),
        "<footer>Boots, slots and outcomes are as seen from outside the guest: the serial console, the loader's "
        "entries on the ESP, the partition table and QEMU's own events. Each boot's slot is the partition whose "
        "PARTUUID is the head of the root hash on its kernel's command line.</footer></main></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _header(report: Report, verdict: str) -> str:
    held = sum(1 for one in report.expectations if one.ok)
    facts = {
        "started": report.started_utc,
        "took": clock(report.seconds),
        "boots": str(len(report.boots)),
        "expectations": f"{held} of {len(report.expectations)} held",
        **report.about,
    }
    shown = "".join(f"<span>{escape(key)} <b>{escape(value)}</b></span>" for key, value in facts.items())
    return (
        f"<header><div><h1>{escape(report.name)}</h1><p>{escape(report.summary)}</p>"
        f"<div class=facts>{shown}</div></div>"
        f'<div class="verdict {"good" if report.passed else "bad"}">{verdict}</div></header>'
    )


def _life(boots: tuple[Boot, ...]) -> str:
    if not boots:
        return ""
    total = max(1.0, max(boot.started_s + boot.seconds for boot in boots))
    lanes = []
    for slot in ("a", "b"):
        bars = []
        for boot in boots:
            if boot.slot != slot:
                continue
            left, width = 100 * boot.started_s / total, 100 * boot.seconds / total
            bars.append(
                f'<div class="life {_tone(boot.outcome)}" style="left:{left:.2f}%;width:calc({width:.2f}% - 2px)" '
                f'title="{escape(_sentence(boot))}"><b>{escape(boot.release or "?")}</b><br>'
                f"{escape(boot.outcome.value)}</div>"
            )
        lanes.append(
            f'<div><span class="chip slot-{slot}">slot {slot}</span></div><div class=lane>{"".join(bars)}</div>'
        )
    marks = "".join(f'<span style="left:{25 * i}%">{clock(total * i / 4)}</span>' for i in range(5))
    return (
        f"<section><h2>The node's life</h2><div class=lanes>{''.join(lanes)}"
        f"<div></div><div class=axis>{marks}</div></div></section>"
    )


def _boots(boots: tuple[Boot, ...], logs: Mapping[str, str]) -> str:
    if not boots:
        return ""
    longest = max(1.0, max(boot.seconds for boot in boots))
    legend = "".join(f'<span><i style="background:var(--{p.value})"></i>{p.value}</span>' for p in Phase)
    return (
        f"<section><h2>Boots</h2><div class=legend>{legend}</div>"
        + "".join(_boot(boot, longest, logs.get(boot.serial_log, "")) for boot in boots)
        + "</section>"
    )


def _boot(boot: Boot, longest: float, log: str) -> str:
    spans = []
    for span in boot.spans:
        length = max(0.0, span.to_s - span.from_s)
        share = 100 * length / longest
        label = f"{length:.0f}" if share > 3.5 else ""
        title = f"{span.phase.value}: {length:.1f} s"
        spans.append(f'<i style="width:{share:.2f}%;background:var(--{span.phase.value})" title="{title}">{label}</i>')
    words = [f"entry <code>{escape(boot.entry)}</code>"] if boot.entry else []
    words += [f"given <code>{escape(fault)}</code>" for fault in boot.faults]
    words += [escape(boot.detail)] if boot.detail else []
    return (
        f"<div class=boot><div class=n>{boot.n}</div>"
        f"<div>{_slot_chip(boot.slot)} <b>{escape(boot.release or 'nothing known')}</b></div>"
        f"<div class=bar>{''.join(spans)}</div>"
        f'<div class=ends><span class="chip {_tone(boot.outcome)}">{escape(boot.outcome.value)}</span></div>'
        f'<div class=detail style="grid-column:2/5">{boot.seconds:.0f} s · {" · ".join([*words, ""])}'
        f'<a href="{escape(boot.serial_log)}">{escape(boot.serial_log)}</a></div>{_log(boot, log)}</div>'
    )


def _log(boot: Boot, text: str) -> str:
    if not text:
        return ""
    head = f"<summary>console of boot {boot.n}, {text.count(chr(10)) + 1} lines</summary>"
    return f"<details class=log>{head}<pre>{escape(text)}</pre></details>"


def _expectations(held: tuple[Held, ...], error: str | None) -> str:
    rows = []
    if error:
        rows.append(f'<tr><td><span class="chip bad">error</span><td colspan=3 class=wrap>{escape(error)}</tr>')
    for one in held:
        chip = '<span class="chip good">held</span>' if one.ok else '<span class="chip bad">failed</span>'
        found = "" if one.ok and one.found == one.expected else escape(one.found)
        rows.append(
            f"<tr><td>{chip}<td>{escape(one.what)}<td class=wrap>{escape(one.expected)}<td class=wrap>{found}</tr>"
        )
    head = "<tr><th><th>what<th>expected<th>found</tr>"
    return f"<section><h2>Expectations</h2><table>{head}{''.join(rows)}</table></section>"


def _events(events: tuple[Event, ...]) -> str:
    rows = []
    for event in events:
        quiet = "" if event.kind in _LOUD_EVENTS else " class=quiet"
        rows.append(
            f"<tr{quiet}><td class=at>{event.at_s:.1f} s<td>{event.boot or ''}<td>{escape(event.kind)}"
            f'<td class="mono wrap">{escape(event.text)}</tr>'
        )
    head = "<tr><th><th>boot<th>what<th></tr>"
    return f"<section><h2>Events</h2><table>{head}{''.join(rows)}</table></section>"


def _slot_chip(slot: str | None) -> str:
    return f'<span class="chip slot-{slot}">slot {slot}</span>' if slot else '<span class="chip">no slot</span>'


def _tone(outcome: Outcome) -> str:
    return "good" if outcome in _GOOD else ("calm" if outcome in _NEUTRAL else "bad")


def _sentence(boot: Boot) -> str:
    return f"boot {boot.n}: release {boot.release or '?'}, {boot.outcome.value}, {boot.seconds:.0f} s"


def clock(seconds: float) -> str:
    """Return seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
