"""The time from a release's failure to a healthy old release, per class of failure, by the reports of runs.

What counts: the first sign of the failure that was seen from outside, in the first boot that failed; a boot that gave
none counts from its power-on. The end is the moment at which the old release reached `multi-user.target`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from integration.lab.timeline import Boot, Outcome, Phase

Document = Mapping[str, Any]

# What a boot of the update comes to when the release fails. A power cut is no failure of the release.
_FAILED = {
    outcome.value
    for outcome in (
        Outcome.ROLLED_BACK,
        Outcome.PANIC,
        Outcome.WATCHDOG,
        Outcome.INITRD_FAILED,
        Outcome.LOADER_ERROR,
        Outcome.REBOOTED,
    )
}
# Events that show a failure, in the words of `boots.Observer`.
_POWER_ON = "power-on"
_SIGNS = ("fault", "loader", "verity", "emergency", "panic", "lockup", "watchdog")


@dataclass(frozen=True, slots=True)
class Recovery:
    """One fall back: all in seconds since the machine's first power-on.

    `began_s` is the power-on of the first boot that failed, `failed_s` the failure's first sign, `sign` its kind
    (`power-on` where there was none), `healthy_s` the moment at which the old release was up. `ended_by` says what each
    of the boots in between came to.
    """

    name: str
    began_s: float
    failed_s: float
    sign: str
    healthy_s: float
    ended_by: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Return the time from the failure to the healthy old release."""
        return self.healthy_s - self.failed_s

    @property
    def away_s(self) -> float:
        """Return the time from the update's first power-on to the healthy old release."""
        return self.healthy_s - self.began_s


@dataclass(frozen=True, slots=True)
class Row:
    """The fall backs of one class of failures, the quickest first."""

    kind: str
    recoveries: tuple[Recovery, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Return the names of the faults, each once."""
        return tuple(sorted({one.name for one in self.recoveries}))

    @property
    def ended_by(self) -> tuple[str, ...]:
        """Return what ended the failing boots, each once, the most frequent first."""
        every = [word for one in self.recoveries for word in one.ended_by]
        return tuple(sorted(set(every), key=lambda word: (-every.count(word), word)))

    def spread(self, seconds: Callable[[Recovery], float]) -> tuple[float, float, float]:
        """Return least, median and most of what `seconds` takes from each fall back."""
        values = [seconds(one) for one in self.recoveries]
        return min(values), statistics.median(values), max(values)


def recovery_of(document: Document) -> Recovery | None:
    """Return the first fall back that a report shows; None when it shows none, or the run did not pass."""
    boots: Sequence[Document] = document.get("boots", [])
    if document.get("error") or document.get("verdict") != "pass" or not boots:
        return None
    failed = next((at for at, boot in enumerate(boots) if boot.get("outcome") in _FAILED), None)
    if failed is None:
        # The loader may pass over what it cannot start, within the boot of the old release.
        return _recovery(document, (), boots[0]) if _was_blamed(document) else None
    after = next((at for at in range(failed, len(boots)) if boots[at].get("outcome") not in _FAILED), None)
    return None if after is None else _recovery(document, boots[failed:after], boots[after])


def _recovery(document: Document, chain: Sequence[Document], after: Document) -> Recovery | None:
    """Return the way from the boots that failed to the one after them, if that is a healthy one of another release."""
    ups = [span for span in after.get("phases", []) if span.get("phase") == Phase.UP.value]
    if not ups or after.get("outcome") != Outcome.HEALTHY.value:
        return None
    if after.get("release") in {boot.get("release") for boot in chain}:
        return None
    first = chain[0] if chain else after
    failed_s, sign = _first_sign(document, first) if chain else (float(first["started_s"]), _POWER_ON)
    return Recovery(
        name=str(document["name"]),
        began_s=float(first["started_s"]),
        failed_s=failed_s,
        sign=sign,
        healthy_s=float(after["started_s"]) + float(ups[0]["from_s"]),
        ended_by=tuple(str(boot["outcome"]) for boot in chain),
    )


def downtime_s(boots: Sequence[Boot]) -> float | None:
    """Return the seconds from the power-on of the first boot that did not end well to the last one's being up.

    Without a bad one it is the last boot's own way up; None when the last one is not up.
    """
    good = (Outcome.HEALTHY, Outcome.COMMITTED)
    up = [span for boot in boots[-1:] for span in boot.spans if span.phase in (Phase.UP, Phase.TRIAL)]
    if not up:
        return None
    first = next((boot for boot in boots if boot.outcome not in good), boots[-1])
    return boots[-1].started_s + up[0].from_s - first.started_s


def table(documents: Iterable[Document], kind_of: Callable[[str], str], kinds: Sequence[str]) -> list[Row]:
    """Return a row for each class that has fall backs, in the order of `kinds`; `kind_of` names a run's class."""
    found: dict[str, list[Recovery]] = {}
    for document in documents:
        recovery = recovery_of(document)
        if recovery is not None:
            found.setdefault(kind_of(recovery.name), []).append(recovery)
    order = [*kinds, *sorted(set(found) - set(kinds))]
    return [Row(kind, tuple(sorted(found[kind], key=lambda one: one.seconds))) for kind in order if kind in found]


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, seconds as least / median / most."""
    lines = [
        "| class | faults | failing boots | ended by | failure to healthy, s | power-on to healthy, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        boots = sorted({len(one.ended_by) for one in row.recoveries})
        many = f"{boots[0]}" if len(boots) == 1 else f"{boots[0]} to {boots[-1]}"
        ended_by = ", ".join(row.ended_by) or "the loader"
        spreads = (_spread(row.spread(lambda one: one.seconds)), _spread(row.spread(lambda one: one.away_s)))
        count = f"{len(row.faults)}" + (
            f" ({len(row.recoveries)} runs)" if len(row.recoveries) > len(row.faults) else ""
        )
        lines.append(f"| {row.kind} | {count} | {many} | {ended_by} | {spreads[0]} | {spreads[1]} |")
    return "\n".join(lines) + "\n"


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain values, each fall back with its moments."""
    return [
        {
            "class": row.kind,
            "faults": list(row.faults),
            "ended_by": list(row.ended_by),
            "failure_to_healthy_s": [round(value, 1) for value in row.spread(lambda one: one.seconds)],
            "power_on_to_healthy_s": [round(value, 1) for value in row.spread(lambda one: one.away_s)],
            "runs": [
                {
                    "name": one.name,
                    "boots": len(one.ended_by),
                    "ended_by": list(one.ended_by),
                    "failed_s": round(one.failed_s, 1),
                    "sign": one.sign,
                    "healthy_s": round(one.healthy_s, 1),
                    "seconds": round(one.seconds, 1),
                }
                for one in row.recoveries
            ],
        }
        for row in rows
    ]


def _first_sign(document: Document, boot: Document) -> tuple[float, str]:
    events = [e for e in document.get("events", []) if e.get("boot") == boot.get("n") and e.get("kind") in _SIGNS]
    first = min(events, key=lambda event: float(event["at_s"]), default=None)
    if first is None:
        return float(boot["started_s"]), _POWER_ON
    return float(first["at_s"]), str(first["kind"])


def _was_blamed(document: Document) -> bool:
    """Tell whether the run saw a release quarantined or put off: it was tried, if only by the loader."""
    expected = [held for held in document.get("expectations", []) if held.get("what") in ("quarantine", "put off")]
    return any(held.get("found") not in (None, "", "none") for held in expected)


def _spread(values: tuple[float, float, float]) -> str:
    least, middle, most = (f"{value:.0f}" for value in values)
    return least if least == most else f"{least} / {middle} / {most}"
