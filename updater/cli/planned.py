"""A plan as the commands print it: the ways and what each takes, the preflight's sums, the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from updater.cli.output import Report
from updater.errors import ExitCode
from updater.plan import Plan, sizes
from updater.ways import Choice, Cost


def plan_report(made: Plan) -> Report:
    """Return a plan as data and as lines."""
    possible = all(item.holds for item in made.checks)
    lines = [
        f"release {made.release.version} into slot {made.slot}, beside release {made.from_version} in slot "
        f"{made.from_slot}: {made.target.why}",
        f"fetches at most {sizes(made.download_bytes_at_most)}; what the slot holds already is not fetched again",
        *_way_lines("image", made.image_ways, made.image_choice),
        *_way_lines("UKI", made.uki_ways, made.uki_choice),
    ]
    for item in made.checks:
        mark = "fits" if item.holds else "DOES NOT FIT"
        lines.append(f"{item.name}: {sizes(item.needed_bytes)} of {sizes(item.available_bytes)}: {mark}")
    lines += [f"{number}. {name}: {sentence}" for number, (name, sentence) in enumerate(made.steps, 1)]
    data: dict[str, Any] = {
        "format": 1,
        "release": made.release.version,
        "deliberate": made.target.deliberate,
        "why": made.target.why,
        "from": {"release": made.from_version, "slot": made.from_slot.value},
        "slot": made.slot.value,
        "possible": possible,
        "download_bytes_at_most": made.download_bytes_at_most,
        "image": _ways_data(made.image_ways, made.image_choice),
        "uki": _ways_data(made.uki_ways, made.uki_choice),
        "checks": [
            {
                "name": item.name,
                "needed_bytes": item.needed_bytes,
                "available_bytes": item.available_bytes,
                "holds": item.holds,
            }
            for item in made.checks
        ],
        "steps": [{"name": name, "does": sentence} for name, sentence in made.steps],
    }
    if made.brought is not None:
        data["brought"] = msgspec.to_builtins(made.brought)
    return Report(data, lines, ExitCode.DONE if possible else ExitCode.ENVIRONMENT)


def _way_lines(name: str, costs: Sequence[Cost], choice: Choice | None) -> list[str]:
    lines = []
    for cost in costs:
        mark = ">" if choice is not None and cost.way is choice.taken else " "
        if not cost.possible:
            told = f"is out: {cost.barred or cost.absent}"
        elif cost.at_least:
            told = f"fetches at least {sizes(cost.fetch_bytes)}: not worked out"
        else:
            told = (
                f"fetches {sizes(cost.fetch_bytes)} in {cost.requests} requests, writes at most "
                f"{sizes(cost.write_bytes)}, needs {sizes(cost.memory_bytes)} of memory"
            )
        lines.append(f"{mark} {name} by {cost.way.value:<6} {told}")
    if choice is not None:
        lines.append(f"  {name} by {choice.taken.value}: {choice.why}")
    return lines


def _ways_data(costs: Sequence[Cost], choice: Choice | None) -> dict[str, Any]:
    return {
        "ways": [_cost_data(cost) for cost in costs],
        "order": [way.value for way in choice.order] if choice else [],
        "why": choice.why if choice else None,
    }


def _cost_data(cost: Cost) -> dict[str, Any]:
    exact = cost.possible and not cost.at_least
    return {
        "way": cost.way.value,
        "possible": cost.possible,
        "worked_out": exact,
        "fetch_bytes": cost.fetch_bytes if cost.possible else None,
        "write_bytes": cost.write_bytes if exact else None,
        "requests": cost.requests if exact else None,
        "memory_bytes": cost.memory_bytes if exact else None,
        "barred": cost.barred or None,
        "absent": cost.absent or None,
    }
