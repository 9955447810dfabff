"""Scenario documents: a machine, the steps that are done to it, and what must be true afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from integration.lab.timeline import Outcome
from updater.errors import InvalidDocument
from updater.schema import Name, decode_yaml, limited

DEFAULT_LAYOUT = "dps-root"
FOLDER = Path(__file__).resolve().parent.parent / "scenarios"

# Releases are named by their place in the lab's repository: 1 is the factory release.
Release = Annotated[int, limited("name a release of the lab's repository by its number, from 1 to 99", ge=1, le=99)]
Seconds = Annotated[float, limited("write seconds, from 1 to 3600", ge=1, le=3600)]
SlotName = Literal["a", "b"]
Text = Annotated[str, limited("write 1 to 2000 characters", min_length=1, max_length=2000)]
EntryPattern = Annotated[
    str,
    limited("name an entry file such as a.conf or b+0-*.conf", pattern=r"^[a-z0-9*?+.-]{1,64}$(?!\n)"),
]


class _Wrong(InvalidDocument, ValueError):
    """A ValueError too, because msgspec adds the place in the document to those alone."""


def _exactly_one(document: msgspec.Struct, keys: tuple[str, ...], what: str) -> None:
    given = [key for key in keys if getattr(document, key) is not None]
    if len(given) != 1:
        why = f"{what} has {len(given)} of its keys ({', '.join(given) or 'none'})"
        raise _Wrong("scenario", "", why, f"give exactly one of: {', '.join(keys)}")


def _check_pattern(key: str, text: str | None) -> None:
    if text is None:
        return
    try:
        re.compile(text)
    except re.error as error:
        raise _Wrong("scenario", key, f"not a regular expression: {error}", "mend the pattern") from error


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that is waited for; exactly one key.

    `committed`: this release's boot entry was seen to become good. `settled`: this release runs, its agent answers
    and its updater is idle. `running`: this release reached its userspace. `powered_off`: the machine has no power.
    `boots`: so many boots have ended. `serial`: the running boot's console shows the pattern. `served_bytes`: the
    server sent so many bytes of files since it was last told anything. `entry`: the loader would list an entry of this
    name (a name alone, whose content has not reached the disk yet, is none). `standing`: one of these releases runs,
    its agent answers, and its updater waits for no reboot: it is idle, or an update was cut short that goes on when
    asked.
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

    def __post_init__(self) -> None:
        _exactly_one(self, self.__struct_fields__, "a condition")
        _check_pattern("serial", self.serial)

    def __str__(self) -> str:
        return next(f"{key} {value}" for key in self.__struct_fields__ if (value := getattr(self, key)) is not None)


class Offline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Run `acl-updater --disk` on the powered-off disk, at the speed of the host.

    It is killed the moment `kill_when` holds: for the disk, a power cut of the machine that was writing.
    """

    run: Text
    exit: int = 0
    reason: Text | None = None
    output: Text | None = None
    kill_when: Condition | None = None
    timeout_s: Seconds = 300.0

    def __post_init__(self) -> None:
        _check_pattern("output", self.output)


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give power and wait."""

    until: Condition
    timeout_s: Seconds = 240.0


class Wait(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wait, on a machine that is on."""

    until: Condition
    timeout_s: Seconds = 240.0


class InGuest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Run a shell command in the guest by the lab's agent; with `repeat`, again until it does what is expected."""

    run: Text
    exit: int | None = 0
    output: Text | None = None
    repeat: bool = False
    timeout_s: Seconds = 120.0

    def __post_init__(self) -> None:
        _check_pattern("output", self.output)


