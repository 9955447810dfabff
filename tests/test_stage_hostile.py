"""`acl-updater --disk FILE stage` against web servers that misbehave: staged all the same, or told, never barred."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.disk_image import make_disk
from tests.hostile_server import Handler, hostile
from tests.releases import Publisher, make_release
from updater import verity
from updater.cli import main
from updater.config import Config
from updater.errors import ExitCode
from updater.layouts import load_layout
from updater.manifest import BLOCK_BYTES
from updater.node.image import ImageNode
from updater.partition import FileBlocks
from updater.release.transport import Ways
from updater.slots import Slot
from updater.steps.session import open_session

Misbehaviour = Callable[["Site", Handler, bytes], None]
_LARGE_BYTES = 20_000


def _successor(image: bytes) -> bytes:
    changed = bytearray(image)
    draw = random.Random(4)
    # Enough that cannot be compressed for transfers to break in the middle.
    changed[20 * BLOCK_BYTES : 90 * BLOCK_BYTES] = draw.randbytes(70 * BLOCK_BYTES)
    for block in (3, 111, 140):
        changed[block * BLOCK_BYTES + 9 : block * BLOCK_BYTES + 13] = draw.randbytes(4)
    return bytes(changed)


ONE = make_release("1.0.0")
TWO = make_release("2.0.0", image=_successor(ONE.image))


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, ways=Ways())
    made.publish(TWO, ways=Ways())
    made.promote("2.0.0")
    return made


@pytest.fixture(scope="module")
def factory_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(ONE, tmp_path_factory.mktemp("factory") / "disk.raw")


class Site:
    """A mirror that serves metadata well, and the bytes of releases as its misbehaviour says."""

    def __init__(self, folder: Path, misbehaviour: Misbehaviour, *, metadata_too: bool = False) -> None:
        self.folder = folder
        self.asked: dict[str, int] = {}
        self.lock = threading.Lock()
        self._misbehaviour = misbehaviour
        self._metadata_too = metadata_too

    def __call__(self, handler: Handler) -> None:
        name = handler.path.removeprefix("/repo/")
        with self.lock:
            self.asked[name] = self.asked.get(name, 0) + 1
        path = self.folder / name
        if not path.is_file():
            handler.answer(404)
        elif self._metadata_too or name.startswith(("blobs/", "images/")):
            self._misbehaviour(self, handler, path.read_bytes())
        else:
            handler.serve(path.read_bytes())

    def times(self, handler: Handler) -> int:
        """Return how often this file was asked for, this time included."""
        return self.asked[handler.path.removeprefix("/repo/")]


def well(site: Site, handler: Handler, content: bytes) -> None:
    handler.serve(content)


def without_range(site: Site, handler: Handler, content: bytes) -> None:
    handler.serve(content, ranges=False)


def wrong_content_range(site: Site, handler: Handler, content: bytes) -> None:
    first, last = handler.span or (0, len(content) - 1)
    handler.answer(206, content[first : last + 1], Content_Range=f"bytes {first + 1}-{last + 1}/{len(content) + 1}")


def short_once(site: Site, handler: Handler, content: bytes) -> None:
    handler.serve(content, cut=1000 if site.times(handler) == 1 else None)


def short_always(site: Site, handler: Handler, content: bytes) -> None:
    handler.serve(content, cut=5)


def endless(site: Site, handler: Handler, content: bytes) -> None:
    first, _ = handler.span or (0, 0)
    handler.answer(206, content[first:], length=None, Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
    with contextlib.suppress(OSError):
        while not handler.server.over.is_set():
            handler.wfile.write(bytes(1 << 16))


def endless_without_range(site: Site, handler: Handler, content: bytes) -> None:
    handler.answer(200, content, length=None)
    with contextlib.suppress(OSError):
        while not handler.server.over.is_set():
            handler.wfile.write(bytes(1 << 16))


def gzipped(site: Site, handler: Handler, content: bytes) -> None:
    packer = zlib.compressobj(wbits=31)
    handler.answer(200, packer.compress(content) + packer.flush(), Content_Encoding="gzip")


def gone_midway(site: Site, handler: Handler, content: bytes) -> None:
    if sum(site.asked.values()) > 30 or len(content) > 50_000:
        handler.answer(404)
    else:
        handler.serve(content)


def busy_twice(site: Site, handler: Handler, content: bytes) -> None:
    if site.times(handler) <= 2 and len(content) > _LARGE_BYTES:
        handler.answer(500 if site.times(handler) == 1 else 429, Retry_After="0")
    else:
        handler.serve(content)


def busy_for_ever(site: Site, handler: Handler, content: bytes) -> None:
    handler.answer(503)


def forbidden(site: Site, handler: Handler, content: bytes) -> None:
    handler.answer(403)


def redirected_to_nowhere(site: Site, handler: Handler, content: bytes) -> None:
    handler.answer(302, Location="file:///etc/hostname")


def redirected_in_circles(site: Site, handler: Handler, content: bytes) -> None:
    handler.answer(307, Location=handler.path)


def reset_once(site: Site, handler: Handler, content: bytes) -> None:
    if site.times(handler) > 1:
        handler.serve(content)
        return
    handler.serve(content, cut=len(content) // 2)
    _reset(handler)


def reset_always(site: Site, handler: Handler, content: bytes) -> None:
    _reset(handler)


def _reset(handler: Handler) -> None:
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def hangs_once(site: Site, handler: Handler, content: bytes) -> None:
    if site.times(handler) > 1 or len(content) < _LARGE_BYTES:
        handler.serve(content)
        return
    first, last = handler.span or (0, len(content) - 1)
    body = content[first : first + 1000]
    handler.answer(206, body, length=last + 1 - first, Content_Range=f"bytes {first}-{last}/{len(content)}")
    handler.server.over.wait(20)


def drips_once(site: Site, handler: Handler, content: bytes) -> None:
    if site.times(handler) > 1 or len(content) < _LARGE_BYTES:
        handler.serve(content)
        return
    first, last = handler.span or (0, len(content) - 1)
    handler.answer(206, length=last + 1 - first, Content_Range=f"bytes {first}-{last}/{len(content)}")
    with contextlib.suppress(OSError):
        for at in range(first, last + 1):
            if handler.server.over.wait(0.05):
                return
            handler.wfile.write(content[at : at + 1])


def rotten(site: Site, handler: Handler, content: bytes) -> None:
    wrong = bytearray(content)
    wrong[len(wrong) // 2] ^= 1
    handler.serve(bytes(wrong))


class Node:
    """A disk image, its configuration, and the command line."""

    def __init__(self, disk: Path, publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
        self.disk = disk
        self._publisher = publisher
        self._config = disk.with_name("config.yaml")
        self._capsys = capsys

    def stage(self, *mirrors: str, code: int = ExitCode.DONE, **network: Any) -> dict[str, Any]:
        """Type `stage --json`; return what it printed."""
        settings = {"connect_s": 5, "stall_s": 1, "grace_s": 1, **network}
        roots = self._publisher.mirror / "metadata"
        self._config.write_text(
            json.dumps({"mirrors": list(mirrors), "trusted_roots": str(roots), "network": settings})
        )
        self._capsys.readouterr()
        found = main(["--disk", str(self.disk), "--config", str(self._config), "stage", "--json"])
        said = self._capsys.readouterr()
        assert found == code, said.out + said.err
        document: dict[str, Any] = json.loads(said.out)
        return document

    def status(self) -> dict[str, Any]:
        """Type `status --json`; return what it printed."""
        self._capsys.readouterr()
        assert main(["--disk", str(self.disk), "--config", str(self._config), "status", "--json"]) == ExitCode.DONE
        document: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return document

    def holds_the_release(self) -> bool:
        """Tell whether slot b holds the release, nothing is left lying about, and the journal says staged."""
        with ImageNode(self.disk, load_layout("dps-root"), Config(), writable=False) as node:
            verity.prove(node.blocks(Slot.B, "data"), node.blocks(Slot.B, "hash"), TWO.manifest.root)
            journal = open_session(node, read_only=True).facts().journal
        return journal.phase == "staged" and not self.disk.with_name(self.disk.name + ".partial").exists()

    def barred(self) -> list[str]:
        """Return the ways that are barred."""
        with ImageNode(self.disk, load_layout("dps-root"), Config(), writable=False) as node:
            update = open_session(node, read_only=True).facts().journal.update
        return [item.way for item in update.barred] if update else []


@pytest.fixture
def node(publisher: Publisher, factory_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(shutil.copyfile(factory_disk, tmp_path / "disk.raw"), publisher, capsys)


@pytest.mark.parametrize(
    "misbehaviour",
    [well, without_range, short_once, endless_without_range, busy_twice, reset_once, hangs_once, drips_once],
)
def test_a_server_that_can_be_borne_with_is_enough(
    publisher: Publisher, node: Node, misbehaviour: Misbehaviour
) -> None:
    with hostile(Site(publisher.mirror, misbehaviour)) as server:
        node.stage(server.url, grace_s=60)
    assert node.holds_the_release()
    assert node.barred() == []


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        (wrong_content_range, "server-misbehaves"),
        (short_always, "unreachable"),
        (gzipped, "server-misbehaves"),
        (gone_midway, "not-found"),
        (busy_for_ever, "server-busy"),
        (forbidden, "forbidden"),
        (redirected_to_nowhere, "server-misbehaves"),
        (redirected_in_circles, "server-misbehaves"),
        (reset_always, "unreachable"),
        (endless, "server-misbehaves"),
        (rotten, "block-mismatch"),
    ],
)
def test_a_server_that_cannot_is_told_of_and_the_next_mirror_or_the_next_time_does_it(
    publisher: Publisher, node: Node, misbehaviour: Misbehaviour, reason: str
) -> None:
    with hostile(Site(publisher.mirror, misbehaviour)) as server:
        code = ExitCode.UNTRUSTED if misbehaviour is rotten else ExitCode.ENVIRONMENT
        told = node.stage(server.url, code=code)
        assert told["mend"]
        assert told["reason"] == reason
        assert node.barred() == []
        with hostile(Site(publisher.mirror, well)) as honest:
            node.stage(server.url, honest.url)
    assert node.holds_the_release()
    assert node.barred() == []


def test_a_mirror_that_was_not_renewed_is_skipped_for_metadata_and_bytes_alike(
    publisher: Publisher, node: Node, tmp_path: Path
) -> None:
    stale = tmp_path / "stale"
    shutil.copytree(publisher.mirror, stale)
    publisher.promote("2.0.0", "beta")
    site = Site(stale, well)
    with hostile(Site(publisher.mirror, well)) as honest:
        # The node has seen newer metadata than the first mirror has.
        node.stage(honest.url)
        with hostile(site) as old:
            found = main(["--disk", str(node.disk), "--config", str(node.disk.with_name("config.yaml")), "cancel"])
            assert found == ExitCode.DONE
            node.stage(old.url, honest.url)
    assert not [name for name in site.asked if name.startswith(("blobs/", "images/"))]
    assert node.holds_the_release()


def test_metadata_come_the_same_way_as_bytes(publisher: Publisher, node: Node) -> None:
    for misbehaviour in (short_once, reset_once):
        with hostile(Site(publisher.mirror, misbehaviour, metadata_too=True)) as server:
            if misbehaviour is reset_once:
                assert (
                    main(["--disk", str(node.disk), "--config", str(node.disk.with_name("config.yaml")), "cancel"]) == 0
                )
            node.stage(server.url, grace_s=60, headers={"X-Token": "secret"})
            assert {seen.headers["X-Token"] for seen in server.seen} == {"secret"}
            assert any(seen.path.startswith("/repo/metadata/") for seen in server.seen)
    assert node.holds_the_release()


def test_the_report_says_what_it_took_and_how_the_slot_was_read_back(publisher: Publisher, node: Node) -> None:
    with hostile(Site(publisher.mirror, well)) as server:
        told = node.stage(server.url)["brought"]
        asked = len(server.seen)
    assert (told["image"], set(told["files"])) == (["delta"], {"uki.efi"})
    with FileBlocks(node.disk) as blocks:
        assert told["read_back"] == blocks.read_back
    assert (told["requests"], told["retries"]) == (asked, 0)
    assert told["fetched_bytes"] > 70 * BLOCK_BYTES
    root = TWO.manifest.root
    assert told["written_bytes"] + told["kept_bytes"] == root.length_bytes + root.tree_length_bytes + BLOCK_BYTES
    assert node.status()["target"]["brought"] == told


def test_a_folder_and_its_url_are_mirrors_like_any_other(publisher: Publisher, node: Node) -> None:
    node.stage(publisher.mirror.as_uri())
    assert node.holds_the_release()
