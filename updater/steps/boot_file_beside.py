"""A UKI that is made from its delta while the fallback is proven and the slot is filled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from updater.errors import UpdaterError
from updater.records import UKI_NAME, FileRecord
from updater.steps.beside import Beside
from updater.steps.ways import WorkedOut
from updater.verity import Progress

log = logging.getLogger(__name__)


class MadeBeside:
    """The UKI on its way into a file of scratch: nothing of it reaches the ESP before its turn."""

    def __init__(self, work: Beside[None], path: Path) -> None:
        """Take the work and the file that it writes."""
        self._work = work
        self._path = path

    def path(self, file: FileRecord, progress: Progress) -> Path | None:
        """Wait for the file and return where it lies, proven; None where it must be fetched in its turn.

        Whatever failed is tried once more then, and barred or raised where everybody looks for it.
        """
        if file.name != UKI_NAME:
            return None
        try:
            self._work.result(progress)
        except (UpdaterError, OSError) as failure:
            log.warning("%s could not be made beside the image, and is fetched after it: %s", file.name, failure)
            return None
        return self._path


@contextmanager
def made_beside(ways: WorkedOut) -> Iterator[MadeBeside | None]:
    """Begin to make the UKI where that is worth a thread and the memory allows; packing takes longer than all else."""
    if not ways.uki_goes_beside:
        yield None
        return
    file = next(file for file in ways.release.files if file.name == UKI_NAME)
    with ways.session.node.scratch_folder() as scratch:
        path = scratch / file.name
        with Beside(lambda progress: ways.make_uki(file, path, progress), "make-uki") as work:
            yield MadeBeside(work, path)
