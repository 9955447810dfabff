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
    """One update by each of some contenders, with this in the other slot, over this line."""

    pair: str
    contenders: tuple[str, ...]
    other_slot: str
    line: Line

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
EVERY = ("dd", "zstd", "get", "zstd-patch", "hdiffpatch", "casync", "desync", "zchunk", "swupdate", "rauc-lz4",
         "rauc-zstd", "rauc-adaptive", *OURS, LAVISH)  # fmt: skip
# Other settings and tools, for which one sample says enough: none is the best of its kind.
ONCE = ("xdelta3", "casync-16k", "desync-16k", "rauc")
SMALL = "Q"
# bsdiff needs too much memory for any but the small pair; the others are there to compare it with.
PATCHES = ("dd", "zstd-patch", "xdelta3", "hdiffpatch", "bsdiff", "ours-delta")
# What no target of bytes is measured against is left out: zstd -19 alone takes a fifth of the time.
QUICK = ("dd", "zstd-patch", "casync", "rauc-lz4", "rauc-adaptive", *OURS)
_REUSING = ("desync", "rauc-adaptive", *OURS)
# Not `ours-reuse`: published without frames, its UKI travels as it is, which hides what the line does to the rest.
_OVER_THE_WIRE = ("zstd", "get", "zstd-patch", "desync", "zchunk", "swupdate", "ours-delta", "ours-full")
# casync asks for one chunk after the other: two minutes at 20 ms, many at 100 ms.
_SLOW_ON_THE_WIRE = ("casync",)
_AGAIN_ON_THE_WIRE = ("get", "zstd", "ours-delta", "ours-full")
_RESUMED = ("zstd", "desync", "zchunk", *OURS)
_SIZED = ("dd", "ours-reuse", "ours-full")
# Larger ones take minutes each.
_SMALL_MIB = 1024


def quick() -> Course:
    """Return what takes less than three minutes: the small pair, once."""
    return Course(
        "quick",
        (SMALL,),
        (
            Turn(SMALL, QUICK, ZEROS, LOCAL),
            Resumption(SMALL, ("ours-full",), FAST),
        ),
    )


def full(runs: int, sizes_mib: Sequence[int], pairs: Sequence[str] = ("S", "K", SMALL)) -> Course:
    """Return everything; `runs` is how often an update is repeated where one takes seconds.

    Every table gets its first sample before any gets its second. The small pair beside others is there for patches.
    """
    small = [SMALL] if SMALL in pairs[1:] else []
    pairs = [pair for pair in pairs if pair not in small]
    first = pairs[0]
    steps: list[Step] = [Turn(pair, EVERY, ZEROS, LOCAL) for pair in pairs]
    steps += [Turn(first, _OVER_THE_WIRE, ZEROS, NEAR), Resumption(first, _RESUMED, FAST)]
    steps += [Growth(first, mib, _SIZED) for mib in sizes_mib if mib <= _SMALL_MIB]
    steps += [Turn(first, _REUSING, other, LOCAL) for other in (OLDER, HALF)]
    steps += [Turn(first, _OVER_THE_WIRE, ZEROS, line) for line in (FAST, FAR)]
    steps += [Growth(first, mib, _SIZED) for mib in sizes_mib if mib > _SMALL_MIB]
    steps += [Turn(pair, PATCHES, ZEROS, LOCAL) for pair in small]
    steps += [Turn(first, _SLOW_ON_THE_WIRE, ZEROS, line) for line in (FAST, NEAR)]
    for _ in range(runs - 1):
        steps += [Turn(pair, EVERY, ZEROS, LOCAL) for pair in pairs]
        steps += [Turn(first, _AGAIN_ON_THE_WIRE, ZEROS, NEAR)]
    steps += [Turn(pair, ONCE, ZEROS, LOCAL) for pair in pairs]
    steps += [Turn(first, _SLOW_ON_THE_WIRE, ZEROS, FAR)]
    return Course("full", (*pairs, *small), tuple(steps))