class Updater(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Run `acl-updater` in the guest; `reason` is the code that its error must carry."""

    run: Text
    exit: int | None = 0
    reason: Text | None = None
    output: Text | None = None
    background: bool = False
    timeout_s: Seconds = 300.0

    def __post_init__(self) -> None:
        _check_pattern("output", self.output)


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give the guest a fault by name; hooks in that release alone obey it, and must be seen to.

    From then on every boot is given it, until `clear` is a step.
    """

    release: Release
    name: Name
    # A fault that acts before any console can tell is proven by its effect: the scenario's own expectations.
    silent: bool = False


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cut the power when a condition holds: `boot` or the guest command `updater` is begun after the trigger is set."""

    when: Condition
    boot: bool = False
    updater: Text | None = None
    timeout_s: Seconds = 240.0


class Tamper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change bytes on the powered-off disk, behind everybody's back.

    Either 4096-byte block `block` of a slot's data partition, or a file of the ESP: truncated to `truncate_bytes`,
    with the byte at `at_byte` changed, or renamed to `rename` in its folder.
    """

    slot: SlotName | None = None
    block: Annotated[int, limited("write a block number", ge=0)] | None = None
    file: Text | None = None
    truncate_bytes: Annotated[int, limited("write a length in bytes", ge=0)] | None = None
    at_byte: Annotated[int, limited("write an offset in bytes", ge=0)] | None = None
    rename: EntryPattern | None = None

    def __post_init__(self) -> None:
        if (self.slot is None) == (self.file is None):
            raise _Wrong("scenario", "", "it needs one object", "give `slot` and `block`, or `file`")
        if self.slot is not None and self.block is None:
            raise _Wrong("scenario", "block", "the key 'block' is missing", "add it")
        changes = [item for item in (self.truncate_bytes, self.at_byte, self.rename) if item is not None]
        if self.file is not None and len(changes) != 1:
            raise _Wrong("scenario", "file", "it needs one change", "give `truncate_bytes`, `at_byte` or `rename`")


class Fill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fill the ESP of the powered-off disk, or the state partition of the running guest; `free` undoes it."""

    what: Literal["esp", "state"]
    leave_bytes: Annotated[int, limited("write a number of bytes", ge=0)] = 0
    free: bool = False


class Serve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tell the repository's server to fail; `works` mends it."""

    kind: Literal["works", "refuse", "cut", "stall", "status"]
    paths: Text = "*"
    after_bytes: Annotated[int, limited("write a number of bytes", ge=0)] = 0
    status: Annotated[int, limited("write an HTTP status, from 400 to 599", ge=400, le=599)] = 503


class Repository(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change this scenario's own copy of the repository; exactly one key.

    `tamper` flips a byte in every served file that matches a glob; `expire` lets the short-lived metadata expire;
    `promote` makes the channel offer a release; `withdraw` withdraws one; `restore` undoes all tampering.
    """

    tamper: Text | None = None
    expire: Literal[True] | None = None
    promote: Release | None = None
    withdraw: Release | None = None
    restore: Literal[True] | None = None

    def __post_init__(self) -> None:
        _exactly_one(self, self.__struct_fields__, "a repository step")


class SeenBoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One boot as it must have been seen from outside."""

    slot: SlotName | None = None
    release: Release | None = None
    outcome: Outcome | None = None
    entry: EntryPattern | None = None
    detail: Text | None = None


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be true now.

    `boots` lists every boot since the last `expect` that listed boots, the running one included, as seen from outside.
    `slot` and `release` are those of the last boot. `loader` is the loader's order on the ESP, bad entries last.
    `holds` says which release's root a slot bears in the partition table; `unchanged` slots have the same bytes, UKI
    and table entry as at the scenario's start. `situation`, `phase`, `says`, `quarantine`, `put_off` (tries that ended
    without evidence), `reason` (of the quarantine: stage/cause: sentence), `history` and `explain` are asked of the
    updater, in the guest when it is on, else on its disk; `evidence` is a pattern in what the running guest keeps.
    """

    boots: list[SeenBoot] | None = None
    slot: SlotName | None = None
    release: Release | None = None
    loader: list[EntryPattern] | None = None
    situation: Text | None = None
    phase: Text | None = None
    reason: Text | None = None
    says: Text | None = None
    quarantine: list[Release] | None = None
    put_off: list[Release] | None = None
    evidence: Text | None = None
    history: Text | None = None
    explain: Text | None = None
    unchanged: list[SlotName] | None = None
    holds: dict[SlotName, Release] | None = None

    def __post_init__(self) -> None:
        for key in ("says", "reason", "evidence", "history", "explain"):
            _check_pattern(key, getattr(self, key))


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step; exactly one key besides `note`."""

    offline: Offline | None = None
    boot: Boot | None = None
    wait: Wait | None = None
    guest: InGuest | None = None
    updater: Updater | None = None
    fault: Fault | None = None
    clear: Literal["faults"] | None = None
    cut: Cut | None = None
    power: Literal["down", "cut", "up", "reboot"] | None = None
    tamper: Tamper | None = None
    fill: Fill | None = None
    serve: Serve | None = None
    repository: Repository | None = None
    config: dict[str, Any] | None = None
    update_to: Release | None = None
    expect: Expect | None = None
    note: Text | None = None

    def __post_init__(self) -> None:
        _exactly_one(self, tuple(key for key in self.__struct_fields__ if key != "note"), "a step")

    @property
    def kind(self) -> str:
        """Return the step's key."""
        return next(key for key in self.__struct_fields__ if getattr(self, key) is not None)

    @property
    def action(self) -> Any:
        """Return the step's value."""
        return getattr(self, self.kind)


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole scenario.

    `layout` names the layout of the machine's disk, and with it the stock of releases; `sector` is the disk's
    sector size in bytes. `config` goes over the node's configuration; `kernel` are parameters for every boot;
    `units` are drop-ins for systemd units, by unit name, for the initrd and the system: shorter deadlines, mostly.
    On a busy machine the health check's deadline grows by itself; in `kernel` and `units`, `@20` is 20 seconds that
    grow likewise.
    """

    name: Name
    summary: Text
    steps: Annotated[list[Step], limited("list 1 to 100 steps", min_length=1, max_length=100)]
    tags: list[Name] = []
    layout: Name = DEFAULT_LAYOUT
    sector: Literal[512, 4096] = 512
    config: dict[str, Any] = {}
    kernel: list[Annotated[str, limited("write one kernel parameter", pattern=r"^[!-~]{1,200}$(?!\n)")]] = []
    units: dict[str, Text] = {}
    memory_mib: Annotated[int, limited("write MiB, from 256 to 16384", ge=256, le=16384)] = 1024
    watchdog: bool = True

    @property
    def releases(self) -> set[int]:
        """Return the numbers of all releases that it names."""
        found = {1}

        def walk(value: Any) -> None:
            if isinstance(value, msgspec.Struct):
                for key in value.__struct_fields__:
                    item = getattr(value, key)
                    if key in _RELEASE_KEYS and isinstance(item, int) and not isinstance(item, bool):
                        found.add(item)
                    walk(item)
            elif isinstance(value, list):
                for item in value:
                    walk(item)

        walk(self)
        return found


_RELEASE_KEYS = {"committed", "settled", "running", "release", "promote", "withdraw", "update_to"}


def parse_scenario(raw: bytes, source: str) -> Scenario:
    """Parse a scenario's YAML; raise InvalidDocument naming file, key, reason and mend."""
    return decode_yaml(raw, Scenario, source)


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file, whose name must be the scenario's; raise InvalidDocument."""
    scenario = parse_scenario(path.read_bytes(), str(path))
    if scenario.name != path.stem:
        raise InvalidDocument(
            str(path), "name", f"{scenario.name!r} is not the file's name", f"write `name: {path.stem}`"
        )
    return scenario


def find_scenarios(folder: Path = FOLDER) -> list[Path]:
    """Return the scenario files of a folder, sorted."""
    return sorted(folder.glob("*.yaml"))
