"""Writes the disk and the variable store of one cut into files, to be looked at or booted by hand."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from integration.crash.epochs import Cut, Kind
from integration.crash.recording import recorded_in
from integration.crash.replay import freeze
from updater.errors import ExitCode, UpdaterError

_POINT = re.compile(r"epoch (?P<epoch>\d+), (?P<kind>.+?)(?: (?P<at>\d+))?$")


def main(argv: Sequence[str] | None = None) -> int:
    """Write `cut.raw` and `cut.fd` into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.crash.freeze",
        description="Write one state of a recording as a disk image (cut.raw) and a variable store (cut.fd).",
    )
    parser.add_argument("recording", type=Path, help="folder of the recording, such as build/crash/recording")
    parser.add_argument("point", type=parse_point, help='as a report tells it: "epoch 301, up to write 12990"')
    parser.add_argument("out", type=Path, help="folder to write into")
    arguments = parser.parse_args(argv)
    epoch, cut = arguments.point
    try:
        recorded = recorded_in(arguments.recording)
        with tempfile.TemporaryDirectory(prefix="freeze-") as scratch:
            disk, store = freeze(recorded, epoch, cut, Path(scratch), arguments.out)
    except UpdaterError as error:
        print(f"freeze: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(f"{disk}\n{store}")
    return ExitCode.DONE


def parse_point(text: str) -> tuple[int, Cut]:
    """Return the epoch and the cut that a report's words mean; raise ArgumentTypeError."""
    found = _POINT.fullmatch(text.strip())
    kind = next((kind for kind in Kind if found and kind.value == found["kind"]), None)
    if found is None or kind is None or (found["at"] is None) != (kind is Kind.END):
        raise argparse.ArgumentTypeError(f"{text!r} is no point: write it as a report does, 'epoch 12, seed 0'")
    return int(found["epoch"]), Cut(kind, int(found["at"] or 0))


if __name__ == "__main__":
    sys.exit(main())
