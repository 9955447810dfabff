"""Folders of evidence on the state partition, bounded in bytes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from updater.errors import EnvironmentFailure
from updater.files import Directory

log = logging.getLogger(__name__)

BASE = "evidence"
FILE_BYTES = 1 << 19

_FOLDER = re.compile(r"[0-9A-Za-z.-]{1,64}-(\d{1,9})")
_RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{0,63}")


class EvidenceStore:
    """Keeps `evidence/<release>-<n>/`; `n` grows over all releases, so that it orders them without a clock."""

    def __init__(self, state: Directory, limit_bytes: int) -> None:
        """Work below a state folder, using at most `limit_bytes` there."""
        self._state = state
        self._limit_bytes = limit_bytes

    def save(self, release: str, files: Mapping[str, bytes], folder: str | None = None) -> tuple[str, ...]:
        """Keep files in a new folder, or in an earlier one of the same trial; return their paths.

        Of each file the last 512 KiB are kept; the oldest folders make room. Nothing is returned when nothing could be
        kept: evidence is worth much, but a rollback never waits for it.
        """
        try:
            return self._save(release, files, folder)
        except (EnvironmentFailure, OSError, ValueError) as error:
            log.error("the evidence on release %s could not be kept: %s", release, error)
            return ()

    def _save(self, release: str, files: Mapping[str, bytes], folder: str | None) -> tuple[str, ...]:
        if not _RELEASE.fullmatch(release):
            raise ValueError(f"{release!r} is no release version")
        known = self._folders()
        if folder is None or folder.removeprefix(f"{BASE}/") not in known:
            number = max((int(match[1]) for name in known if (match := _FOLDER.fullmatch(name))), default=0) + 1
            folder = f"{BASE}/{release}-{number}"
        file_bytes = min(FILE_BYTES, self._limit_bytes // 4)
        kept = {name: content[-file_bytes:] for name, content in files.items() if content}
        # The state partition belongs to the node's work first: a quarter of its free space at most.
        allowed = min(self._limit_bytes, self._state.free_bytes() // 4 + self._bytes_below(known))
        while kept and sum(map(len, kept.values())) > allowed:
            del kept[max(kept, key=lambda name: len(kept[name]))]
        self._make_room(folder, sum(map(len, kept.values())), allowed)
        for name, content in kept.items():
            self._state.write_new(f"{folder}/{name}", [content])
        return tuple(f"{folder}/{name}" for name in kept)

    def _make_room(self, folder: str, wanted: int, allowed: int) -> None:
        known = self._folders()
        used = self._bytes_below(known)
        for name in known:
            if used + wanted <= allowed:
                return
            if f"{BASE}/{name}" != folder:
                used -= self._bytes_in(name)
                self._state.remove(f"{BASE}/{name}")

    def _folders(self) -> list[str]:
        """Return the names of the folders, oldest first."""
        names = [name for name in self._state.names(BASE) if _FOLDER.fullmatch(name)]
        return sorted(names, key=lambda name: int(name.rpartition("-")[2]))

    def _bytes_below(self, folders: list[str]) -> int:
        return sum(self._bytes_in(name) for name in folders)

    def _bytes_in(self, folder: str) -> int:
        base = f"{BASE}/{folder}"
        return sum(self._state.size(f"{base}/{name}") or 0 for name in self._state.names(base))
