"""The choice among the ways in which an image can come: what each costs, what bars it, which is taken and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from updater.errors import Refused


class Way(Enum):
    """How an image reaches a slot, from the one that is usually cheapest on."""

    DELTA = "delta"
    """Blocks of the running release, and small operations that make the new ones from them."""
    REUSE = "reuse"
    """Blocks that the slots hold already, and the others from packs."""
    FULL = "full"
    """Compressed frames."""
    PLAIN = "plain"
    """The image as it is."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way would take for this slot as it is now; lengths are bytes.

    `fetch_bytes` includes indexes; with `at_least` the true number was not worked out and is no smaller. `write_bytes`
    is an upper bound; `memory_bytes` is what the way needs beside the program itself. `barred` and `absent` say why it
    is out of the question.
    """

    way: Way
    fetch_bytes: int = 0
    write_bytes: int = 0
    requests: int = 0
    memory_bytes: int = 0
    at_least: bool = False
    barred: str = ""
    absent: str = ""

    @property
    def possible(self) -> bool:
        """Tell whether the way may be taken at all."""
        return not self.barred and not self.absent


@dataclass(frozen=True, slots=True)
class Choice:
    """The ways to try, the first one first, and why it is that one."""

    order: tuple[Way, ...]
    why: str

    @property
    def taken(self) -> Way:
        """Return the way that is tried first."""
        return self.order[0]


def choose_way(
    costs: Sequence[Cost],
    *,
    most_bytes: int | None = None,
    beside_bytes: int = 0,
    most_memory_bytes: int | None = None,
) -> Choice:
    """Return the possible ways in order of the bytes they fetch, those beyond the caps left out.

    `most_bytes` is policy's `max_download_bytes`, of which other files take `beside_bytes`; `most_memory_bytes` is what
    this machine can spare. Raises Refused (`download-cap` or `no-way`) with the sums when nothing is left.
    """
    possible = [cost for cost in costs if cost.possible]
    fitting = [cost for cost in possible if most_memory_bytes is None or cost.memory_bytes <= most_memory_bytes]
    left = None if most_bytes is None else most_bytes - beside_bytes
    allowed = [cost for cost in fitting if left is None or cost.fetch_bytes <= left]
    if not allowed:
        if fitting:
            least = min(fitting, key=_rank)
            raise Refused(
                f"the {least.way.value} way would fetch {least.fetch_bytes} bytes, the least of all, with "
                f"{beside_bytes} of other files, and policy allows {most_bytes}",
                mend="raise `network: max_download_bytes`, or publish a delta from the running release",
                reason="download-cap",
            )
        raise Refused(
            "no way is left to fetch this release: "
            + "; ".join(f"{cost.way.value}: {_why_not(cost, most_memory_bytes)}" for cost in costs),
            mend="publish the release anew, or free memory on this node",
            reason="no-way",
        )
    allowed.sort(key=_rank)
    first, others = allowed[0], [cost for cost in costs if cost is not allowed[0]]
    reasons = [_compared(first, cost, allowed, left, most_memory_bytes) for cost in others]
    if not any(cost.possible for cost in others):
        reasons.insert(0, "it is the only one")
    return Choice(tuple(cost.way for cost in allowed), "; ".join(reasons))


def worth_working_out(costs: Iterable[Cost], least_bytes: int) -> bool:
    """Tell whether a way that fetches at least `least_bytes` for its indexes alone could be the cheapest."""
    return all(cost.fetch_bytes > least_bytes for cost in costs if cost.possible and not cost.at_least)


def _rank(cost: Cost) -> tuple[int, int]:
    return cost.fetch_bytes, list(Way).index(cost.way)


def _why_not(cost: Cost, most_memory_bytes: int | None) -> str:
    if cost.barred or cost.absent:
        return cost.barred or cost.absent
    return f"it needs {cost.memory_bytes} bytes of memory, and {most_memory_bytes} can be spared"


def _compared(
    first: Cost, other: Cost, allowed: Sequence[Cost], left_bytes: int | None, most_memory_bytes: int | None
) -> str:
    name = other.way.value
    if other in allowed:
        least = "at least " if other.at_least else ""
        return f"{name} would fetch {least}{other.fetch_bytes} bytes, not {first.fetch_bytes}"
    if other.possible and left_bytes is not None and other.fetch_bytes > left_bytes:
        return f"{name} would fetch {other.fetch_bytes} bytes, more than policy allows"
    return f"{name}: {_why_not(other, most_memory_bytes)}"
