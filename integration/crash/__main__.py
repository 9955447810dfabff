"""`make crash`: every power cut of a recorded update, judged offline, and a spread of them booted for real."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from integration.crash.epochs import Depth
from integration.crash.proof import Proof, boot_spread, published
from integration.crash.recording import WHOLE, record
from integration.crash.replay import walk
from integration.crash.report import report, summary
from integration.crash.story import failed, sweep
from integration.lab.factory import make_stock
from integration.lab.terms import DEFAULT_LAYOUT
from updater.errors import ExitCode, UpdaterError

_LAYOUTS = (DEFAULT_LAYOUT, "dps-root-efi")
_EPILOG = """
The recording is kept and used again until a source changes that reaches an image. Stories that ended well are not
told again; --again tells them all. Ctrl-C leaves a report of what was seen so far.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; return 0 only if no state failed."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.crash",
        description="Record a whole update in QEMU, cut it at every write, and judge and boot what would be left.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--layout", choices=_LAYOUTS, default=DEFAULT_LAYOUT, help="what is recorded (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help=f"folder (default: build/crash; build/crash-{_LAYOUTS[1]} for that)")
    parser.add_argument("--boots", type=int, default=25, help="states to boot for real (default: %(default)s)")
    parser.add_argument(
        "--live",
        type=int,
        help="stories whose next update the node takes by itself, the host the others' (default: all)",
    )
    parser.add_argument("--machines", type=int, default=2, help="machines at a time (default: %(default)s)")
    parser.add_argument("--subsets", type=int, default=3, help="seeded subsets in each epoch (default: %(default)s)")
    parser.add_argument("--most-single", type=int, help="single writes dropped in each epoch (default: every one)")
    parser.add_argument("--again", action="store_true", help="boot every state anew")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="  %(message)s", stream=sys.stdout)
    # What reads a variable store says so each time.
    logging.getLogger("integration").setLevel(logging.INFO)
    depth = Depth(arguments.subsets, arguments.most_single)
    layout = arguments.layout
    out = arguments.out or Path("build/crash" if layout == DEFAULT_LAYOUT else f"build/crash-{layout}")
    proof = Proof(out.resolve())
    try:
        _prove(proof, depth, arguments)
    except UpdaterError as error:
        print(f"\ncrash: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        _end(proof)
        sweep(proof.out / "boots")
        print("\ncrash: interrupted; run it again to go on", file=sys.stderr, flush=True)
        # Machines live in threads that would be waited for; the kernel ends each QEMU with its thread.
        os._exit(int(ExitCode.INTERRUPTED))
    _end(proof)
    return ExitCode.FAILED if proof.found.failed or failed(proof.told) else ExitCode.DONE


def _prove(proof: Proof, depth: Depth, arguments: argparse.Namespace) -> None:
    stock = make_stock(arguments.layout)
    recorded = record(stock, proof.out / "recording", WHOLE)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="walk-", dir=proof.out) as scratch:
        proof.found = walk(recorded, published(stock), Path(scratch), depth, progress=_progress)
    proof.seconds = time.monotonic() - began
    print(flush=True)
    _write(proof)
    if arguments.boots:
        boot_spread(
            stock,
            recorded,
            proof,
            arguments.boots,
            arguments.machines,
            again=arguments.again,
            live=arguments.live,
            each=lambda: _write(proof),
        )


def _write(proof: Proof) -> None:
    document = report(proof.found, proof.told, seconds=proof.seconds)
    (proof.out / "report.json").write_text(json.dumps(document, indent=2) + "\n")


def _end(proof: Proof) -> None:
    if proof.found.points:
        _write(proof)
        print(f"\n{summary(proof.found, proof.told, seconds=proof.seconds)}\n\n  report: {proof.out / 'report.json'}")


def _progress(done: int, total: int, points: int) -> None:
    if done == total or done % 10 == 0:
        end = "\r" if sys.stdout.isatty() and done != total else "\n"
        if end == "\r" or done == total or done % 100 == 0:
            print(f"  epoch {done} of {total}, {points} points", end=end, flush=True)


if __name__ == "__main__":
    sys.exit(main())
