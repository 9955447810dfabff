"""A process of its own that fills a slot of plain files, or fetches a boot file, so that it can be killed for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from tests.transported import Repository
from updater.fetch import Fetcher, Retries, Timeouts
from updater.fill.boot_file import fetch_file
from updater.fill.filler import Filler
from updater.fill.source_slot import SourceSlot
from updater.format.transport import FileTransport, ImageTransport
from updater.kept import Kept
from updater.manifest import Root
from updater.partition import FileBlocks
from updater.records import FileRecord
from updater.repository import RepositoryImage
from updater.ways import Choice, Way


def begin_image(repository: Repository, address: str, folder: Path, way: Way) -> subprocess.Popen[bytes]:
    """Fill the slot in `folder` with the repository's new image; the old one lies there as `a.data` and `a.hashes`."""
    transport = repository.new.transport
    only = ImageTransport(
        frames=transport.frames if way is Way.FULL else None,
        reuse=transport.reuse if way is Way.REUSE else None,
        deltas=transport.deltas if way is Way.DELTA else [],
    )
    return _begin(
        {
            "address": address,
            "folder": str(folder),
            "way": way.value,
            "old": msgspec.to_builtins(repository.old.root),
            "new": msgspec.to_builtins(repository.new.root),
            "transport": msgspec.to_builtins(only),
        }
    )


def begin_file(
    address: str, folder: Path, way: Way, file: FileRecord, transport: FileTransport, held_sha256: str
) -> subprocess.Popen[bytes]:
    """Fetch a boot file to `new` in a folder whose `held` is the running release's."""
    return _begin(
        {
            "address": address,
            "folder": str(folder),
            "way": way.value,
            "file": msgspec.to_builtins(file),
            "transport": msgspec.to_builtins(transport),
            "held": held_sha256,
        }
    )


def _begin(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.filling_process", json.dumps(job)])


def _main(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    fetcher = Fetcher([job["address"]], timeouts=Timeouts(connect_s=60, stall_s=60), retries=Retries(attempts=1))
    fetcher.kept = Kept(folder / "kept")
    (_fetch if "file" in job else _fill)(job, folder, fetcher, Way(job["way"]))
    fetcher.kept.clear()
    fetcher.close()


def _fill(job: dict[str, Any], folder: Path, fetcher: Fetcher, way: Way) -> None:
    old, new = msgspec.convert(job["old"], Root), msgspec.convert(job["new"], Root)
    running = SourceSlot(FileBlocks(folder / "a.data"), FileBlocks(folder / "a.hashes"), old)
    slot = [FileBlocks(folder / name, writable=True) for name in ("b.data", "b.hashes")]
    transport = msgspec.convert(job["transport"], ImageTransport)
    sources = [RepositoryImage(fetcher, new)]
    filler = Filler(fetcher, sources, new, transport, source_slot=running, barred={}, what="release 2.0.0")
    filler.work_out(slot[0], slot[1], thorough=True)
    filler.fill(slot[0], slot[1], Choice((way,), ""), on_barred=lambda way, error: None)


def _fetch(job: dict[str, Any], folder: Path, fetcher: Fetcher, way: Way) -> None:
    file, transport = msgspec.convert(job["file"], FileRecord), msgspec.convert(job["transport"], FileTransport)
    fetch_file(
        fetcher,
        file,
        transport,
        Choice((way,), ""),
        folder / "new",
        delta=next(delta for delta in transport.deltas if delta.source == job["held"]),
        held=lambda: [(folder / "held").read_bytes()],
        on_barred=lambda way, error: None,
        progress=lambda done, total: None,
        what="uki.efi of release 2.0.0",
    )


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
