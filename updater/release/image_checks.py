"""What an image must bring along so that a failed boot ends, by itself, on the release before it.

A root tree without these masks and deadlines is refused before it becomes a release: on a node nobody could mend it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from updater.config import parse_config
from updater.errors import Refused
from updater.release.cpio import TreeFile
from updater.release.root_tree import RootTree, read_text, resolve
from updater.release.unit_files import Settings, Units, parse_settings, time_span_s

HEALTH = "acl-updater-health.service"
COMPLETE = "boot-complete.target"
DEADLINE = "acl-updater-deadline.target"
_SECOND_DEADLINE = "acl-updater-deadline.timer"
_LEAVES = "acl-updater-deadline.service"
_MASKED = {
    "systemd-bless-boot.service": "it would call every boot good that reaches userspace, without a verdict",
    "systemd-boot-update.service": "a release on trial would replace the loader that both slots share",
}
_REBOOTS = ("reboot", "reboot-force", "reboot-immediate")
_NO_ACTION = ("", "none")
_WATCHDOG_DRIVERS = ("i6300esb", "iTCO_wdt", "sp5100_tco", "softdog", "wdat_wdt", "hpwdt", "ipmi_watchdog")
_CONFIGURATION = ("etc/systemd", "usr/lib/systemd")
_LEAST_WATCHDOG_S = 30.0
_VENDOR_CONFIG = "usr/lib/acl-updater/config.yaml"
_VERDICT_TAKES_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is missing: the path in the tree, why it matters, what to do."""

    path: str
    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}; {self.mend}"


def check_root_tree(tree: RootTree, version: str, needed: Mapping[str, TreeFile] | None = None) -> list[Finding]:
    """Return what the tree lacks; empty when it may become release `version`.

    `needed` are files that this kind of release needs besides: see `unit_layer.slot_seeker`.
    """
    units = Units(tree)
    findings = [finding for check in _CHECKS for finding in check(tree, units)] + list(_identity(tree, version))
    for name, file in (needed or {}).items():
        if tree.content(name) != file.content:
            why = "without it systemd would take the verity device away from under /usr"
            findings.append(Finding(f"/{name}", why, "install the updater's units for this layout, or --slot-addons"))
    return findings


def require_sound(findings: list[Finding], what: str) -> None:
    """Raise Refused, naming every finding."""
    if findings:
        listed = "\n  ".join(map(str, findings))
        raise Refused(
            f"{what} lacks {len(findings)} of the things that a failed boot ends by:\n  {listed}\n",
            mend="mend the tree, or install the updater's units and preset into it (docs/images.md)",
            reason="image-unsafe",
        )


def _masks(tree: RootTree, units: Units) -> Iterator[Finding]:
    for unit, why in _MASKED.items():
        if not units.is_masked(unit):
            yield Finding(f"/etc/systemd/system/{unit}", why, "mask it: a link to /dev/null")


def _boot_deadline(tree: RootTree, units: Units) -> Iterator[Finding]:
    where = f"/usr/lib/systemd/system/{DEADLINE}"
    if not units.exists(COMPLETE):
        yield Finding(f"/usr/lib/systemd/system/{COMPLETE}", "the unit is missing", "install systemd's own")
    if time_span_s(_last(units.settings(COMPLETE).get(("Unit", "JobTimeoutSec")))) > 0:
        why = "its own job timeout ends, or reboots, a proven release that starts slowly, boot after boot"
        yield Finding(f"/usr/lib/systemd/system/{COMPLETE}.d", why, f"take it away: {DEADLINE} ends trials")
    if not units.exists(DEADLINE) or units.is_masked(DEADLINE):
        yield Finding(where, "nothing ends a boot whose verdict never comes", "install the updater's units")
    else:
        yield from _waits_for_completion(units.settings(DEADLINE), where)
    target = (resolve(tree, "etc/systemd/system/default.target") or "").rpartition("/")[2]
    if target in ("", "default.target"):
        target = (resolve(tree, "usr/lib/systemd/system/default.target") or "").rpartition("/")[2]
    for unit in (COMPLETE, DEADLINE):
        if not any(units.pulled_in(unit, by) for by in (target, "multi-user.target", "default.target")):
            yield Finding(
                f"/usr/lib/systemd/system/{target or 'multi-user.target'}",
                f"it does not pull in {unit}, so nothing counts the time",
                f"add Wants={unit} by a drop-in",
            )


