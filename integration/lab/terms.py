"""The terms in which steps and expectations are written."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from updater.errors import ExitCode, InvalidDocument, UpdaterError
from updater.schema import limited

DEFAULT_LAYOUT = "dps-root"

# Releases are named by their place in the lab's repository: 1 is the factory release.
Release = Annotated[int, limited("name a release of the lab's repository by its number, from 1 to 99", ge=1, le=99)]
Seconds = Annotated[float, limited("write seconds, from 1 to 3600", ge=1, le=3600)]
SlotName = Literal["a", "b"]
Text = Annotated[str, limited("write 1 to 2000 characters", min_length=1, max_length=2000)]
EntryPattern = Annotated[
    str,
    limited("name an entry file such as a.conf or b+0-*.conf", pattern=r"^[a-z0-9*?+.-]{1,64}$(?!\n)"),
]


class Misuse(UpdaterError):
    """The command line names what there is not: exit code 2, so that nobody takes it for a scenario that failed."""

    exit_code = ExitCode.USAGE


class Wrong(InvalidDocument, ValueError):
    """What a scenario says cannot be; a ValueError too, because msgspec adds the place to those alone."""


def exactly_one(document: msgspec.Struct, keys: tuple[str, ...], what: str) -> None:
    """Raise Wrong unless exactly one of `keys` is given."""
    given = [key for key in keys if getattr(document, key) is not None]
    if len(given) != 1:
        why = f"{what} has {len(given)} of its keys ({', '.join(given) or 'none'})"
        raise Wrong("scenario", "", why, f"give exactly one of: {', '.join(keys)}")


def check_pattern(key: str, text: str | None) -> None:
    """Raise Wrong for a text that is no regular expression."""
    if text is None:
        return
    try:
        re.compile(text)
    except re.error as error:
        raise Wrong("scenario", key, f"not a regular expression: {error}", "mend the pattern") from error


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that is waited for; exactly one key.

    `committed`: this release's boot entry was seen to become good. `settled`: this release runs, its agent answers
    and its updater is idle. `running`: this release reached its userspace. `powered_off`: the machine has no power.
    `boots`: so many boots have ended. `serial`: the running boot's console shows the pattern. `served_bytes`: the
    server sent so many bytes of files since it was last told anything. `entry`: the loader would list an entry of this
    name (a name alone, whose content has not reached the disk yet, is none). `standing`: one of these releases runs,
    its agent answers, and its updater waits for no reboot: it is idle, or an update was cut short that goes on when
    asked. `stands`: for so many seconds, the processor was seen to spin where a step `processor` made it.
    """

    committed: Release | None = None
    settled: Release | None = None
    running: Release | None = None
    powered_off: Literal[True] | None = None
    boots: Annotated[int, limited("write a number of boots, from 1 to 40", ge=1, le=40)] | None = None
    serial: Text | None = None
    served_bytes: Annotated[int, limited("write a number of bytes", ge=0, le=1 << 40)] | None = None
    entry: EntryPattern | None = None
    standing: Annotated[list[Release], limited("list 1 to 9 releases", min_length=1, max_length=9)] | None = None
    stands: Seconds | None = None

    def __post_init__(self) -> None:
        exactly_one(self, self.__struct_fields__, "a condition")
        check_pattern("serial", self.serial)

    def __str__(self) -> str:
        return next(f"{key} {value}" for key in self.__struct_fields__ if (value := getattr(self, key)) is not None)
