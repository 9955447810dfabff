"""The kernel parameters by which an initrd finds and proves a release's slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from updater.errors import InvalidDocument
from updater.layouts import Layout
from updater.slots import Slot
from updater.verity_words import SOUGHT

RULES_PATH = "usr/lib/udev/rules.d/61-acl-updater-usr-slot.rules"
_PROGRAM = "/usr/lib/acl-updater/usr-slot"


@dataclass(frozen=True, slots=True)
class VerityParameters:
    """The words that go into the UKI, and those of each slot's own addon; without addons the UKI suits both slots."""

    uki: tuple[str, ...]
    addons: Mapping[Slot, tuple[str, ...]] = field(default_factory=dict)


def verity_parameters(layout: Layout, root_hash: str, *, per_slot: bool) -> VerityParameters:
    """Return a release's words for a layout; raise InvalidDocument where that way cannot name its slots.

    Where PARTUUIDs follow the root hash, that alone finds the slot. Fixed ones need an addon `per_slot`, or a UKI whose
    initrd seeks the slot by the hash tree that it holds.
    """
    swaps = layout.swaps
    words = (f"{swaps}hash={root_hash}",)
    data = layout.partition("data", Slot.A)
    options = f"systemd.verity_{swaps}_options=panic-on-corruption"
    if data.hash_offset_bytes is not None:
        options += f",hash-offset={data.hash_offset_bytes}"
    if data.fixed_partuuid is None:
        if per_slot:
            raise _impossible(layout, "its PARTUUIDs follow the root hash", "leave --slot-addons away")
        return VerityParameters((*words, options))
    if per_slot:
        return VerityParameters(
            (), {slot: (*words, *_named(layout, slot), options, f"acl.slot={slot}") for slot in Slot}
        )
    if swaps != "usr" or data.hash_offset_bytes is not None:
        raise _impossible(
            layout, "its PARTUUIDs are fixed, and nothing seeks them by their hash trees", "--slot-addons"
        )
    sought = [f"systemd.verity_usr_{role}={link}" for role, link in SOUGHT.items()]
    return VerityParameters((*words, *sought, options))


def slot_rules(layout: Layout) -> bytes:
    """Return the udev rules that link the slot whose tree has the root hash of the command line."""
    lines = ['ACTION=="remove", GOTO="acl_updater_end"', 'SUBSYSTEM!="block", GOTO="acl_updater_end"']
    for slot in Slot:
        data, tree = layout.partition("data", slot), layout.partition("hash", slot)
        for partition, sibling, link in ((tree, "", SOUGHT["hash"]), (data, f" {tree.label}", SOUGHT["data"])):
            lines.append(
                f'ENV{{ID_PART_ENTRY_UUID}}=="{partition.fixed_partuuid}", PROGRAM=="{_PROGRAM} $devnode{sibling}", '
                f'SYMLINK+="{link.removeprefix("/dev/")}"'
            )
    return "\n".join([*lines, 'LABEL="acl_updater_end"', ""]).encode()


def _named(layout: Layout, slot: Slot) -> tuple[str, str]:
    data = layout.partition("data", slot)
    tree = data if data.hash_offset_bytes is not None else layout.partition("hash", slot)
    return (
        f"systemd.verity_{layout.swaps}_data=PARTUUID={data.fixed_partuuid}",
        f"systemd.verity_{layout.swaps}_hash=PARTUUID={tree.fixed_partuuid}",
    )


def _impossible(layout: Layout, why: str, mend: str) -> InvalidDocument:
    return InvalidDocument("build", "layout", f"{layout.name} cannot be booted that way: {why}", mend)
