"""The files of health.d, merged: the operator's over the vendor's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from rollback.checks import AnyCheck, HealthFile, parse_health_file
from updater.errors import InvalidDocument

VENDOR = Path("/usr/lib/acl-updater/health.d")
OPERATOR = Path("/etc/acl-updater/health.d")

MAX_FILES = 100
MAX_FILE_BYTES = 1 << 18


class Origin(Enum):
    """Who wrote a file: the image's vendor, or the node's operator."""

    VENDOR = "vendor"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of health.d as found: its bytes, or why they could not be read."""

    origin: Origin
    path: str
    raw: bytes
    unreadable: str = ""

    @property
    def name(self) -> str:
        """Return the file's name, by which an operator's file takes the place of the vendor's."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Placed:
    """A check, and the file that it comes from."""

    check: AnyCheck
    origin: Origin
    path: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that does not count, and why."""

    origin: Origin
    path: str
    error: InvalidDocument

    @property
    def name(self) -> str:
        """Return the name under which the problem stands among the results."""
        return f"{self.origin.value}-file/{self.path.rpartition('/')[2]}"


@dataclass(frozen=True, slots=True)
class CheckSet:
    """The checks of a node, merged: what runs, what was switched off, what could not be read."""

    placed: tuple[Placed, ...]
    disabled: tuple[Placed, ...]
    masked: tuple[str, ...]
    problems: tuple[Problem, ...]

    def of(self, when: Literal["always", "trial"]) -> tuple[AnyCheck, ...]:
        """Return the checks that run on a trial boot, or always."""
        return tuple(item.check for item in self.placed if when == "trial" or item.check.when == "always")

    def operator_problem(self) -> InvalidDocument | None:
        """Return the first problem that the operator must mend."""
        return next((item.error for item in self.problems if item.origin is Origin.OPERATOR), None)


def merge(sources: Iterable[Source]) -> CheckSet:
    """Merge the files of both folders.

    An operator's file takes the place of the vendor's file of the same name. One that is not valid does not: the
    vendor's stays in force, so that neither a typo nor a file emptied by a power cut takes protection away. A check's
    name is unique; the file that comes later (vendor before operator, then by name) is the one at fault.
    """
    files, problems = _decoded(sources)
    while (clash := _clash(files)) is not None:
        problems.append(clash[1])
        del files[clash[0]]
    chosen = _chosen(files)
    masked = tuple(source.path for source in files if source not in chosen)
    every = [Placed(check, source.origin, source.path) for source in chosen for check in files[source].checks]
    off = {source.path for source, document in files.items() if not document.enabled}
    disabled = tuple(item for item in every if not item.check.enabled or item.path in off)
    placed = tuple(item for item in every if item not in disabled)
    if not any(source.origin is Origin.VENDOR and document.checks for source, document in files.items()):
        why = "the image brings no health checks, so nothing could prove it healthy"
        error = InvalidDocument(str(VENDOR), "", why, "build the image with the updater's default checks")
        problems.append(Problem(Origin.VENDOR, str(VENDOR), error))
    return CheckSet(placed, disabled, masked, tuple(problems))


def read_sources(vendor: Path = VENDOR, operator: Path = OPERATOR) -> list[Source]:
    """Read the YAML files of both folders; an absent folder has none, an unreadable file says so."""
    sources: list[Source] = []
    for origin, folder in ((Origin.VENDOR, vendor), (Origin.OPERATOR, operator)):
        try:
            paths = sorted(path for path in folder.iterdir() if path.name.endswith(".yaml"))
        except FileNotFoundError:
            continue
        except OSError as error:
            sources.append(Source(origin, str(folder), b"", error.strerror or str(error)))
            continue
        sources += [_read(origin, path) for path in paths[:MAX_FILES]]
        sources += [Source(origin, str(path), b"", f"more than {MAX_FILES} files") for path in paths[MAX_FILES:]]
    return sources


def load_checks(vendor: Path = VENDOR, operator: Path = OPERATOR) -> CheckSet:
    """Read and merge the checks of this node."""
    return merge(read_sources(vendor, operator))


def _read(origin: Origin, path: Path) -> Source:
    try:
        if not path.is_file():
            return Source(origin, str(path), b"", "not a regular file; `enabled: false` in a file masks the vendor's")
        with path.open("rb") as file:
            return Source(origin, str(path), file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        return Source(origin, str(path), b"", error.strerror or str(error))


def _decoded(sources: Iterable[Source]) -> tuple[dict[Source, HealthFile], list[Problem]]:
    files: dict[Source, HealthFile] = {}
    problems: list[Problem] = []
    for source in sources:
        try:
            if source.unreadable:
                raise InvalidDocument(source.path, "", source.unreadable, "mend the file or remove it")
            if len(source.raw) > MAX_FILE_BYTES:
                raise InvalidDocument(source.path, "", f"more than {MAX_FILE_BYTES} bytes", "split the file")
            files[source] = parse_health_file(source.raw, source.path)
        except InvalidDocument as error:
            problems.append(Problem(source.origin, source.path, error))
    return files, problems


def _chosen(files: dict[Source, HealthFile]) -> list[Source]:
    """Return the files that count, vendor's first, then by name."""
    by_name = {source.name: source for source in files if source.origin is Origin.VENDOR}
    by_name |= {source.name: source for source in files if source.origin is Origin.OPERATOR}
    return sorted(by_name.values(), key=lambda source: (source.origin is Origin.OPERATOR, source.name))


def _clash(files: dict[Source, HealthFile]) -> tuple[Source, Problem] | None:
    """Return the first file that defines a check of another file."""
    owners: dict[str, str] = {}
    for source in _chosen(files):
        for check in files[source].checks:
            if check.name in owners:
                why = f"the check {check.name!r} is already defined by {owners[check.name]}"
                error = InvalidDocument(source.path, "checks", why, "rename it, or name this file like that one")
                return source, Problem(source.origin, source.path, error)
        owners |= dict.fromkeys((check.name for check in files[source].checks), source.path)
    return None
