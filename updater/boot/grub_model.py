"""A model of the GRUB script that ships with this package (updater/boot/grub/acl.cfg)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from updater.boot.grub_block import Block, SlotState, block_bytes, parse_block
from updater.slots import Slot

# What the kernel's command line says of the tries left: `last` is the script's last resort.
Told = int | Literal["good", "last"]


@dataclass(frozen=True, slots=True)
class GrubState:
    """What the script finds: the two blocks, and the slots whose start file is there and loads.

    `frozen` blocks take no writes, as on a medium that has gone read-only.
    """

    blocks: tuple[bytes | None, bytes | None]
    loadable: frozenset[Slot]
    frozen: bool = False

    @property
    def used(self) -> int | None:
        """Return which block the script goes by, None when both are lost."""
        return next((index for index, raw in enumerate(self.blocks) if parse_block(raw) is not None), None)

    @property
    def block(self) -> Block | None:
        """Return the block that the script goes by."""
        return parse_block(self.blocks[self.used]) if self.used is not None else None


def choose(state: GrubState) -> Slot | None:
    """Return the slot that would boot now, None when none starts."""
    return boot(state)[0]


def boot(state: GrubState) -> tuple[Slot | None, Told | None, GrubState]:
    """Return the slot that starts, what its kernel is told, and the state that the script leaves behind."""
    block = state.block
    order = block.order if block is not None else (Slot.A, Slot.B)
    if block is not None:
        for slot in order:
            tries = block.of(slot).tries
            if tries == "good" and slot in state.loadable:
                return slot, "good", state
            if isinstance(tries, int) and tries > 0 and not state.frozen:
                # The try is spent before anything is loaded.
                block = block.with_slot(slot, replace(block.of(slot), tries=tries - 1))
                state = _written(state, block)
                if slot in state.loadable:
                    return slot, tries - 1, state
    last = next((slot for slot in order if slot in state.loadable), None)
    return last, "last" if last else None, state


def is_armed(block: Block, slot: Slot) -> bool:
    """Tell whether a counted `slot` would boot now, given that its files load."""
    state: SlotState = block.of(slot)
    return block.order[0] is slot and isinstance(state.tries, int) and state.tries > 0


def _written(state: GrubState, block: Block) -> GrubState:
    blocks = list(state.blocks)
    assert state.used is not None
    blocks[state.used] = block_bytes(block)
    return replace(state, blocks=(blocks[0], blocks[1]))
