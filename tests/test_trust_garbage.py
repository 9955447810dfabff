"""Random damage on mirrors and in the node's own memory: refused or mended, never a crash, never a step back."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulated import SimulatedDirectory
from tests.trust_site import Node, Site
from updater.errors import NetworkFailure, Untrusted

logging.getLogger("updater.trust").setLevel(logging.CRITICAL)

METADATA = ["timestamp.json", "3.snapshot.json", "1.targets.json", "2.channels.json", "2.releases.json", "2.root.json"]
MEMORY = ["accepted.json", "floors.json", "root.json", *(f"sets/1/{name}.json" for name in ("timestamp", "snapshot"))]

Damage = tuple[str, int, bytes]
damages = st.tuples(
    st.sampled_from(["replace", "insert", "cut", "whole"]), st.integers(0, 3000), st.binary(min_size=1, max_size=40)
)


class World:
    """A repository with a mirror of it that is damaged and repaired again and again."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder / "site")
        self.site.publish("1.0.0")
        self.old = self.site.copy("old")
        self.site.promote("1.0.0")
        shutil.copy(self.site.repo / "metadata" / "1.root.json", folder / "1.root.json")
        self.mirror = self.site.copy("mirror")
        state = SimulatedDirectory(ignore_case=False)
        Node(state, self.site.roots, self.site.clock).trust(str(self.site.repo)).refresh()
        self.accepted = state.files


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield World(Path(folder))


def damaged(raw: bytes, damage: Damage) -> bytes:
    kind, at, content = damage
    at %= len(raw) + 1
    if kind == "replace":
        return raw[:at] + content + raw[at + len(content) :]
    if kind == "insert":
        return raw[:at] + content + raw[at:]
    return raw[:at] if kind == "cut" else content


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(METADATA), damage=damages, fresh=st.booleans())
def test_a_mirror_of_garbage_is_refused_or_harmless(world: World, name: str, damage: Damage, fresh: bool) -> None:
    at = world.mirror / "metadata" / name
    raw = at.read_bytes() if at.exists() else None
    at.write_bytes(damaged(raw or b"{}", damage))
    state = SimulatedDirectory({} if fresh else world.accepted, ignore_case=False)
    before = state.files
    try:
        node = Node(state, world.site.roots, world.site.clock)
        try:
            node.trust(str(world.mirror)).refresh()
        except (Untrusted, NetworkFailure):
            assert state.files == before
        else:
            assert node.trust(str(world.mirror)).channel("stable").release == "1.0.0"
    finally:
        at.unlink() if raw is None else at.write_bytes(raw)


@settings(max_examples=150, deadline=None)
@given(hits=st.dictionaries(st.sampled_from(MEMORY), damages, min_size=1, max_size=2))
def test_a_memory_of_garbage_is_mended_or_refused(world: World, hits: dict[str, Damage]) -> None:
    files = {name: damaged(raw, hits[name]) if name in hits else raw for name, raw in world.accepted.items()}
    node = Node(SimulatedDirectory(files, ignore_case=False), world.site.roots, world.site.clock)
    node.trust(str(world.site.repo)).status()
    with pytest.raises(Untrusted) as caught:
        node.trust(str(world.old)).refresh()
    assert caught.value.reason in ("metadata-rolled-back", "metadata-corrupt-cache")
    if caught.value.reason == "metadata-corrupt-cache":
        assert "floors.json" in hits
        assert len(hits) == 2
        node.trust(str(world.site.repo)).start_over()
    node.trust(str(world.site.repo)).refresh()
    assert node.trust(str(world.site.repo)).channel("stable").release == "1.0.0"