def _waits_for_completion(settings: Settings, where: str) -> Iterator[Finding]:
    if time_span_s(_last(settings.get(("Unit", "JobTimeoutSec")))) <= 0:
        yield Finding(where, "without JobTimeoutSec= a boot may wait for its verdict for ever", "set it")
    if COMPLETE not in _words(settings, "After"):
        yield Finding(where, f"it does not wait for {COMPLETE}", f"add After={COMPLETE}")
    if _LEAVES not in _words(settings, "OnFailure"):
        yield Finding(where, "the deadline has no consequence", f"add OnFailure={_LEAVES}")
    if _last(settings.get(("Unit", "JobTimeoutAction"))) not in _NO_ACTION:
        why = "its JobTimeoutAction= would reboot a proven release that starts slowly, boot after boot"
        yield Finding(where, why, "take it away: OnFailure= is enough")


def _leaving(tree: RootTree, units: Units) -> Iterator[Finding]:
    if not any(units.pulled_in(_SECOND_DEADLINE, by) for by in ("sysinit.target", "basic.target", "timers.target")):
        yield Finding(
            f"/usr/lib/systemd/system/{_SECOND_DEADLINE}",
            "PID 1's second deadline is not enabled",
            f"enable it: systemctl --root=… enable {_SECOND_DEADLINE}",
        )
    where = f"/usr/lib/systemd/system/{_LEAVES}"
    settings = units.settings(_LEAVES)
    if _last(settings.get(("Unit", "FailureAction"))) not in _REBOOTS or units.is_masked(_LEAVES):
        yield Finding(where, "PID 1's deadlines reboot through it, and it does not", "install the updater's units")
    elif missing := _missing_program(tree, settings):
        yield Finding(missing, "without it the deadline reboots proven releases too", "install the updater's units")


def _verdict_comes_first(tree: RootTree, units: Units) -> Iterator[Finding]:
    limit_s = time_span_s(_last(units.settings(DEADLINE).get(("Unit", "JobTimeoutSec"))))
    text = read_text(tree, _VENDOR_CONFIG)
    deadline_s = parse_config([(_VENDOR_CONFIG, text.encode())] if text else []).health.deadline_s
    if 0 < limit_s < deadline_s + _VERDICT_TAKES_S:
        yield Finding(
            f"/{_VENDOR_CONFIG}",
            f"health.deadline_s is {deadline_s:g}, but PID 1 ends the boot after {limit_s:g} s, before the verdict",
            f"set health.deadline_s to at most {max(10, limit_s - _VERDICT_TAKES_S):g}, or JobTimeoutSec= higher",
        )


def _health(tree: RootTree, units: Units) -> Iterator[Finding]:
    where = f"/usr/lib/systemd/system/{HEALTH}"
    if not units.exists(HEALTH) or units.is_masked(HEALTH):
        yield Finding(where, "nobody judges a trial without it", "install the updater's units")
        return
    if not units.pulled_in(HEALTH, COMPLETE, strongly=True):
        yield Finding(where, f"{COMPLETE} does not require it", f"enable it: systemctl --root=… enable {HEALTH}")
    settings = units.settings(HEALTH)
    if COMPLETE not in _words(settings, "Before"):
        yield Finding(where, f"it is not ordered before {COMPLETE}", f"add Before={COMPLETE}")
    if _last(settings.get(("Service", "Type"))) not in ("notify", "notify-reload"):
        yield Finding(where, "it would count as started before it has a verdict", "set Type=notify")
    if missing := _missing_program(tree, settings):
        yield Finding(missing, "the program that judges a trial is missing", "install the updater")


