"""The updater's units as a vendor lays them over a root tree, enabled and masked as our preset says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from updater.layouts import Layout
from updater.release.cpio import TreeFile, read_files
from updater.release.verity_parameters import RULES_PATH, slot_rules

_UNITS = Path(__file__).resolve().parents[1] / "units"
_PRESET = "usr/lib/systemd/system-preset/90-acl-updater.preset"
# Files of the root that the initrd needs as well.
_SHARED_WITH_INITRD = (
    "usr/lib/acl-updater/watchdog",
    "usr/lib/modprobe.d/50-acl-updater.conf",
    "usr/lib/modules-load.d/50-acl-updater.conf",
    "usr/lib/systemd/system.conf.d/50-acl-updater.conf",
    "usr/lib/systemd/system/acl-updater-watchdog.service",
)


def unit_layer(seeks: Layout | None = None) -> dict[str, TreeFile]:
    """Return units, drop-ins, kernel module options and preset by path in the root, with the links that enable them.

    With `seeks` the slot is found by the root hash on the command line (see `initrd_overlay`), which the root must go
    on doing: were the links to vanish, systemd would take the verity device away from under /usr.
    """
    units = read_files(_UNITS / "root")
    return {**units, **enabled_links(units), **(slot_seeker(seeks) if seeks else {})}


def initrd_overlay(seeks: Layout | None = None) -> dict[str, TreeFile]:
    """Return the initrd's deadlines: what an initrd needs so that a failure in it becomes a reboot with evidence.

    With `seeks` it also finds, among that layout's slots, the one that the command line's root hash belongs to.
    """
    root = read_files(_UNITS / "root")
    return {
        **read_files(_UNITS / "initrd"),
        **{name: root[name] for name in _SHARED_WITH_INITRD},
        **(slot_seeker(seeks) if seeks else {}),
    }


def slot_seeker(layout: Layout) -> dict[str, TreeFile]:
    """Return the udev rules, and their program, that link a layout's slot by the root hash on the command line."""
    return {**read_files(_UNITS / "usr-slot"), RULES_PATH: TreeFile(slot_rules(layout))}


def enabled_links(units: Mapping[str, TreeFile]) -> dict[str, TreeFile]:
    """Return the links that `systemctl preset` would make after our preset; what it disables is masked."""
    links: dict[str, TreeFile] = {}
    for line in units[_PRESET].content.decode().splitlines():
        verb, _, unit = line.partition(" ")
        if verb == "disable":
            links[f"etc/systemd/system/{unit}"] = TreeFile(link="/dev/null")
        if verb != "enable":
            continue
        for entry in units[f"usr/lib/systemd/system/{unit}"].content.decode().splitlines():
            key, _, targets = entry.partition("=")
            suffix = {"WantedBy": "wants", "RequiredBy": "requires"}.get(key)
            for target in targets.split() if suffix else ():
                links[f"etc/systemd/system/{target}.{suffix}/{unit}"] = TreeFile(link=f"/usr/lib/systemd/system/{unit}")
    return links
