"""The node's configuration: the vendor's file under the operator's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from updater.errors import InvalidDocument
from updater.schema import Name, convert, limited, load_yaml

VENDOR = Path("/usr/lib/acl-updater/config.yaml")
OPERATOR = Path("/etc/acl-updater/config.yaml")
# A folder beside the operator's file: a test harness or a fleet tool drops single settings there.
OPERATOR_DROP_INS = Path("/etc/acl-updater/config.d")

Seconds = Annotated[float, limited("write seconds, from 0 to 604800 (a week)", ge=0, le=604_800)]
Deadline = Annotated[float, limited("write seconds, from 10 to 86400 (a day)", ge=10, le=86_400)]
Url = Annotated[
    str,
    limited(
        "write an https:// or http:// URL, or an absolute folder", pattern=r"^(https?://|file:///|/)\S{1,2000}$(?!\n)"
    ),
]


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a trial is judged.

    `deadline_s` counts from the boot; checks must hold for `hold_s` without one failure; they run every
    `interval_s`; the service goes on watching for `watch_s` after the commit.
    """

    deadline_s: Deadline = 600.0
    hold_s: Seconds = 60.0
    interval_s: Annotated[float, limited("write seconds, from 0.1 to 600", ge=0.1, le=600)] = 5.0
    watch_s: Seconds = 600.0

    def __post_init__(self) -> None:
        if self.hold_s >= self.deadline_s:
            raise InvalidDocument(
                "configuration",
                "health.hold_s",
                f"checks that hold for {self.hold_s:g} s can never do so before a deadline of {self.deadline_s:g} s",
                "raise deadline_s well above hold_s and the time that a boot takes",
            )


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How mirrors are reached; proxies come from the usual environment variables.

    A connection that brings next to nothing for `stall_s` has stalled; all retries of one request together may wait for
    each mirror `grace_s` beyond the time that its bytes take at the slowest rate. `rate_limit` is in bytes a second
    for all connections together; a stage that would fetch more than `max_download_bytes` is refused beforehand. A way
    of fetching that needs more than `max_memory_bytes`, or half of what is available, is left out.
    """

    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    headers: dict[str, str] = {}
    connect_s: Annotated[float, limited("write seconds, from 0.1 to 600", ge=0.1, le=600)] = 10.0
    stall_s: Annotated[float, limited("write seconds, from 1 to 3600", ge=1, le=3600)] = 30.0
    grace_s: Annotated[float, limited("write seconds, from 1 to 86400", ge=1, le=86_400)] = 180.0
    rate_limit: Annotated[int, limited("write bytes a second, 4096 or more", ge=4096, le=1 << 40)] | None = None
    max_download_bytes: Annotated[int, limited("write bytes, 0 or more", ge=0, le=1 << 44)] | None = None
    max_memory_bytes: Annotated[int, limited("write bytes, 64 MiB or more", ge=1 << 26, le=1 << 44)] | None = 192 << 20


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a node; every one has a default."""

    format: Literal[1] = 1
    layout: Annotated[str, limited("name a layout such as dps-root, or give its path", max_length=255)] = "dps-root"
    channel: Name = "stable"
    mirrors: Annotated[list[Url], limited("list at most 16 mirrors", max_length=16)] = []
    trusted_roots: Annotated[str, limited("give an absolute folder", pattern=r"^/.{0,1000}$(?!\n)")] = (
        "/usr/share/acl-updater/trust"
    )
    reboot: Literal["immediate", "manual"] = "immediate"
    # A try that ended without evidence against the image is repeated after this long, doubled each time up to a week.
    retry_after_s: Annotated[float, limited("write seconds, from 0 to 604800", ge=0, le=604_800)] = 3600.0
    evidence_bytes: Annotated[int, limited("write bytes, from 64 KiB to 1 GiB", ge=1 << 16, le=1 << 30)] = 8 << 20
    health: Health = Health()
    network: Network = Network()


def parse_config(documents: list[tuple[str, bytes]]) -> Config:
    """Merge documents, given as (source, YAML bytes) with later ones winning; raise InvalidDocument.

    Each document is judged alone first, so that an error names the file that has it.
    """
    merged: dict[str, Any] = {}
    for source, raw in documents:
        loaded = load_yaml(raw, source)
        if loaded is None:
            continue
        convert(loaded, Config, source)
        merged = _merge(merged, loaded)
    return convert(merged, Config, "configuration")


def load_config(extra: Path | None = None) -> Config:
    """Read the vendor's file, the operator's, its drop-ins, then `extra`; absent ones count as empty."""
    paths = [VENDOR, OPERATOR]
    if OPERATOR_DROP_INS.is_dir():
        paths += sorted(OPERATOR_DROP_INS.glob("*.yaml"))
    documents = [(str(path), path.read_bytes()) for path in paths if path.is_file()]
    if extra is not None:
        documents.append((str(extra), extra.read_bytes()))
    return parse_config(documents)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
