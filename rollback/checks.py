"""Health checks as documents: one type for each kind of check."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from updater.errors import InvalidDocument
from updater.schema import Name, decode_yaml, limited

AbsolutePath = Annotated[str, limited("write an absolute path", pattern=r"^/[^\0]{0,1000}$(?!\n)")]
UnitName = Annotated[
    str,
    limited(
        "write a unit's full name such as containerd.service",
        pattern=r"^[A-Za-z0-9:_.@\\-]{1,200}\.(service|socket|target|mount|automount|swap|timer|path|slice|scope|device)"
        r"$(?!\n)",
    ),
]
Timeout = Annotated[float, limited("write seconds, from 0.1 to 300", ge=0.1, le=300)]
Interval = Annotated[float, limited("write seconds, from 1 to 3600", ge=1, le=3600)]
Text = Annotated[str, limited("write 1 to 4096 characters", min_length=1, max_length=4096)]
Word = Annotated[str, limited("write at most 4096 characters, without NUL", pattern=r"^[^\0]{0,4096}$(?!\n)")]
Status = Annotated[int, limited("write an HTTP status, from 100 to 599", ge=100, le=599)]
Scalar = str | int | float | bool


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What all kinds of checks have in common.

    `timeout_s` is hard. `interval_s` (default: the node's) spares an expensive check while it passes. A check that is
    not `required` only informs. `when: trial` leaves it out of the watch after a commit, and of ordinary boots.
    """

    kind: ClassVar[str]

    name: Name
    description: Annotated[str, limited("keep it below 500 characters", max_length=500)] = ""
    timeout_s: Timeout = 10.0
    interval_s: Interval | None = None
    required: bool = True
    when: Literal["always", "trial"] = "always"
    enabled: bool = True


class SystemdUnit(Check, frozen=True, tag="systemd-unit"):
    """One unit is active (or at least not failed), and does not restart again and again."""

    kind = "systemd-unit"

    unit: UnitName
    expect: Literal["active", "not-failed"] = "active"
    max_restarts: Annotated[int, limited("write a whole number from 0 to 1000", ge=0, le=1000)] | None = None


class SystemdSystem(Check, frozen=True, tag="systemd-system"):
    """The whole system has started, and no unit has failed but the `allowed` ones."""

    kind = "systemd-system"

    allowed: Annotated[list[UnitName], limited("list at most 200 units", max_length=200)] = []


class Command(Check, frozen=True, tag="command"):
    """A command ends with the expected exit code, and says what it should."""

    kind = "command"

    argv: Annotated[
        list[Word], limited("list the command and its arguments: 1 to 64 words", min_length=1, max_length=64)
    ]
    exit_code: Annotated[int, limited("write an exit code from 0 to 255", ge=0, le=255)] = 0
    contains: Text | None = None

    def __post_init__(self) -> None:
        if not self.argv[0]:
            raise InvalidDocument("check", "argv", "the first word is empty", "begin with the command's name or path")


class Http(Check, frozen=True, tag="http"):
    """A server answers a GET with the expected status, text or JSON field; redirects are not followed."""

    kind = "http"

    url: Annotated[str, limited("write an http:// or https:// URL", pattern=r"^https?://[^\s/]\S{0,2000}$(?!\n)")]
    unix_socket: AbsolutePath | None = None
    status: Status = 200
    contains: Text | None = None
    json_field: (
        Annotated[str, limited("write a dotted path such as status.phase", pattern=r"^[^.\0]+(\.[^.\0]+)*$(?!\n)")]
        | None
    ) = None
    json_equals: Scalar | None = None
    ca_file: AbsolutePath | None = None

    def __post_init__(self) -> None:
        if self.unix_socket is not None and not self.url.startswith("http://"):
            raise InvalidDocument("check", "url", "a Unix socket speaks plain HTTP", "write http://localhost/…")
        if (self.json_field is None) != (self.json_equals is None):
            raise InvalidDocument("check", "json_field", "it goes with `json_equals`", "write both or neither")


class Tcp(Check, frozen=True, tag="tcp"):
    """A TCP port accepts a connection."""

    kind = "tcp"

    port: Annotated[int, limited("write a port from 1 to 65535", ge=1, le=65535)]
    host: Annotated[str, limited("write a host name or an address", pattern=r"^[^\s\0]{1,255}$(?!\n)")] = "127.0.0.1"


class File(Check, frozen=True, tag="file"):
    """A path exists, or does not, or is a file that holds a text."""

    kind = "file"

    path: AbsolutePath
    exists: bool = True
    contains: Text | None = None

    def __post_init__(self) -> None:
        if not self.exists and self.contains is not None:
            raise InvalidDocument("check", "contains", "an absent file holds nothing", "drop `contains` or `exists`")


class Mount(Check, frozen=True, tag="mount"):
    """A path is a mount point of the expected kind, with room left.

    With `itself: false` it may be a folder: the file system that holds it is judged.
    """

    kind = "mount"

    path: AbsolutePath
    itself: bool = True
    fstype: Annotated[str, limited("write a file system such as ext4", pattern=r"^[a-z0-9._-]{1,32}$(?!\n)")] | None = (
        None
    )
    options: Annotated[list[Name], limited("list at most 16 options, such as rw", max_length=16)] = []
    free_bytes: Annotated[int, limited("write bytes, up to 64 TiB", ge=0, le=1 << 46)] | None = None


class Verity(Check, frozen=True, tag="verity"):
    """The dm-verity device below a mount point has met no corrupt block since the boot.

    Without `path` that is `/`, or `/usr` on a node where only /usr is proven.
    """

    kind = "verity"

    path: AbsolutePath | None = None


AnyCheck = SystemdUnit | SystemdSystem | Command | Http | Tcp | File | Mount | Verity


class HealthFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of health.d; `enabled: false` stands for a file without checks, and so masks the vendor's."""

    format: Literal[1]
    checks: Annotated[list[AnyCheck], limited("list at most 100 checks", max_length=100)] = []
    enabled: bool = True

    def __post_init__(self) -> None:
        names = [check.name for check in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise InvalidDocument("health.d", "checks", f"the name {name!r} stands twice", "rename one of them")


def parse_health_file(raw: bytes, source: str) -> HealthFile:
    """Parse one file of health.d; raise InvalidDocument naming file, key, reason and mend."""
    return decode_yaml(raw, HealthFile, source)
