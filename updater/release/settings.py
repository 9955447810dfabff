"""What a repository's keeper has set: lifetimes of metadata, deltas, and which releases each channel has offered."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from updater.errors import InvalidDocument
from updater.files import Directory
from updater.release.keys import ROLES
from updater.schema import Name, VersionText, decode_json, encode_json, limited

FILE = "acl-release.json"

# Why these: docs/trust.md, "How long metadata lives".
DEFAULT_LIFETIMES_S: dict[str, int] = {
    "root": 365 * 86_400,
    "targets": 365 * 86_400,
    "channels": 90 * 86_400,
    "releases": 365 * 86_400,
    "snapshot": 7 * 86_400,
    "timestamp": 3 * 86_400,
}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Lifetime = Annotated[int, limited("write seconds, at least 1 and below 10 years", ge=1, le=3650 * 86_400)]

Deltas = Annotated[int, limited("write a number from 0 to 32", ge=0, le=32)]


class Offered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The releases that a channel was promoted to, oldest first."""

    channel: Name
    releases: list[VersionText]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keeper's settings; nothing here is trusted by nodes.

    `deltas` says from how many of the releases before it a new one gets a delta.
    """

    lifetimes_s: dict[str, Lifetime]
    deltas: Deltas = 3
    offered: list[Offered] = []
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        if set(self.lifetimes_s) != set(ROLES):
            raise InvalidDocument(FILE, "lifetimes_s", "it must name each role once", f"name {', '.join(ROLES)}")

    def lifetime(self, role: str) -> timedelta:
        """Return how long new metadata of a role lives."""
        return timedelta(seconds=self.lifetimes_s[role])

    def history(self, channel: str) -> list[str]:
        """Return the releases that a channel has offered, oldest first."""
        return next((list(item.releases) for item in self.offered if item.channel == channel), [])

    def with_history(self, channel: str, releases: list[str]) -> Settings:
        """Return settings with another history of a channel."""
        others = [item for item in self.offered if item.channel != channel]
        offered = sorted([*others, Offered(channel, releases[-100:])], key=lambda item: item.channel)
        return msgspec.structs.replace(self, offered=offered)


def load(folder: Directory) -> Settings:
    """Return the settings, the defaults when there are none; raise InvalidDocument."""
    raw = folder.read(FILE)
    return Settings(dict(DEFAULT_LIFETIMES_S)) if raw is None else decode_json(raw, Settings, FILE)


def save(folder: Directory, settings: Settings) -> None:
    """Write the settings."""
    content = encode_json(settings)
    if folder.read(FILE) != content:
        folder.replace(FILE, content)


def parse_duration(text: str) -> int:
    """Return the seconds of a duration such as 90s, 12h or 7d; raise InvalidDocument."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidDocument("duration", "", f"{text!r} is not one", "write such as 90s, 30m, 12h or 7d")
    return int(match.group(1)) * _UNIT_S[match.group(2)]


def lifetimes(overrides: list[str]) -> dict[str, int]:
    """Return the default lifetimes with `ROLE=DURATION` overrides; raise InvalidDocument."""
    chosen = dict(DEFAULT_LIFETIMES_S)
    for text in overrides:
        role, _, duration = text.partition("=")
        if role not in ROLES:
            raise InvalidDocument("--expires", role, "no such role", f"name one of {', '.join(ROLES)}")
        chosen[role] = parse_duration(duration)
    return chosen
