"""`make crash`: every power cut of a recorded update, judged offline, and a spread of them booted for real."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from integration.crash.judge import Image
from integration.crash.recording import Recorded, record
from integration.crash.replay import Depth, Point, Walk, states, walk
from integration.crash.story import Told, failed, spread, tell
from integration.lab.factory import make_stock
from integration.lab.stock import Stock
from updater.errors import EnvironmentFailure, ExitCode, UpdaterError
from updater.manifest import parse_manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; return 0 only if no state failed."""
    parser = argparse.ArgumentParser(
        prog="crash",
        description="Record a whole update in QEMU, cut it at every write, and judge and boot what would be left.",
    )
    parser.add_argument("--out", type=Path, default=Path("build/crash"), help="folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few cuts in each epoch, and 3 boots")
    parser.add_argument("--boots", type=int, help="states to boot for real (default: 25, or 3 with --quick)")
    parser.add_argument("--machines", type=int, default=2, help="machines at a time (default: %(default)s)")
    parser.add_argument("--subsets", type=int, default=3, help="seeded choices in each epoch (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stdout)
    boots = arguments.boots if arguments.boots is not None else 3 if arguments.quick else 25
    depth = Depth(1, 2, 40) if arguments.quick else Depth(arguments.subsets)
    try:
        return prove(arguments.out.resolve(), depth, boots, arguments.machines)
    except UpdaterError as error:
        print(f"\ncrash: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("\ncrash: interrupted; nothing is left running", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


def prove(out: Path, depth: Depth, boots: int, machines: int) -> int:
    """Record (or take the recording of the same stock), walk, boot; write the report and return the exit code."""
    stock = make_stock()
    recorded = record(stock, out / "recording")
    releases = published(stock)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="walk-", dir=out) as scratch:
        found = walk(recorded, releases, Path(scratch), depth, progress=_progress)
    print(f"\n  walked in {time.monotonic() - began:.0f} s", flush=True)
    told = boot_spread(stock, recorded, found, out / "boots", boots, machines) if boots else []
    (out / "report.json").write_text(json.dumps(report(found, told), indent=2))
    print(summary(found, told))
    return ExitCode.FAILED if found.failures or failed(told) else ExitCode.DONE


def published(stock: Stock) -> dict[str, Image]:
    """Return the lab's releases by version, as their manifests pin them."""
    found = {}
    for path in sorted((stock.repository / "targets/manifests").glob("*.json")):
        manifest = parse_manifest(path.read_bytes(), path.name)
        number = stock.number(manifest.version)
        if number is not None:
            image = Image(number, manifest.version, manifest.root.root_hash, manifest.uki.sha256)
            found[manifest.version] = image
    if not found:
        raise EnvironmentFailure("the lab's repository has no manifest", mend="build it anew", reason="lab-release")
    return found


def boot_spread(stock: Stock, recorded: Recorded, found: Walk, folder: Path, count: int, machines: int) -> list[Told]:
    """Boot a spread of the states for real, some machines at a time."""
    shutil.rmtree(folder, ignore_errors=True)
    chosen = spread(found, count)
    points = {point.epoch: point for point in chosen}
    told: list[Told] = []
    print(f"\n  {len(chosen)} states are booted for real", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="states-", dir=folder.parent) as scratch,
        ThreadPoolExecutor(machines) as pool,
    ):
        running: list[Future[Told]] = []
        for epoch, medium in states(recorded, sorted(points), Path(scratch)):
            place = folder / f"epoch-{epoch:05}"
            start = medium.freeze(place, recorded.disk_bytes, recorded.store_bytes)
            running.append(pool.submit(tell, stock, points[epoch], start, place))
            while len(running) > machines:
                told.append(_ended(running.pop(0)))
        told += map(_ended, running)
    return told


def report(found: Walk, told: Sequence[Told]) -> dict[str, object]:
    """Return the report's document."""
    return {
        "verdict": "fail" if found.failures or failed(told) else "pass",
        "points": found.points,
        "kinds": dict(found.kinds),
        "flush_boundaries": found.boundaries,
        "distinct_disks": len(found.distinct),
        "looked_at": found.looked_at,
        "writes": found.writes,
        "writes_by_region": dict(found.touched),
        "store_writes": found.store_writes,
        "signatures": sorted(found.signatures),
        "remarks": dict(found.remarks),
        "failures": [_words(point) for point in found.failures],
        "boots": [
            {
                "epoch": one.point.epoch,
                "order": one.point.judged.order,
                "passed": one.report.passed,
                "problem": one.report.problem,
                "boots": [f"{boot.slot}/{boot.release} {boot.outcome.value}" for boot in one.report.boots],
            }
            for one in told
        ],
    }


def summary(found: Walk, told: Sequence[Told]) -> str:
    """Return what a person reads at the end."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.most_common())
    lines = [
        f"{found.writes} writes to the disk in {found.boundaries} epochs, {found.store_writes} to the variable store",
        f"{found.points} points judged ({kinds})",
        f"{len(found.distinct)} distinct disks, {len(found.signatures)} kinds of state at flush boundaries",
        f"{len(told)} stories booted to their end, {len(failed(told))} ended badly",
        f"{len(found.failures)} failures",
    ]
    lines += [f"  FAILED {_words(point)}" for point in found.failures[:20]]
    lines += [f"  FAILED story of epoch {one.point.epoch}: {one.report.problem}" for one in failed(told)]
    return "\n".join(f"  {line}" for line in lines)


def _words(point: Point) -> str:
    return f"epoch {point.epoch}, {point.how or 'its end'}: {'; '.join(point.judged.complaints)}"


def _ended(future: Future[Told]) -> Told:
    one = future.result()
    boots = ", ".join(f"{boot.slot}/{boot.release} {boot.outcome.value}" for boot in one.report.boots)
    print(f"  epoch {one.point.epoch:5}  {'held' if one.report.passed else 'FAILED'}: {boots}", flush=True)
    return one


def _progress(done: int, total: int) -> None:
    if done == total or done % 50 == 0:
        print(f"\r  epoch {done} of {total}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
