"""systemd's unit files and drop-ins in a root tree, merged as PID 1 would merge them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from updater.release.root_tree import RootTree, read_text

UNIT_FOLDERS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_SPAN_UNITS = {
    "us": 1e-6,
    "usec": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}

Settings = Mapping[tuple[str, str], Sequence[str]]


class Units:
    """The units of one tree, its names read once."""

    def __init__(self, tree: RootTree) -> None:
        """Index the tree."""
        self._tree = tree
        self._names = tree.names()
        self._known = set(self._names)

    def is_masked(self, unit: str) -> bool:
        """Tell whether the unit is a link to /dev/null, or empty, in the first folder that has it."""
        for folder in UNIT_FOLDERS:
            name = f"{folder}/{unit}"
            if name in self._known:
                return self._tree.link(name) == "/dev/null" or self._tree.content(name) == b""
        return False

    def exists(self, unit: str) -> bool:
        """Tell whether there is a unit file of this name."""
        return any(f"{folder}/{unit}" in self._known for folder in UNIT_FOLDERS)

    def settings(self, unit: str) -> Settings:
        """Return the unit's settings with its drop-ins: (section, key) -> values; an empty value clears a list."""
        merged: dict[tuple[str, str], list[str]] = {}
        for name in [*self._first(unit), *self.drop_ins(unit)]:
            for key, value in parse_settings(read_text(self._tree, name) or ""):
                if value:
                    merged.setdefault(key, []).append(value)
                else:
                    merged.pop(key, None)
        return merged

    def drop_ins(self, unit: str) -> list[str]:
        """Return the unit's drop-ins in their order; one in /etc hides one of the same name in /usr."""
        return self.configuration(f"{unit}.d", UNIT_FOLDERS)

    def configuration(self, folder: str, parents: Sequence[str]) -> list[str]:
        """Return the `*.conf` files of a drop-in folder under `parents`, the strongest first, in their order."""
        found: dict[str, str] = {}
        for parent in reversed(parents):
            prefix = f"{parent}/{folder}/"
            for name in self._names:
                rest = name.removeprefix(prefix)
                if rest != name and rest.endswith(".conf") and "/" not in rest:
                    found[rest] = name
        return [found[rest] for rest in sorted(found)]

    def pulled_in(self, unit: str, by: str, *, strongly: bool = False) -> bool:
        """Tell whether `by` wants or requires the unit; `strongly` asks for a requirement."""
        kinds = ("requires",) if strongly else ("requires", "wants")
        if any(f"{folder}/{by}.{kind}/{unit}" in self._known for folder in UNIT_FOLDERS for kind in kinds):
            return True
        settings = self.settings(by)
        keys = ("Requires", "BindsTo") if strongly else ("Requires", "BindsTo", "Wants")
        return any(unit in value.split() for key in keys for value in settings.get(("Unit", key), ()))

    def _first(self, unit: str) -> list[str]:
        return next(([f"{folder}/{unit}"] for folder in UNIT_FOLDERS if f"{folder}/{unit}" in self._known), [])


def parse_settings(text: str) -> list[tuple[tuple[str, str], str]]:
    """Return the assignments of a unit or configuration file in order: ((section, key), value)."""
    section = ""
    found: list[tuple[tuple[str, str], str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line and line[0] not in "#;" and "=" in line:
            key, _, value = line.partition("=")
            found.append(((section, key.strip()), value.strip()))
    return found


def time_span_s(text: str) -> float:
    """Return a systemd time span such as `1min 30s` in seconds; zero for `infinity`, `0` and what is no span.

    In the settings that are read here zero means "never", as `infinity` does.
    """
    total = 0.0
    rest = text.strip().lower()
    while rest:
        found = re.match(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", rest)
        if found is None or found[2] not in _SPAN_UNITS:
            return 0.0
        total += float(found[1]) * _SPAN_UNITS[found[2]]
        rest = rest[found.end() :]
    return total
