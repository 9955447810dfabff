"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DETAIL_BYTES = 2048
OUTPUT_BYTES = 8192


class Status(StrEnum):
    """How a check ended: it held, it did not, it took too long, or it could not even be carried out."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one look at a check's object found, before it is named and timed.

    `findings` tells the failing parts of a check that looks at many things, such as units.
    """

    status: Status
    detail: str
    output: str = ""
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one run of one check; `started_s` is monotonic."""

    name: str
    status: Status
    detail: str
    output: str = ""
    findings: tuple[str, ...] = ()
    required: bool = True
    duration_s: float = 0.0
    started_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Tell whether the check held."""
        return self.status is Status.OK

    @property
    def failures(self) -> tuple[str, ...]:
        """Return what failed, by stable names: `check`, or `check/finding` for each of its findings."""
        if self.ok:
            return ()
        return tuple(f"{self.name}/{finding}" for finding in self.findings) or (self.name,)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "name": self.name,
            "status": self.status.value,
            "required": self.required,
            "detail": self.detail,
            "output": self.output,
            "findings": list(self.findings),
            "duration_s": round(self.duration_s, 3),
        }


def bounded(text: str, limit_bytes: int) -> str:
    """Return `text` with at most `limit_bytes` bytes of UTF-8: its end, which tells more than its beginning."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode("utf-8")
    mark = "[…] "
    return mark + raw[len(mark.encode()) - limit_bytes :].decode("utf-8", "ignore")


def failing(results: Iterable[Result]) -> tuple[Result, ...]:
    """Return the required results that are not ok."""
    return tuple(result for result in results if result.required and not result.ok)
