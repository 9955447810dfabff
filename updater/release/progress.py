"""Progress of making what a release travels in, as one bar after the other on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class Bars:
    """Takes progress and shows it; silent where nobody watches."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._bar: tqdm[Any] | None = None
        self._what = ""

    def __call__(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Show how far `what` is."""
        if not sys.stderr.isatty():
            return
        if self._bar is None or self._what != what:
            from tqdm import tqdm

            self._close()
            self._what = what
            self._bar = tqdm(total=total_bytes, unit="B", unit_scale=True, leave=False, desc=what)
        self._bar.update(done_bytes - self._bar.n)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
