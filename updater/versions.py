"""Release versions in the order in which releases follow one another."""

from __future__ import annotations

import re
from functools import total_ordering

from updater.errors import InvalidDocument

_MAX_LENGTH = 64
PATTERN = r"^[0-9]{1,10}(\.[0-9]{1,10}){0,4}(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?$(?!\n)"
_VERSION = re.compile(PATTERN)


@total_ordering
class Version:
    """A release's version, such as `202606.29.0` or `4.0.20261101-rc.1`.

    Numbers compare as numbers, missing ones as zero; a suffix after `-` marks a pre-release, which sorts below the
    release itself, its parts after semver's rules (numbers below words).
    """

    __slots__ = ("_key", "text")

    def __init__(self, text: str) -> None:
        """Parse `text`; raise InvalidDocument when it is not a version."""
        if len(text) > _MAX_LENGTH or not _VERSION.fullmatch(text):
            raise InvalidDocument(
                "version",
                "",
                f"{text[:80]!r} is not a release version",
                "use numbers parted by dots, at most five, such as 202606.29.0, and -suffix for a pre-release",
            )
        self.text = text
        numbers, _, suffix = text.partition("-")
        release = [int(part) for part in numbers.split(".")]
        while len(release) > 1 and release[-1] == 0:
            release.pop()
        parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in suffix.split(".") if part)
        self._key: tuple[tuple[int, ...], bool, tuple[tuple[int, int, str], ...]] = (
            tuple(release),
            not suffix,
            parts,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key == other._key

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Version({self.text!r})"


def is_version(text: str) -> bool:
    """Tell whether `text` is a release version."""
    return len(text) <= _MAX_LENGTH and _VERSION.fullmatch(text) is not None
