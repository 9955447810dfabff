"""What a proof found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from integration.crash.epochs import Kind
from integration.crash.replay import Point, Walk
from integration.crash.story import Told, failed

_KINDS = {
    Kind.END: "flush boundaries",
    Kind.UP_TO: "writes in order",
    Kind.WITHOUT: "single writes dropped",
    Kind.SEED: "seeded subsets with torn sectors",
    Kind.VARIABLES: "changes of the variable store",
    Kind.VARIABLES_ALONE: "changes of the store, the disk's writes lost",
}
_MOST_SHOWN = 20


def report(found: Walk, told: Sequence[Told], *, seconds: float) -> dict[str, object]:
    """Return the report's document."""
    return {
        "verdict": "fail" if found.failed or failed(told) else "pass",
        "points": found.points,
        "points_by_kind": {_KINDS[kind]: count for kind, count in found.kinds.items()},
        "distinct_states": len(found.distinct),
        "distinct_disks": len(found.disks),
        "changes_of_a_variables_state": found.variable_changes,
        "flush_epochs": found.epochs,
        "writes": found.writes,
        "store_writes": found.store_writes,
        "forced_writes": found.forced,
        "writes_by_region": dict(found.touched),
        "looked_at": found.looked_at,
        "walk_seconds": round(seconds),
        "loader_states": {loader: str(point) for loader, point in found.loaders.items()},
        "entries_after": {
            f"{', '.join(before) or 'none'} -> {', '.join(names) or 'none'}": count
            for (before, names), count in found.names.items()
        },
        "fsck_remarks": dict(found.remarks),
        "failures": [words(point) for point in found.failures],
        "stories": [
            {
                "point": one.point,
                "loader": one.loader,
                "passed": one.passed,
                "problem": one.problem,
                "boots": one.boots,
                "next_update_by": "the node" if one.live else "the host",
                "seconds": round(one.seconds),
            }
            for one in told
        ],
    }


def summary(found: Walk, told: Sequence[Told], *, seconds: float) -> str:
    """Return what a person reads at the end."""
    boots = sum(len(one.boots) for one in told)
    lines = [
        f"{found.writes} writes to the disk in {found.epochs} flush epochs, {found.store_writes} to the variable store",
        *(f"{count:7} {_KINDS[kind]}" for kind, count in found.kinds.most_common()),
        f"really looked at: {', '.join(f'{count} {what}' for what, count in found.looked_at.items())}",
        f"{found.variable_changes} changes of a variable's state",
        f"{len(found.loaders)} states that the loader can tell apart",
        "",
        f"{found.points} points: {len(found.disks)} distinct disks, {len(found.distinct)} with their variable stores, "
        f"judged in {seconds:.0f} s: {found.failed} failures",
        f"{len(told)} of them booted to the end of their story, {boots} boots: {len(failed(told))} failures",
    ]
    lines += [f"  FAILED {words(point)}" for point in found.failures[:_MOST_SHOWN]]
    lines += [f"  FAILED {one.point}: {one.problem}" for one in failed(told)]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def words(point: Point) -> str:
    """Return a point and its complaints in words."""
    return f"{point}: {'; '.join(point.judged.complaints)}"
