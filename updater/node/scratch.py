"""Empty folders for downloads that need not outlive their process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from updater.files import explained

_MEND = "free space on the state partition, mounted at /var"


class ScratchFolders:
    """Lend folders below one base, several at a time; what a killed process left there goes first."""

    def __init__(self, base: Path) -> None:
        """Own `base`: its holder has the updater's lock whenever it lends."""
        self._base = base
        self._is_swept = False

    @contextlib.contextmanager
    def lend(self) -> Iterator[Path]:
        """Lend an empty folder until the context ends; raises EnvironmentFailure where none can be made or filled."""
        with explained(f"cannot make {self._base}", _MEND):
            # Once: later folders stand beside those that are still lent.
            if not self._is_swept:
                shutil.rmtree(self._base, ignore_errors=True)
                self._is_swept = True
            self._base.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=self._base) as folder,
            explained(f"cannot write below {self._base}", _MEND),
        ):
            yield Path(folder)
