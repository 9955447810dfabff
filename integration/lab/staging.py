"""One fault for the next trial of a real node that allows it."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from integration.lab.catalogue import FaultFile
from updater.errors import EnvironmentFailure, Refused
from updater.files import MountedDirectory
from updater.schema import UtcText, decode_yaml, limited

PERMISSION = "etc/acl-updater/lab.yaml"
UNIT = "acl-lab-inject.service"
_UNIT_FILE = f"etc/systemd/system/{UNIT}"
_WANTS = "etc/systemd/system/sysinit.target.wants"
_FOLDER = "var/lib/acl-lab"
_HOOKS = Path(__file__).resolve().parents[1].joinpath("images", "lab", "root", "usr", "lib", "acl-lab", "faults")
When = Literal["trial", "next-boot"]


class Permission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `/etc/acl-updater/lab.yaml` allows on this node: `faults` are globs, `until` ends it."""

    format: Literal[1]
    allow: bool
    faults: list[Annotated[str, limited("write a fault's name or a glob", min_length=1, max_length=64)]] = (
        msgspec.field(default_factory=lambda: ["*"])
    )
    until: UtcText | None = None


@dataclass(frozen=True, slots=True)
class Injection:
    """What will be done: the files that are written, and when the fault strikes, in words."""

    fault: str
    moment: str
    files: dict[str, str]
    links: dict[str, str]


def permitted(root: Path, fault: str, *, now: datetime | None = None) -> None:
    """Return if this node may be broken by a fault on purpose; raise Refused if nobody said so."""
    path = root / PERMISSION
    example = f"write `format: 1` and `allow: true` into /{PERMISSION}, on nodes that may be broken on purpose only"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Refused("this node allows no faults", mend=example, reason="lab-forbidden") from None
    permission = decode_yaml(raw, Permission, str(path))
    if not permission.allow:
        raise Refused(f"{path} forbids faults on this node", mend=example, reason="lab-forbidden")
    if not any(fnmatch.fnmatchcase(fault, pattern) for pattern in permission.faults):
        raise Refused(
            f"{path} does not allow {fault}",
            mend=f"add it to its `faults`: {permission.faults}",
            reason="lab-forbidden",
        )
    if permission.until is not None:
        end = datetime.strptime(permission.until, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if (now or datetime.now(UTC)) >= end:
            raise Refused(f"{path} allowed faults until {permission.until}", mend="renew it", reason="lab-forbidden")


def plan(fault: FaultFile, root: Path, when: When) -> Injection:
    """Return what an injection will do; raise Refused for a fault that cannot be had on a real node."""
    scripts = _scripts(fault)
    condition = "" if when == "next-boot" else f"ConditionKernelCommandLine=!{_running(root)}\n"
    unit = (
        f"[Unit]\nDescription=Lab fault {fault.name}, once\nDefaultDependencies=no\n{condition}"
        f"RequiresMountsFor=/{_FOLDER}\nAfter=local-fs.target\nBefore=sysinit.target shutdown.target\n"
        f"Conflicts=shutdown.target\n\n[Service]\nType=oneshot\nExecStart=/bin/sh /{_FOLDER}/fire\n"
    )
    files = {f"{_FOLDER}/{word}": text for word, text in scripts.items()}
    files |= {f"{_FOLDER}/fire": _fire(fault.name, scripts), _UNIT_FILE: unit}
    moment = "the next boot" if when == "next-boot" else "the first boot of another release than the running one"
    return Injection(fault.name, moment, files, {f"{_WANTS}/{UNIT}": f"../{UNIT}"})


def arm(injection: Injection, root: Path) -> None:
    """Write an injection's files, the link that makes it happen last; raise Refused while another one is armed."""
    if armed(root) is not None:
        raise Refused(
            f"{armed(root)} is armed already", mend="`acl-lab inject --remove` takes it away", reason="lab-armed"
        )
    try:
        for name, text in injection.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            MountedDirectory(path.parent).replace(path.name, text.encode())
        for name, target in injection.links.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
    except OSError as error:
        remove(root)
        raise EnvironmentFailure(
            f"the fault cannot be armed: {error}", mend="run it as root", reason="io-error"
        ) from error


def armed(root: Path) -> str | None:
    """Return the name of the fault that waits for its boot, or None."""
    if not (root / _WANTS / UNIT).is_symlink():
        return None
    try:
        text = (root / _UNIT_FILE).read_text()
    except OSError:
        return "an unknown fault"
    match = re.search(r"^Description=Lab fault (\S+), once$", text, re.MULTILINE)
    return match.group(1) if match else "an unknown fault"


def remove(root: Path) -> bool:
    """Take an armed fault away, the link that makes it happen first; tell whether there was one."""
    was = (root / _WANTS / UNIT).is_symlink()
    (root / _WANTS / UNIT).unlink(missing_ok=True)
    (root / _UNIT_FILE).unlink(missing_ok=True)
    folder = root / _FOLDER
    for name in ("fire", "early", "script"):
        (folder / name).unlink(missing_ok=True)
    return was


def _scripts(fault: FaultFile) -> dict[str, str]:
    inject = fault.inject
    scripts = {word: text for word, text in inject.scripts.items() if word in ("early", "script")}
    if inject.hook is not None:
        files = {"script": _HOOKS / inject.hook, "early": _HOOKS / f"{inject.hook}.early"}
        scripts = {word: path.read_text() for word, path in files.items() if path.is_file()}
    only_in_lab = bool(inject.story or inject.before or inject.armed or set(inject.scripts) - {"early", "script"})
    if not scripts or only_in_lab:
        raise Refused(
            f"{fault.name} cannot be injected into a real node",
            mend="run it in the lab: only faults of a running system, by a script or a hook, can be had here",
            reason="lab-only",
        )
    return scripts


def _running(root: Path) -> str:
    words = (root / "proc/cmdline").read_text().split()
    found = next((word for word in words if re.fullmatch(r"(?:root|usr)hash=[0-9a-f]{64}", word)), None)
    if found is None:
        raise Refused(
            "this machine's kernel was not given a root hash",
            mend="inject on a node of this kind only",
            reason="not-live",
        )
    return found


def _fire(name: str, scripts: dict[str, str]) -> str:
    """Return the script that the unit runs: it removes itself from the disk before anything breaks."""
    lines = [
        "#!/bin/sh",
        "set -u",
        "mkdir -p /run/acl-lab",
        *(f"cp /{_FOLDER}/{word} /run/acl-lab/inject-{word}" for word in scripts),
        f"rm -f /{_WANTS}/{UNIT} /{_UNIT_FILE}",
        f"rm -rf /{_FOLDER}",
        "sync",
        f'echo "acl-lab: fault {name}" > /dev/kmsg',
    ]
    if "early" in scripts:
        lines += ["mkdir -p /run/systemd/system", "/bin/sh /run/acl-lab/inject-early /run/systemd/system"]
        lines += ["systemctl daemon-reload"]
    if "script" in scripts:
        after = "basic.target dbus.service containerd.service"
        lines += [
            f"systemd-run --no-block --quiet --unit=acl-lab-inject-late --property='After={after}' "
            "/bin/sh /run/acl-lab/inject-script"
        ]
    return "\n".join(lines) + "\n"
