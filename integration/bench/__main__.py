"""`python -m integration.bench`: run the benchmarks and write their report."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from functools import reduce
from pathlib import Path

from integration.bench.course import full, quick
from integration.bench.page import page
from integration.bench.report import Report, now, ratios, this_machine, this_source, update_page
from integration.bench.run import Bench, Record
from updater.errors import ExitCode, UpdaterError

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs/benchmarks.md"
_QUICK_S = 150.0
_GRACE_S = 25.0


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    args = _arguments()
    logging.basicConfig(
        level=logging.WARNING if args.quick and not args.verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    if args.again:
        earlier = [Report.parse(path.read_text()) for path in args.again]
        return _finish(args, reduce(Report.followed_by, earlier))
    # A stopped run leaves no namespaces behind, and a report of what it saw.
    for stop in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(stop, lambda *_: sys.exit(int(ExitCode.INTERRUPTED)))
    course = quick() if args.quick else full(args.runs, args.sizes, args.pairs)
    name = "quick" if args.quick else "report"
    source = this_source(TOP)
    began, clock, load = now(), time.monotonic(), os.getloadavg()[0]

    def report(record: Record) -> Report:
        machine = this_machine(args.folder, load)
        return Report(course.name, began, time.monotonic() - clock, machine, bench.versions, record, source)

    def save(record: Record) -> None:
        _replace(args.folder / f"{name}.json", report(record).as_json())
        _replace(args.folder / f"{name}.html", page(report(record)))

    code = ExitCode.DONE
    deadline_s = args.deadline or (_QUICK_S if args.quick else None)
    if deadline_s:
        # What is being made then is not waited for much longer.
        signal.alarm(int(deadline_s + _GRACE_S))
    try:
        bench = Bench(args.folder, args.only, deadline_s, save)
    except UpdaterError as error:
        print(f"bench: {error}", file=sys.stderr)
        return int(error.exit_code)
    try:
        bench.go(course)
    except UpdaterError as error:
        print(f"bench: {error}", file=sys.stderr)
        bench.record.notes["cut short"] = str(error)
        code = error.exit_code
    except (KeyboardInterrupt, SystemExit):
        bench.record.notes.setdefault("cut short", "the run was stopped before its end")
        code = ExitCode.INTERRUPTED
    signal.alarm(0)
    save(bench.record)
    _finish(args, report(bench.record))
    print(f"\n{args.folder / name}.html, {name}.json", file=sys.stderr)
    return int(code)


def _finish(args: argparse.Namespace, found: Report) -> int:
    print(ratios(found) if args.quick else found.as_markdown(), end="")
    if args.write_page and found.record.samples:
        update_page(PAGE, found.as_markdown())
    return int(ExitCode.DONE)


def _replace(target: Path, text: str) -> None:
    partial = target.with_suffix(f"{target.suffix}.partial")
    partial.write_text(text)
    partial.replace(target)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m integration.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small pair once, ratios only, under three minutes")
    parser.add_argument("--folder", type=Path, default=TOP / "build/bench", help="where it works (default build/bench)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="how often each local update is repeated")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="only these contenders; K:NAME for one pair"
    )
    parser.add_argument("--pairs", nargs="*", default=["S", "K"], metavar="PAIR", help="the pairs (default S K)")
    parser.add_argument("--sizes", nargs="*", type=int, default=[256, 1024, 2048, 5120], metavar="MIB")
    parser.add_argument("--deadline", type=float, metavar="S", help="begin nothing after so many seconds, end soon")
    parser.add_argument("--write-page", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument(
        "--again", nargs="+", type=Path, metavar="JSON", help="run nothing: the tables of these reports"
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
