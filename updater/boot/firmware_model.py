"""A model of a UEFI boot manager: which option it would start, and what it changes in its variables by that.

Pure. Source: UEFI 2.10, 3.1 (boot manager) and 3.1.1 (BootNext is deleted before its option is started; BootOrder is
gone through until one option starts). Firmware departs from that: `Manner` names what was seen or reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Flag, auto

from updater.boot.load_option import LoadOption


class Manner(Flag):
    """What a firmware does beside, or against, the specification."""

    PLAIN = 0
    DROPS_ORPHANS = auto()
    DROPS_MISSING = auto()
    LOSES_NEXT = auto()
    KEEPS_NEXT = auto()
    BOOTED_FIRST = auto()
    STARTS_INACTIVE = auto()
    DROPS_UNREADABLE = auto()


@dataclass(frozen=True, slots=True)
class FirmwareState:
    """All that the boot manager's choice depends on.

    `loadable` are the options whose file can be started. `next_number` is BootNext.
    """

    options: Mapping[int, LoadOption]
    order: tuple[int, ...]
    next_number: int | None = None
    loadable: frozenset[int] = frozenset()


def in_order(state: FirmwareState, manner: Manner = Manner.PLAIN) -> tuple[int, ...]:
    """Return the options that would be started if those before them did not load, BootNext's first."""
    return tuple(dict.fromkeys(_tried(state, manner)))


def choose(state: FirmwareState, manner: Manner = Manner.PLAIN) -> int | None:
    """Return the option that would boot now; None: the firmware goes on to what it finds on removable media."""
    return next(iter(in_order(state, manner)), None)


def boot(state: FirmwareState, manner: Manner = Manner.PLAIN) -> tuple[int | None, FirmwareState]:
    """Return the option that boots, and the variables that the firmware leaves."""
    started = choose(state, manner)
    dropped: set[int] = set()
    if manner & Manner.DROPS_MISSING:
        dropped |= state.options.keys() - state.loadable
    if manner & Manner.DROPS_ORPHANS:
        dropped |= state.options.keys() - set(state.order)
    options = {number: option for number, option in state.options.items() if number not in dropped}
    order = tuple(number for number in state.order if number not in dropped)
    if manner & Manner.DROPS_UNREADABLE:
        order = tuple(number for number in order if number in options)
    if manner & Manner.BOOTED_FIRST and started in order:
        order = (started, *(number for number in order if number != started))
    kept = state.next_number if manner & Manner.KEEPS_NEXT else None
    return started, replace(state, options=options, order=order, next_number=kept)


def _tried(state: FirmwareState, manner: Manner) -> Iterator[int]:
    following = state.next_number if not manner & (Manner.LOSES_NEXT | Manner.KEEPS_NEXT) else None
    option = state.options.get(following) if following is not None else None
    # Whether BootNext starts an inactive option is not specified.
    follows = option is not None and (option.is_active or bool(manner & Manner.STARTS_INACTIVE))
    if following is not None and following in state.loadable and follows:
        yield following
    for number in state.order:
        option = state.options.get(number)
        if option is not None and option.is_active and number in state.loadable:
            yield number
