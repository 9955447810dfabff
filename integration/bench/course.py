"""One run's order of events: what is made, what is updated from what, over which line, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from integration.bench.link import LOCAL, Line

ZEROS, OLDER, HALF = "zeros", "N-1", "half of N"
FAST = Line(0, 100)
NEAR, FAR = Line(20, 100), Line(100, 100)


@dataclass(frozen=True, slots=True)
class Turn:
    """One kind of update to measure: which contenders, with what in the other slot, over which line, how often."""

    pair: str
    contenders: tuple[str, ...]
    other_slot: str
    line: Line
    runs: int


@dataclass(frozen=True, slots=True)
class Course:
    """All that one run does."""

    name: str
    pairs: tuple[str, ...]
    turns: tuple[Turn, ...]
    resumes: tuple[Turn, ...]
    sizes_mib: tuple[int, ...]


OURS = ("ours-delta", "ours-reuse", "ours-full")
# `get` and `swupdate` serve what `zstd` made, so that it comes first.
EVERY = ("dd", "zstd", "get", "zstd-patch", "xdelta3", "hdiffpatch", "bsdiff", "casync", "casync-16k", "zchunk",
         "swupdate", "rauc", "rauc-lz4", "rauc-zstd", "rauc-adaptive", *OURS)  # fmt: skip
QUICK = ("dd", "zstd", "get", "zstd-patch", "xdelta3", "hdiffpatch", "casync", "zchunk", "swupdate", "rauc-lz4",
         "rauc-adaptive", *OURS)  # fmt: skip
SIZED = ("dd", "ours-full")
_REUSING = ("casync", "rauc-adaptive", *OURS)
_OVER_THE_WIRE = ("zstd", "get", "zstd-patch", "casync", "zchunk", "swupdate", *OURS)
_RESUMED = ("zstd", "casync", "zchunk", "swupdate", *OURS)


def quick() -> Course:
    """Return what takes less than three minutes: the small pair, once."""
    return Course(
        "quick",
        ("Q",),
        (
            Turn("Q", QUICK, ZEROS, LOCAL, 1),
            Turn("Q", ("get", "casync", *OURS), ZEROS, NEAR, 1),
        ),
        (Turn("Q", ("casync", *OURS), ZEROS, FAST, 1),),
        (),
    )


def full(runs: int, sizes_mib: Sequence[int], pairs: Sequence[str] = ("S", "K")) -> Course:
    """Return everything; `runs` is how often each local update is repeated."""
    turns: list[Turn] = []
    for pair in pairs:
        turns.append(Turn(pair, EVERY, ZEROS, LOCAL, runs))
    first = pairs[0]
    for other in (OLDER, HALF):
        turns.append(Turn(first, _REUSING, other, LOCAL, 1))
    for line in (FAST, NEAR, FAR):
        turns.append(Turn(first, _OVER_THE_WIRE, ZEROS, line, 1))
    return Course("full", tuple(pairs), tuple(turns), (Turn(first, _RESUMED, ZEROS, FAST, 1),), tuple(sizes_mib))
