"""The environment block that GRUB's script and the updater share: which slots may boot, in which order, how often.

All that counts lies in the block's first sector, so that a cut leaves the old or the new state; the second sector is
filler that never changes. Source of the format: GRUB's manual, "The GRUB environment block".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from updater.boot.protocol import Entry
from updater.errors import EnvironmentFailure
from updater.slots import Slot

BLOCK_BYTES = 1024
SECTOR_BYTES = 512
MAX_GENERATION = 999_999
_SIGNATURE = b"# GRUB Environment Block\n"
_NAME = re.compile(r"acl_[a-z_]{1,20}")

# `good` is never counted; a number is that of tries left; None is no entry at all.
Tries = int | Literal["good"] | None


@dataclass(frozen=True, slots=True)
class SlotState:
    """What the block says of a slot: its tries left (and given), its place in the order, its release."""

    tries: Tries = None
    given: int = 0
    generation: int = 0
    version: str = ""

    @property
    def is_bootable(self) -> bool:
        """Tell whether the script starts it before its last resort."""
        return self.tries == "good" or bool(self.tries)

    def entry(self, slot: Slot) -> Entry | None:
        """Return the boot entry of this state; None when there is none."""
        if self.tries is None:
            return None
        if self.tries == "good":
            return Entry(str(slot), slot, self.version, self.generation, None, 0)
        done = max(0, self.given - self.tries)
        return Entry(f"{slot}+{self.tries}-{done}", slot, self.version, self.generation, self.tries, done)


@dataclass(frozen=True, slots=True)
class Block:
    """The state of both slots."""

    a: SlotState
    b: SlotState

    def of(self, slot: Slot) -> SlotState:
        """Return a slot's state."""
        return self.a if slot is Slot.A else self.b

    def with_slot(self, slot: Slot, state: SlotState) -> Block:
        """Return the block with one slot changed."""
        return replace(self, a=state) if slot is Slot.A else replace(self, b=state)

    @property
    def order(self) -> tuple[Slot, Slot]:
        """Return the slots as the script tries them: the higher generation first, slot a of equals."""
        return (Slot.B, Slot.A) if self.b.generation > self.a.generation else (Slot.A, Slot.B)


def parse_block(raw: bytes | None) -> Block | None:
    """Return what a block says to the script, or None for one that it does not believe."""
    if raw is None or not raw.startswith(_SIGNATURE):
        return None
    values: dict[str, str] = {}
    for line in raw[len(_SIGNATURE) :].split(b"\n"):
        name, equals, value = line.decode("ascii", "replace").partition("=")
        # A value that nothing ends runs into the filler: GRUB does not see it.
        if equals and _NAME.fullmatch(name) and not line.endswith(b"#"):
            values[name] = value
    if values.get("acl_end") != "1":
        return None
    return Block(_slot_state(values, "a"), _slot_state(values, "b"))


def block_bytes(block: Block) -> bytes:
    """Return a block as it lies on the medium; raise EnvironmentFailure when its first sector cannot hold it."""
    lines = []
    for slot in Slot:
        state = block.of(slot)
        tries = "" if state.tries is None else str(state.tries)
        for name, value in (
            ("tries", tries),
            ("given", state.given),
            ("generation", state.generation),
            ("version", state.version),
        ):
            lines.append(f"acl_{slot}_{name}={value}\n")
    raw = _SIGNATURE + "".join([*lines, "acl_end=1\n"]).encode("ascii")
    if len(raw) > SECTOR_BYTES:
        raise EnvironmentFailure(
            f"GRUB's environment block would have {len(raw)} bytes, its first sector holds {SECTOR_BYTES}",
            mend="use shorter release versions",
            reason="grub-block-full",
        )
    return raw.ljust(BLOCK_BYTES, b"#")


def factory_block(version: str) -> bytes:
    """Return the block of a new disk whose slot a holds the proven release `version`."""
    return block_bytes(Block(SlotState("good", 0, 1, version), SlotState()))


def _slot_state(values: dict[str, str], slot: str) -> SlotState:
    text = values.get(f"acl_{slot}_tries", "")
    tries: Tries = None
    if text == "good":
        tries = "good"
    elif re.fullmatch("[0-9]", text):
        tries = int(text)
    return SlotState(
        tries,
        _number(values.get(f"acl_{slot}_given", "")),
        _number(values.get(f"acl_{slot}_generation", "")),
        values.get(f"acl_{slot}_version", ""),
    )


def _number(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,6}", text) else 0
