"""The project's targets for the data path, computed from one run."""

from __future__ import annotations

from collections.abc import Iterable

from integration.bench.course import NEAR
from integration.bench.link import LOCAL, Line
from integration.bench.results import STEP, Making, Sample
from integration.bench.tables import Medians, Target

_MIB = 1 << 20
_BYTES_A_BLOCK = 24


def targets(samples: Iterable[Sample], makings: Iterable[Making], pair_s: str, pair_k: str) -> list[Target]:
    """Return all targets; in a quick run the small pair stands for both."""
    found = Medians(samples)

    def fetched(name: str, pair: str) -> float | None:
        return found.of(name, pair, lambda s: s.fetched_bytes)

    def root(name: str, pair: str) -> float | None:
        return found.of(name, pair, lambda s: s.fetched_bytes - s.parts.get("uki", 0))

    def uki(name: str) -> tuple[float | None, float | None]:
        fetched = found.of(name, pair_k, lambda s: s.parts.get("uki", 0))
        return fetched, found.of(name, pair_k, lambda s: s.details.get("boot_bytes", 0.0))

    def wall(name: str, line: Line = LOCAL) -> float | None:
        return found.of(name, pair_s, lambda s: s.wall_s, line=line)

    def filling(name: str) -> float | None:
        """Fetching, proving, writing and reading back the slot, which is what the peers do and more."""
        return found.of(name, pair_s, lambda s: s.details.get(f"{STEP}fill-slot", 0.0)) or None

    result = [
        Target(
            f"{pair_s}, known pair, all but the UKI",
            "zstd -19 --patch-from",
            0.5,
            root("ours-delta", pair_s),
            fetched("zstd-patch", pair_s),
        ),
        Target(
            f"{pair_k}, known pair, all but the UKI",
            "HDiffPatch",
            1.3,
            root("ours-delta", pair_k),
            fetched("hdiffpatch", pair_k),
        ),
        Target(f"{pair_k}, UKI", "kernel and initrd as shipped", 0.4, *uki("ours-delta")),
        Target(f"{pair_k}, UKI, with 1 GiB allowed", "kernel and initrd as shipped", 0.4, *uki("ours-delta-1g")),
        Target(
            f"{pair_k}, any to any, all but the UKI",
            "casync, 64 KiB chunks",
            0.67,
            root("ours-reuse", pair_k),
            fetched("casync", pair_k),
        ),
        Target(f"{pair_s}, full, local, whole command", "dd direct", 3.5, wall("ours-full"), wall("dd")),
        Target(f"{pair_s}, full, local, filling the slot", "dd direct", 3.5, filling("ours-full"), wall("dd")),
        Target(f"{pair_s}, delta, local, whole command", "dd direct", 3.5, wall("ours-delta"), wall("dd")),
        Target(f"{pair_s}, delta, local, filling the slot", "dd direct", 3.5, filling("ours-delta"), wall("dd")),
        Target(f"{pair_s}, full, {NEAR.name}", "one plain GET", 1.15, wall("ours-full", NEAR), wall("get", NEAR)),
    ]
    for way, most_mib in (("ours-full", 64), ("ours-delta", 128)):
        for pair in dict.fromkeys((pair_s, pair_k)):
            measured = found.of(way, pair, lambda s: s.rss_bytes)
            blocks = found.of(way, pair, lambda s: s.details.get("blocks", 0.0))
            allowed = None if blocks is None else most_mib * _MIB + _BYTES_A_BLOCK * blocks
            result.append(
                Target(f"{pair}, peak RSS, {way}", f"{most_mib} MiB and 24 B a block", 1.0, measured, allowed)
            )
    delta = next((m for m in makings if (m.contender, m.pair) == ("ours-delta", pair_k)), None)
    result.append(Target(f"{pair_k}, publishing with a delta", "60 s", 1.0, delta.wall_s if delta else None, 60.0))
    result.append(
        Target(f"{pair_k}, publishing with a delta, peak RSS", "2 GB", 1.0, delta.rss_bytes if delta else None, 2e9)
    )
    return result