def _manager(tree: RootTree, units: Units) -> Iterator[Finding]:
    names = ["etc/systemd/system.conf", *units.configuration("system.conf.d", _CONFIGURATION)]
    manager = dict(pair for name in names for pair in parse_settings(read_text(tree, name) or ""))
    where = "/usr/lib/systemd/system.conf.d/50-acl-updater.conf"
    span = time_span_s(manager.get(("Manager", "RuntimeWatchdogSec"), ""))
    if span <= 0:
        yield Finding(where, "PID 1 feeds no watchdog, so a hang is never ended", "set RuntimeWatchdogSec=60s")
    elif span < _LEAST_WATCHDOG_S:
        yield Finding(
            where, f"a watchdog of {span:g} s misfires on a busy machine", "set RuntimeWatchdogSec=30s or more"
        )
    crash = manager.get(("Manager", "CrashAction"), "")
    if crash != "reboot" and manager.get(("Manager", "CrashReboot"), "no") not in ("yes", "true", "1", "on"):
        yield Finding(where, "when PID 1 crashes it freezes", "set CrashAction=reboot")


def _watchdog_stays(tree: RootTree, units: Units) -> Iterator[Finding]:
    options = "\n".join(
        read_text(tree, name) or ""
        for name in tree.names()
        if re.fullmatch(r"(etc|usr/lib|lib)/modprobe\.d/[^/]+\.conf", name)
    )
    present = {
        found[1].replace("-", "_")
        for name in tree.names()
        if (found := re.search(r"/kernel/drivers/(?:watchdog|char/ipmi)/([^/]+)\.ko(?:\.[a-z]+)?$", name))
    }
    for driver in _WATCHDOG_DRIVERS:
        stays = re.search(rf"^\s*options\s+{driver}\s+.*\bnowayout=(1|y|Y)\b", options, re.MULTILINE)
        if driver in present and not stays:
            yield Finding(
                "/usr/lib/modprobe.d/50-acl-updater.conf",
                f"{driver} is disarmed at the switch to root and when PID 1 crashes",
                f"add: options {driver} nowayout=1",
            )


def _no_shell_waits(tree: RootTree, units: Units) -> Iterator[Finding]:
    for unit in ("emergency.service", "rescue.service"):
        if units.is_masked(unit):
            continue
        settings = units.settings(unit)
        actions = [_last(settings.get(("Unit", f"{kind}Action"))) for kind in ("Success", "Failure")]
        if any(action not in _REBOOTS for action in actions):
            yield Finding(
                f"/usr/lib/systemd/system/{unit}.d/50-acl-updater.conf",
                "its shell would wait for ever on a console where nobody sits",
                "set SuccessAction= and FailureAction=reboot-force, and a program that ends",
            )


def _identity(tree: RootTree, version: str) -> Iterator[Finding]:
    known = set(tree.names())
    if not any(resolve(tree, init) in known for init in ("sbin/init", "usr/lib/systemd/systemd")):
        yield Finding("/sbin/init", "the root has no init", "install systemd")
    fields = {
        key: value.strip("\"'")
        for key, _, value in (line.partition("=") for line in (read_text(tree, "etc/os-release") or "").splitlines())
    }
    for key, wanted in (("IMAGE_VERSION", version), ("IMAGE_ID", None), ("ID", None)):
        value = fields.get(key, "")
        if not value or (wanted is not None and value != wanted):
            yield Finding(
                "/usr/lib/os-release",
                f"{key} is {value or 'missing'!r}, so a node cannot tell which release it runs",
                f"write {key}={wanted or 'a name'}",
            )


def _missing_program(tree: RootTree, settings: Settings) -> str:
    """Return the path of a service's program when the tree lacks it, else an empty text."""
    program = _last(settings.get(("Service", "ExecStart"))).lstrip("@-:+!").split(" ")[0].strip("/")
    return f"/{program}" if program and resolve(tree, program) not in set(tree.names()) else ""


def _words(settings: Settings, key: str) -> list[str]:
    return " ".join(settings.get(("Unit", key), ())).split()


def _last(values: object) -> str:
    return str(values[-1]) if isinstance(values, list | tuple) and values else ""


_CHECKS: tuple[Callable[[RootTree, Units], Iterator[Finding]], ...] = (
    _masks,
    _boot_deadline,
    _leaving,
    _verdict_comes_first,
    _health,
    _manager,
    _watchdog_stays,
    _no_shell_waits,
)
