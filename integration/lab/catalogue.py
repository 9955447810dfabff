"""The catalogue of faults: one file each, and the standard scenario around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from integration.lab.emulator import Given
from integration.lab.injections import Fault
from integration.lab.scenario import (
    Boot,
    Expect,
    Offline,
    Scenario,
    Step,
    Wait,
)
from integration.lab.terms import (
    DEFAULT_LAYOUT,
    Condition,
    EntryPattern,
    Misuse,
    Seconds,
    SlotName,
    Text,
    Wrong,
)
from integration.lab.yaml_places import placed
from rollback.checks import AnyCheck, HealthFile
from updater.errors import InvalidDocument
from updater.schema import Name, decode_yaml, encode_json, limited

FOLDER = Path(__file__).resolve().parent.parent / "faults"

Stage = Literal[
    "loader",
    "kernel",
    "initrd",
    "verity",
    "userspace",
    "container",
    "health",
    "hang",
    "firmware",
    "disk",
    "network",
    "server",
    "metadata",
    "power",
    "people",
]
STAGES: tuple[str, ...] = Stage.__args__  # type: ignore[attr-defined]

_HEALTH = {"deadline_s": 240, "hold_s": 3, "interval_s": 1}
# How long a device of the initrd may take on a quiet machine; a fault that wants it to fail says less.
_DEVICES = "systemd.default_device_timeout_sec"
# PID 1's own deadlines, as those of a lab's image but longer on a busy host: they must not judge its speed.
_UNITS = {
    "acl-updater-deadline.target~95-fault": "[Unit]\nJobTimeoutSec=@300\n",
    "acl-updater-deadline.timer~95-fault": "[Timer]\nOnBootSec=\nOnBootSec=@330\n",
}
_Steps = Annotated[list[Step], limited("list at most 60 steps", max_length=60)]
_Script = Annotated[str, limited("write a shell script of at most 8000 characters", min_length=1, max_length=8000)]


class Inject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the fault gets in.

    In the guest of release 2, `hook` names one that the reference image has; `script`, `early`, `initrd` and
    `initrd_early` are shell scripts: see the step `fault`. `checks` are health checks that it has instead of the
    operator's, such as those of a kubelet, which the reference image lacks. `before` are steps on the factory disk
    before the update, `armed` steps on the powered-off machine between the update and the trial's first boot. `update`
    replaces the standard `update --to 2.0.0`. `story` are steps that replace the whole standard scenario but its end.
    `mend` are steps that take the fault away again before the next update, if it does not end by itself.
    """

    hook: Name | None = None
    silent: bool = False
    early: _Script | None = None
    script: _Script | None = None
    initrd_early: _Script | None = None
    initrd: _Script | None = None
    checks: Annotated[list[AnyCheck], limited("list at most 20 checks", max_length=20)] = []
    before: _Steps = []
    armed: _Steps = []
    update: Text | None = None
    story: _Steps = []
    mend: _Steps = []

    def __post_init__(self) -> None:
        if self.hook is not None and self.scripts:
            raise Wrong("fault", "hook", "there are scripts, too", "give `hook`, or scripts")
        if self.story and (self.before or self.armed or self.update):
            raise Wrong("fault", "story", "there are steps outside it", "put all steps into `story`")
        if not (self.hook or self.scripts or self.before or self.armed or self.update or self.story):
            raise Wrong("fault", "inject", "nothing is injected", "give a hook, a script or steps")

    @property
    def scripts(self) -> dict[str, str]:
        """Return the scripts for the guest by where they run."""
        keys = ("early", "script", "initrd_early", "initrd")
        found = {key: text for key in keys if (text := getattr(self, key)) is not None}
        if self.checks:
            found["early"] = found.get("early", "") + _install_checks(self.checks)
        return found


def _install_checks(checks: list[AnyCheck]) -> str:
    """Return shell that puts checks over the operator's, in memory: the other release must not meet them."""
    document = encode_json(HealthFile(format=1, checks=checks)).decode()
    folder = "/etc/acl-updater/health.d"
    install = f"mkdir -p {folder}; mount -t tmpfs lab {folder}; cp /run/acl-lab/checks.yaml {folder}/"
    return (
        'mkdir -p /run/acl-lab "$1/acl-updater-health.service.d"\n'
        f"cat > /run/acl-lab/checks.yaml << 'END-OF-CHECKS'\n{document}END-OF-CHECKS\n"
        f"""printf '[Service]\\nExecStartPre=/usr/bin/sh -c "{install}"\\n' """
        '> "$1/acl-updater-health.service.d/80-acl-lab.conf"\n'
    )


