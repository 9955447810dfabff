"""One run's order of events: what is updated from what, over which line, how often."""

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
    runs: int = 1

    @property
    def title(self) -> str:
        """Return what messages call it."""
        return f"pair {self.pair}, other slot {self.other_slot}, {self.line.name}"


@dataclass(frozen=True, slots=True)
class Resumption:
    """An update that is killed when half of its bytes have passed, then started again."""

    pair: str
    contenders: tuple[str, ...]
    line: Line

    @property
    def title(self) -> str:
        """Return what messages call it."""
        return f"pair {self.pair}, killed at half, {self.line.name}"


@dataclass(frozen=True, slots=True)
class Growth:
    """Updates to an image of a given size with the content of a pair's newer one."""

    pair: str
    mib: int
    contenders: tuple[str, ...]

    @property
    def title(self) -> str:
        """Return what messages call it."""
        return f"the image of {self.mib} MiB"


Step = Turn | Resumption | Growth


@dataclass(frozen=True, slots=True)
class Course:
    """All that one run does, in the order in which a run that is cut short misses least."""

    name: str
    pairs: tuple[str, ...]
    steps: tuple[Step, ...]


OURS = ("ours-delta", "ours-reuse", "ours-full")
LAVISH = "ours-delta-1g"
# `get` and `swupdate` serve what `zstd` made, so that it comes first.
EVERY = ("dd", "zstd", "get", "zstd-patch", "xdelta3", "hdiffpatch", "bsdiff", "casync", "casync-16k", "desync",
         "desync-16k", "zchunk", "swupdate", "rauc", "rauc-lz4", "rauc-zstd", "rauc-adaptive", *OURS,
         LAVISH)  # fmt: skip
QUICK = ("dd", "zstd", "get", "zstd-patch", "casync", *OURS, "hdiffpatch", "rauc-lz4", "rauc-adaptive", "swupdate",
         "desync", "zchunk")  # fmt: skip
# casync asks for one chunk after the other, a minute each time; desync does the same work in seconds.
_REUSING = ("desync", "rauc-adaptive", *OURS)
# Not `ours-reuse`: published without frames, its UKI travels as it is, which hides what the line does to the rest.
_OVER_THE_WIRE = ("zstd", "get", "zstd-patch", "casync", "desync", "zchunk", "swupdate", "ours-delta", "ours-full")
_RESUMED = ("zstd", "desync", "zchunk", *OURS)
_SIZED = ("dd", "ours-reuse", "ours-full")
# Larger ones take minutes each, and come last.
_SMALL_MIB = 1024


def quick() -> Course:
    """Return what takes less than three minutes: the small pair, once."""
    return Course(
        "quick",
        ("Q",),
        (
            Turn("Q", QUICK, ZEROS, LOCAL),
            Turn("Q", ("get", "casync", "ours-delta", "ours-full"), ZEROS, NEAR),
            Resumption("Q", ("desync", "ours-full"), FAST),
        ),
    )


def full(runs: int, sizes_mib: Sequence[int], pairs: Sequence[str] = ("S", "K")) -> Course:
    """Return everything; `runs` is how often each local update is repeated."""
    first = pairs[0]
    steps: list[Step] = [Turn(pair, EVERY, ZEROS, LOCAL) for pair in pairs]
    steps += [Turn(first, _OVER_THE_WIRE, ZEROS, NEAR), Resumption(first, _RESUMED, FAST)]
    steps += [Growth(first, mib, _SIZED) for mib in sizes_mib if mib <= _SMALL_MIB]
    steps += [Turn(first, _REUSING, other, LOCAL) for other in (OLDER, HALF)]
    steps += [Turn(pair, EVERY, ZEROS, LOCAL, runs - 1) for pair in pairs if runs > 1]
    steps += [Turn(first, _OVER_THE_WIRE, ZEROS, line) for line in (FAST, FAR)]
    steps += [Growth(first, mib, _SIZED) for mib in sizes_mib if mib > _SMALL_MIB]
    return Course("full", tuple(pairs), tuple(steps))
