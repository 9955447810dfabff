"""Scenario documents: a machine, the steps that are done to it, and what must be true afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from integration.lab.injections import (
    Cut,
    Fault,
    Fill,
    Firmware,
    LyingDiskStep,
    MachineChange,
    Processor,
    Repository,
    Serve,
    Tamper,
    Unplug,
)
from integration.lab.terms import (
    DEFAULT_LAYOUT,
    Condition,
    EntryPattern,
    Release,
    Seconds,
    SlotName,
    Text,
    Wrong,
    check_pattern,
    exactly_one,
)
from integration.lab.timeline import Outcome
from integration.lab.yaml_places import placed
from updater.errors import InvalidDocument
from updater.schema import Name, decode_yaml, limited

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"


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
        check_pattern("output", self.output)


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
        check_pattern("output", self.output)


class Updater(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Run `acl-updater` in the guest; `reason` is the code that its error must carry."""

    run: Text
    exit: int | None = 0
    reason: Text | None = None
    output: Text | None = None
    background: bool = False
    timeout_s: Seconds = 300.0

    def __post_init__(self) -> None:
        check_pattern("output", self.output)


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
    `boots_at_most` bounds the boots since the scenario's start, `downtime_s` the seconds (of a quiet machine) from the
    power-on of the first of them that did not end well to the moment at which the last one was up.
    """

    boots: list[SeenBoot] | None = None
    boots_at_most: Annotated[int, limited("write a number of boots, from 1 to 40", ge=1, le=40)] | None = None
    downtime_s: Seconds | None = None
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
            check_pattern(key, getattr(self, key))


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
    firmware: Firmware | None = None
    machine: MachineChange | None = None
    processor: Processor | None = None
    unplug: Unplug | None = None
    lying_disk: LyingDiskStep | None = None
    serve: Serve | None = None
    repository: Repository | None = None
    config: dict[str, Any] | None = None
    update_to: Release | None = None
    expect: Expect | None = None
    note: Text | None = None

    def __post_init__(self) -> None:
        exactly_one(self, tuple(key for key in self.__struct_fields__ if key != "note"), "a step")

    @property
    def kind(self) -> str:
        """Return the step's key."""
        return next(key for key in self.__struct_fields__ if getattr(self, key) is not None)

    @property
    def action(self) -> Any:
        """Return the step's value."""
        return getattr(self, self.kind)


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Your own image in the place of the lab's; paths are relative to the scenario's file.

    `releases` are folders that `acl-release build` left, by number: 1 is the factory release. The lab publishes them by
    keys of its own. `disk` is a raw disk image that holds release 1; without it one is made as `acl-lab mkdisk` makes
    it. `variables` is its store of EFI variables, which Secure Boot wants: it holds your keys.
    """

    releases: dict[Release, Text]
    disk: Text | None = None
    variables: Text | None = None

    def __post_init__(self) -> None:
        if 1 not in self.releases:
            raise Wrong("scenario", "releases", "there is no release 1", "name the one that the disk begins with")

    def beside(self, folder: Path) -> Own:
        """Return it with paths that do not depend on where one stands, relative ones taken from `folder`."""

        def at(path: str) -> str:
            return str((folder / path).resolve())

        releases = {number: at(path) for number, path in self.releases.items()}
        return Own(releases, self.disk and at(self.disk), self.variables and at(self.variables))


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole scenario.

    `layout` names the layout of the machine's disk, and with it the stock of releases; `sector` is the disk's
    sector size in bytes. `config` goes over the node's configuration; `kernel` are parameters for every boot;
    `units` are drop-ins for systemd units, by unit name, for the initrd and the system: shorter deadlines, mostly.
    The name may bear `~` with the drop-in's own, which decides what it comes after.
    With `secure_boot` the machine's firmware starts what the lab's key has signed, as its loader and releases are, and
    a run in which a kernel did not say that this was on is an error. With `own`, all starts from images of yours.
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
    secure_boot: bool = False
    own: Own | None = None

    def __post_init__(self) -> None:
        if self.secure_boot and self.own is not None and None in (self.own.variables, self.own.disk):
            why = "the lab has no key of yours, for a loader or for a firmware"
            raise Wrong("scenario", "own", why, "give `disk` with a signed loader, and `variables` that hold your keys")

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


_RELEASE_KEYS = {"committed", "settled", "running", "release", "promote", "withdraw", "unsign", "update_to"}


def parse_scenario(raw: bytes, source: str) -> Scenario:
    """Parse a scenario's YAML; raise InvalidDocument naming file and line, key, reason and mend."""
    try:
        return decode_yaml(raw, Scenario, source)
    except InvalidDocument as error:
        raise placed(error, raw, source) from error


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file, whose name must be the scenario's; raise InvalidDocument."""
    raw = path.read_bytes()
    scenario = parse_scenario(raw, str(path))
    if scenario.name != path.stem:
        wrong = InvalidDocument(
            str(path), "name", f"{scenario.name!r} is not the file's name", f"write `name: {path.stem}`"
        )
        raise placed(wrong, raw, str(path))
    if scenario.own is not None:
        return msgspec.structs.replace(scenario, own=scenario.own.beside(path.parent))
    return scenario


def find_scenarios(folder: Path = FOLDER) -> list[Path]:
    """Return the scenario files of a folder, sorted."""
    return sorted(folder.glob("*.yaml"))