class Wanted(Expect, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator wants of a node that meets the fault.

    `ends` says how the update under test ends: `back` (it was tried, and release 1 runs healthy), `committed`
    (release 2 runs and is committed all the same), `refused` (it is refused before the first reboot: these faults
    need no boot), or `staged` (no boot either: the update is armed in spite of the fault). `exit`, `code` and `output`
    are those of the refused command. The other keys are those of the step `expect`; what is not given is what a
    healthy node shows at such an end. `boots_at_most` bounds the boots until then, `within_s` the seconds (of a quiet
    machine).
    """

    ends: Literal["back", "committed", "refused", "staged"]
    exit: int | None = None
    code: Name | None = None
    output: Text | None = None
    within_s: Seconds = 420.0

    def expect(self, standard: Expect) -> Expect:
        """Return what must hold, with `standard` for all that this does not say."""
        given = {key: value for key in Expect.__struct_fields__ if (value := getattr(self, key)) is not None}
        return msgspec.structs.replace(standard, **given)


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What machine the fault needs: the keys of a scenario's head."""

    layout: Name = DEFAULT_LAYOUT
    watchdog: bool = True
    memory_mib: Annotated[int, limited("write MiB, from 256 to 16384", ge=256, le=16384)] = 1024
    config: dict[str, Any] = {}
    kernel: list[Text] = []
    units: dict[str, Text] = {}
    secure_boot: bool = False


class FaultFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault of the catalogue.

    `why` says in one sentence why anyone should care. `shortfall` says what the product does not do yet, where the
    expectation is known to fail.
    """

    name: Name
    stage: Stage
    why: Text
    inject: Inject
    expect: Wanted
    needs: Needs = Needs()
    tags: list[Name] = []
    shortfall: Text | None = None

    def __post_init__(self) -> None:
        wanted = self.expect
        judged = wanted.ends == "refused" and not self.inject.story
        if judged and wanted.exit in (None, 0):
            raise Wrong("fault", "expect.exit", "a refusal has an exit code", "give `exit`, one of docs/exit-codes.md")
        if not judged and (wanted.exit is not None or wanted.code is not None):
            where = "a story's own steps" if self.inject.story else "`ends: refused`"
            raise Wrong("fault", "expect.exit", "no command is refused here", f"that belongs to {where}")

    @property
    def needs_boots(self) -> bool:
        """Tell whether its scenario boots a machine."""
        return self.expect.ends in ("back", "committed") or any(
            step.kind in ("boot", "power", "cut", "update_to") for step in self.inject.story
        )


def parse_fault(raw: bytes, source: str) -> FaultFile:
    """Parse a fault's YAML; raise InvalidDocument naming file and line, key, reason and mend."""
    try:
        return decode_yaml(raw, FaultFile, source)
    except InvalidDocument as error:
        raise placed(error, raw, source) from error


def load_fault(path: Path) -> FaultFile:
    """Read a fault's file, whose name must be the fault's; raise InvalidDocument."""
    raw = path.read_bytes()
    fault = parse_fault(raw, str(path))
    if fault.name != path.stem:
        wrong = InvalidDocument(
            str(path), "name", f"{fault.name!r} is not the file's name", f"write `name: {path.stem}`"
        )
        raise placed(wrong, raw, str(path))
    return fault


def given_to_guest(words: Iterable[str], version: Callable[[int], str]) -> Given:
    """Return what a machine is given for faults such as `1:panic`: hooks of the image, or the catalogue's scripts.

    `version` names a release by its number. Raises UpdaterError for what is neither.
    """
    parameters: list[str] = []
    credentials: dict[str, str] = {}
    for word in words:
        number, _, name = word.partition(":")
        if not number.isdigit() or not name:
            raise Misuse(f"{word!r} is no fault", mend="write RELEASE:NAME, such as 1:panic", reason="no-fault")
        path = FOLDER / f"{name}.yaml"
        inject = load_fault(path).inject if path.is_file() else Inject(hook=name)
        if inject.hook is None and not inject.scripts:
            raise Misuse(f"{name} does not strike in a guest", mend=f"`acl-lab run --fault {name}`", reason="no-fault")
        parameters.append(f"acl.lab.fault={version(int(number))}:{inject.hook or name}")
        credentials |= Fault(release=int(number), name=name, silent=inject.silent, **inject.scripts).credentials
    return Given(tuple(parameters), credentials)


def find_faults(folder: Path = FOLDER) -> list[Path]:
    """Return the fault files of a folder, sorted."""
    return sorted(folder.glob("*.yaml"))


def fault_paths(names: Iterable[str], *, folder: Path = FOLDER) -> list[Path]:
    """Return the fault files that a command line names: files, names or globs; all without a name."""
    import fnmatch

    shipped = {path.stem: path for path in find_faults(folder)}
    paths: list[Path] = []
    names = list(names)
    for name in names:
        found = [path for stem, path in shipped.items() if fnmatch.fnmatchcase(stem, name)]
        if not found and Path(name).is_file():
            found = [Path(name)]
        if not found:
            raise Misuse(f"there is no fault {name!r}", mend="see `acl-lab faults`", reason="no-fault")
        paths += found
    return list(dict.fromkeys(paths if names else shipped.values()))


def chosen_faults(names: Iterable[str], *, stages: Iterable[str] = ()) -> list[FaultFile]:
    """Return the faults that a command line names, of some stages or of all."""
    wanted = set(stages)
    faults = [load_fault(path) for path in fault_paths(names)]
    return [fault for fault in faults if not wanted or fault.stage in wanted]


def compose(fault: FaultFile, *, short: bool = False) -> Scenario:
    """Return the standard scenario around a fault.

    Release 1 runs, the update to release 2 meets the fault, it ends as an operator wants, and the update after it is
    as good as ever: tried and committed, or with `short` armed only.
    """
    inject = fault.inject
    story = list(inject.story) or [*inject.before, *_update(fault), *inject.armed]
    given = _given(fault)
    steps = [given, *story] if given and inject.story else [*story, given] if given else story
    steps += _end(fault, short=short)
    kernel = list(fault.needs.kernel)
    if not any(word.startswith(_DEVICES) for word in kernel):
        kernel.append(f"{_DEVICES}=@40")
    health = fault.needs.config.get("health", {})
    config = {**fault.needs.config, "health": {**_HEALTH, **health}}
    return Scenario(
        name=fault.name,
        summary=fault.why,
        steps=steps,
        tags=["fault", fault.stage],
        layout=fault.needs.layout,
        config=config,
        kernel=kernel,
        units={**_UNITS, **fault.needs.units},
        memory_mib=fault.needs.memory_mib,
        watchdog=fault.needs.watchdog,
        secure_boot=fault.needs.secure_boot,
    )


def _given(fault: FaultFile) -> Step | None:
    inject = fault.inject
    if inject.hook is None and not inject.scripts:
        return None
    name = inject.hook or fault.name
    return Step(fault=Fault(release=2, name=name, silent=inject.silent, **inject.scripts))


def _update(fault: FaultFile) -> list[Step]:
    wanted, words = fault.expect, fault.inject.update or "update --to 2.0.0"
    if wanted.ends == "refused":
        refused = Offline(run=words, exit=wanted.exit or 1, reason=wanted.code, output=wanted.output)
        return [Step(offline=refused)]
    return [Step(offline=Offline(run=words, output=wanted.output))]


def _end(fault: FaultFile, *, short: bool) -> list[Step]:
    wanted, mend = fault.expect, list(fault.inject.mend)
    first = [] if fault.inject.story else _waits(wanted)
    expected = Step(expect=wanted.expect(_STANDARD[wanted.ends]))
    return [*first, expected, *mend, *_next_update(fault, short=short)]


def _waits(wanted: Wanted) -> list[Step]:
    if wanted.ends == "back":
        return [Step(boot=Boot(until=Condition(settled=1), timeout_s=wanted.within_s))]
    if wanted.ends == "committed":
        until = Condition(committed=2)
        return [Step(boot=Boot(until=until, timeout_s=wanted.within_s)), Step(wait=Wait(until=Condition(settled=2)))]
    return []


def _next_update(fault: FaultFile, *, short: bool) -> list[Step]:
    ends = fault.expect.ends
    spare: SlotName = "a" if ends == "committed" else "b"
    if fault.needs_boots and not short:
        return [Step(update_to=3), Step(expect=Expect(slot=spare, release=3))]
    order: list[EntryPattern] = ["a+3-0.conf", "b*.conf"] if ends == "committed" else ["b+3-0.conf", "a.conf"]
    armed = Expect(loader=order, situation="armed", holds={spare: 3})
    first: list[Step] = []
    if fault.needs_boots and not any(step.power == "down" for step in fault.inject.mend):
        first = [Step(power="down")]
    elif ends == "staged":
        first = [Step(offline=Offline(run="cancel"))]
    return [*first, Step(offline=Offline(run="update --to 3.0.0")), Step(expect=armed)]


_STANDARD: dict[str, Expect] = {
    "back": Expect(
        slot="a", release=1, loader=["a.conf"], situation="idle", phase="idle", holds={"a": 1}, unchanged=["a"]
    ),
    "committed": Expect(
        slot="b",
        release=2,
        loader=["b*.conf", "a.conf"],
        situation="idle",
        phase="idle",
        quarantine=[],
        put_off=[],
        holds={"a": 1, "b": 2},
        unchanged=["a"],
    ),
    "refused": Expect(loader=["a.conf"], quarantine=[], put_off=[], holds={"a": 1}, unchanged=["a"]),
    "staged": Expect(
        loader=["b+3-0.conf", "a.conf"], situation="armed", quarantine=[], holds={"a": 1, "b": 2}, unchanged=["a"]
    ),
}
