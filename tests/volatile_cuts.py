"""What lies on a machine's media after each effect, and everything that a power cut there could leave."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from tests.volatile_files import Content, Manners, Nodes, after_cut, atoms
from tests.volatile_sectors import Sectors


@dataclass(frozen=True)
class Disk:
    """All that lies on a machine's media while it is off, and in its firmware's variables."""

    esp: Mapping[str, Content]
    state: Mapping[str, Content]
    slots: tuple[bytes, ...]
    table: tuple[bytes, ...]
    efi: Mapping[tuple[UUID, str], bytes]

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Return what makes it the same state as another."""
        esp = frozenset(self.esp.items())
        return (esp, self.records, self.trust, self.slots, self.table, self.efi_values)

    @property
    def trust(self) -> frozenset[tuple[str, Content]]:
        """Return the trusted metadata."""
        return frozenset(item for item in self.state.items() if item[0].startswith("trust/"))

    @property
    def records(self) -> frozenset[tuple[str, Content]]:
        """Return all else that lies on the state partition."""
        return frozenset(item for item in self.state.items() if not item[0].startswith("trust/"))

    @property
    def efi_values(self) -> frozenset[tuple[tuple[UUID, str], bytes]]:
        """Return the firmware's variables."""
        return frozenset(self.efi.items())


@dataclass(frozen=True)
class Instant:
    """The media after one effect: what is durable, and what a cut may lose; `running` tells ours from the loader's."""

    effect: str
    running: bool
    esp: Nodes
    state: Nodes
    slots: tuple[Sectors, ...]
    table: tuple[Sectors, ...]
    efi: Mapping[tuple[UUID, str], bytes]

    def cuts(self, *, most: int, sampled: int) -> Iterator[Disk]:
        """Yield what a cut here leaves: every combination where there are no more than `most`.

        Of more, it is all or nothing, all but one part, one part alone, and `sampled` others by chance.
        """
        parts = self._parts()
        yield from (self._disk(dict(zip(parts, picked, strict=True))) for picked in _picks(parts, most, sampled))

    @property
    def is_durable(self) -> bool:
        """Tell whether a cut would lose nothing."""
        return not self._parts()

    def _parts(self) -> dict[tuple[object, ...], tuple[object, ...]]:
        found: dict[tuple[object, ...], tuple[object, ...]] = {}
        for where, nodes, manners in (("esp", self.esp, Manners.FAT), ("state", self.state, Manners.EXT4)):
            for atom in atoms(nodes, manners):
                found[where, atom.node, atom.change] = atom.options
        for where, media in (("slots", self.slots), ("table", self.table)):
            for index, medium in enumerate(media):
                for number, values in medium.pending.items():
                    found[where, index, number] = tuple(range(len(values) + 1))
        return found

    def _disk(self, picked: Mapping[tuple[object, ...], object]) -> Disk:
        def of(where: str) -> dict[tuple[int, int], object]:
            return {(key[1], key[2]): value for key, value in picked.items() if key[0] == where}  # type: ignore[misc]

        def left(where: str, media: tuple[Sectors, ...]) -> tuple[bytes, ...]:
            chosen = of(where)
            return tuple(
                medium.after_cut({number: int(str(chosen[index, number])) for number in medium.pending})
                for index, medium in enumerate(media)
            )

        return Disk(
            after_cut(self.esp, Manners.FAT, of("esp")),
            after_cut(self.state, Manners.EXT4, of("state")),
            left("slots", self.slots),
            left("table", self.table),
            self.efi,
        )


def _picks(
    parts: Mapping[tuple[object, ...], tuple[object, ...]], most: int, sampled: int
) -> Iterator[tuple[object, ...]]:
    options = list(parts.values())
    if math.prod(map(len, options)) <= most:
        yield from itertools.product(*options)
        return
    lost, done = tuple(each[0] for each in options), tuple(each[-1] for each in options)
    yield from (lost, done)
    places = list(range(len(options)))
    chance = random.Random(len(options))
    for at in places if len(places) <= sampled else sorted(chance.sample(places, sampled)):
        for option in options[at][1:]:
            yield (*lost[:at], option, *lost[at + 1 :])
        for option in options[at][:-1]:
            yield (*done[:at], option, *done[at + 1 :])
    for _ in range(sampled):
        yield tuple(chance.choice(each) for each in options)
