"""The media that power cuts are tried on: what they may lose, and what they may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.volatile_calls import mounted, volatile_calls
from tests.volatile_files import Content, Manners, VolatileFiles, after_cut, atoms
from tests.volatile_sectors import VolatileBlocks
from updater.errors import EnvironmentFailure

Left = frozenset[tuple[str, Content]]


@pytest.fixture(autouse=True)
def in_memory() -> Iterator[None]:
    with volatile_calls():
        yield


@dataclass
class Medium:
    """A file system, and what cuts could have left since it was last asked."""

    manners: Manners
    files: dict[str, Content] = field(default_factory=dict)
    seen: list[set[Left]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tree = VolatileFiles("it", self.manners, self.files, tell=lambda effect: self.seen.append(self.left()))
        self.folder = mounted(self.tree)

    def left(self) -> set[Left]:
        """Return everything that a cut could leave now."""
        parts = list(atoms(self.tree.nodes, self.manners))
        keys = [(part.node, part.change) for part in parts]
        picked = product(*(part.options for part in parts))
        nodes = self.tree.nodes
        return {
            frozenset(after_cut(nodes, self.manners, dict(zip(keys, pick, strict=True))).items()) for pick in picked
        }

    def of(self, path: str) -> set[Content]:
        """Return what cuts could have left of a file since then; an absent one counts as `absent`."""
        return {dict(left).get(path, b"absent") for states in self.seen for left in states}


@pytest.mark.parametrize("manners", list(Manners))
def test_what_the_products_own_calls_return_from_is_durable(manners: Manners) -> None:
    medium = Medium(manners, {"block": b"a" * 1024, "old": b"1"})
    acts: list[Callable[[], object]] = [
        lambda: medium.folder.write_new("new/deep/file", [b"one", b"two"]),
        lambda: medium.folder.replace("old", b"2"),
        lambda: medium.folder.overwrite("block", b"b" * 512 + b"a" * 512),
        lambda: medium.folder.remove("new"),
    ]
    for act in acts:
        act()
        assert medium.left() == {frozenset(medium.tree.files.items())}


@pytest.mark.parametrize(("manners", "fates"), [(Manners.EXT4, 2), (Manners.FAT, 4)])
def test_a_rename_is_old_or_new_on_ext4_and_on_fat_both_or_neither_too(manners: Manners, fates: int) -> None:
    medium = Medium(manners, {"a.txt": b"1"})
    medium.tree.rename(0, "a.txt", "b.txt")
    whole = {frozenset({("a.txt", b"1")}), frozenset({("b.txt", b"1")})}
    torn = {frozenset({("a.txt", b"1"), ("b.txt", b"1")}), frozenset[tuple[str, Content]]()}
    assert medium.left() == (whole if fates == 2 else whole | torn)
    medium.tree.flush(0, "by hand")
    assert medium.left() == {frozenset({("b.txt", b"1")})}


@pytest.mark.parametrize("manners", list(Manners))
def test_a_small_file_that_is_replaced_is_old_or_new_but_for_the_torn_rename_of_fat(manners: Manners) -> None:
    medium = Medium(manners, {"state.json": b"old"})
    medium.folder.replace("state.json", b"new")
    torn = {b"absent"} if manners is Manners.FAT else set()
    assert medium.of("state.json") == {b"old", b"new"} | torn


def test_a_new_file_on_fat_may_be_anything_until_it_is_flushed() -> None:
    medium = Medium(Manners.FAT, {"gone": b"gone"})
    medium.folder.remove("gone")
    medium.folder.write_new("b+3-0.conf", [b"entry"])
    assert medium.of("b+3-0.conf") >= {b"absent", b"", b"en", bytes(5), b"gone\0", None, b"entry"}
    assert any("B_3-0~1.CON" in dict(left) for states in medium.seen for left in states), "its short half alone"


def test_what_was_removed_and_not_flushed_may_come_back_with_the_bytes_of_another() -> None:
    medium = Medium(Manners.FAT, {"a.txt": b"old"})
    medium.tree.lies = frozenset({"it: remove flushes the topmost folder"})
    medium.folder.remove("a.txt")
    medium.folder.write_new("b.txt", [b"new bytes"])
    assert {b"old", b"new", None, b"absent"} <= medium.of("a.txt")


def test_a_flush_that_lies_leaves_its_file_in_flight() -> None:
    medium = Medium(Manners.EXT4)
    medium.tree.lies = frozenset({"it: write_new flushes file"})
    medium.folder.write_new("file", [b"12345678"])
    assert {b"", b"1234", bytes(8), b"12345678"} == {dict(left)["file"] for left in medium.left()}
    assert "it: write_new flushes file" in medium.tree.flushed


def test_sectors_of_a_block_that_is_overwritten_are_each_old_or_new_or_lost() -> None:
    medium = Medium(Manners.FAT, {"block": b"a" * 1024})
    medium.folder.overwrite("block", b"b" * 1024)
    assert {b"a" * 512 + b"b" * 512, b"b" * 512 + b"a" * 512, bytes(512) + b"a" * 512} <= medium.of("block")


def test_a_file_that_the_medium_cannot_read_is_an_error_and_can_be_replaced() -> None:
    medium = Medium(Manners.FAT, {"torn": None})
    for look in (medium.folder.read, lambda path: list(medium.folder.chunks(path))):
        with pytest.raises(EnvironmentFailure) as caught:
            look("torn")
        assert caught.value.reason == "io-error"
    medium.folder.write_new("torn", [b"whole"])
    assert medium.folder.read("torn") == b"whole"


@given(writes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 255)), max_size=6), flushed=st.integers(0, 6))
def test_a_partition_keeps_what_was_flushed_and_any_of_the_rest(writes: list[tuple[int, int]], flushed: int) -> None:
    blocks = VolatileBlocks("it", bytes(4 * 4096))
    for number, (at, byte) in enumerate(writes):
        blocks.write(at * 4096, bytes([byte]) * 4096)
        if number + 1 == flushed:
            blocks.flush()
    sectors = blocks.sectors()
    surely = bytearray(4 * 4096)
    for at, byte in writes[:flushed] if flushed <= len(writes) else []:
        surely[at * 4096 : (at + 1) * 4096] = bytes([byte]) * 4096
    assert sectors.after_cut(dict.fromkeys(sectors.pending, 0)) == bytes(surely)
    everything = {number: len(values) for number, values in sectors.pending.items()}
    assert sectors.after_cut(everything) == blocks.read(0, 4 * 4096)
    for number in sectors.pending:
        torn = sectors.after_cut({**dict.fromkeys(sectors.pending, 0), number: 1})
        assert [at for at in range(32) if torn[at * 512 :][:512] != surely[at * 512 :][:512]] in ([number], [])
