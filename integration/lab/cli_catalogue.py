"""The commands of `acl-lab` around the catalogue of faults: `faults`, `matrix`, `report`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from integration.lab.terminal import painter
from integration.lab.terms import Misuse
from updater.errors import ExitCode

if TYPE_CHECKING:
    from integration.lab.catalogue import FaultFile
    from integration.lab.matrix import Judged, Matrix

_COLOURS = {"pass": "32", "fail": "1;31", "error": "1;35"}
_SHOWN_PROBLEM = 160


def add_parsers(commands: Any) -> None:
    """Add the parsers of these commands."""
    faults = commands.add_parser(
        "faults",
        help="list the faults of the catalogue, or show one",
        description="List the faults of the catalogue by stage; with a name, show one: why it matters, how it gets in, "
        "what must happen, and the scenario that `acl-lab run --fault` makes of it.",
    )
    faults.add_argument("fault", nargs="?", metavar="NAME", help="a fault's name or file")
    faults.add_argument("--stage", action="append", default=[], help="only this stage; may be repeated")
    faults.add_argument("--json", action="store_true", help="write JSON")
    faults.set_defaults(run=_faults)

    matrix = commands.add_parser(
        "matrix",
        help="run every fault of the catalogue, or what is missing",
        description="Run all faults, those without a boot first. A fault that has a verdict for the same sources is "
        "not run again, so that an interrupted matrix goes on where it stopped. Ends with a table, and the merged "
        "report in OUT.",
    )
    matrix.add_argument("fault", nargs="*", metavar="FAULT", help="names, globs or files (default: all)")
    matrix.add_argument("--stage", action="append", default=[], help="only this stage; may be repeated")
    matrix.add_argument("--offline", action="store_true", help="only the faults that need no boot")
    matrix.add_argument("--again", action="store_true", help="run also what has a verdict")
    matrix.add_argument("--short", action="store_true", help="arm the update after the fault, without booting it")
    matrix.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time (default: %(default)s)")
    matrix.add_argument("--json", action="store_true", help="write the verdicts as JSON, and no table")
    matrix.add_argument("--out", type=Path, default=Path("build/matrix"), help="folder (default: %(default)s)")
    matrix.set_defaults(run=_matrix)

    report = commands.add_parser(
        "report",
        help="merge the reports of a folder into one",
        description="Write report.html, report.json and junit.xml over all runs whose reports lie in FOLDER. With "
        "--recovery-times write nothing, and print a table: how long it took from the failure of a release to a "
        "healthy old one, by class of faults, over the runs that passed in all FOLDERs.",
    )
    report.add_argument("folder", nargs="+", type=Path, help="the --out of `acl-lab run` or `matrix`")
    report.add_argument("--recovery-times", action="store_true", help="print the times from failure to health")
    report.add_argument("--json", action="store_true", help="print the verdicts, or the times, as JSON")
    report.set_defaults(run=_report)


def _faults(arguments: argparse.Namespace) -> int:
    from integration.lab.catalogue import STAGES, chosen_faults

    _check_stages(arguments.stage)
    if arguments.fault:
        return _show(chosen_faults([arguments.fault]), as_json=arguments.json)
    faults = chosen_faults([], stages=arguments.stage)
    if arguments.json:
        print(json.dumps([_document(fault) for fault in faults], indent=2))
        return ExitCode.DONE
    width = max((len(fault.name) for fault in faults), default=0)
    for stage in STAGES:
        of_stage = [fault for fault in faults if fault.stage == stage]
        if of_stage:
            print(f"\n{stage}")
        for fault in of_stage:
            boots = "  " if fault.needs_boots else "· "
            print(f"  {boots}{fault.name:{width}}  {fault.why}")
    print(f"\n{len(faults)} faults; those with a dot need no boot. `acl-lab faults NAME` shows one.")
    return ExitCode.DONE


def _show(faults: list[FaultFile], *, as_json: bool) -> int:
    from integration.lab.catalogue import compose
    from integration.lab.runner import describe

    if as_json:
        print(json.dumps([_document(fault) for fault in faults], indent=2))
        return ExitCode.DONE
    for fault in faults:
        scenario = compose(fault)
        print(f"{fault.name} ({fault.stage})\n{textwrap.indent(textwrap.fill(fault.why, 100), '  ')}\n")
        print("  Its scenario:")
        for number, step in enumerate(scenario.steps, 1):
            text = textwrap.shorten(describe(step), 400)
            print(textwrap.fill(text, 110, initial_indent=f"  {number:3d} ", subsequent_indent="      "))
        if fault.shortfall:
            print(f"\n  Known to fall short: {fault.shortfall}")
        where = "in seconds, without a boot" if not fault.needs_boots else "on a machine"
        print(f"\n  `acl-lab run --fault {fault.name}` runs it {where}.")
    return ExitCode.DONE


def _document(fault: FaultFile) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(fault)
    return {**plain, "needs_boots": fault.needs_boots}


def _matrix(arguments: argparse.Namespace) -> int:
    from integration.lab.catalogue import chosen_faults, fault_paths
    from integration.lab.matrix import Matrix
    from integration.lab.merged import find_reports, write_merged

    _check_stages(arguments.stage)
    faults = chosen_faults(arguments.fault, stages=arguments.stage)
    if arguments.offline:
        faults = [fault for fault in faults if not fault.needs_boots]
    if not faults:
        raise Misuse("no fault is chosen", mend="see `acl-lab faults`", reason="no-fault")
    arguments.out.mkdir(parents=True, exist_ok=True)
    screen = _Screen(sys.stderr if arguments.json else sys.stdout)
    paths = {path.stem: path for path in fault_paths(arguments.fault)}
    matrix = Matrix(arguments.out, jobs=max(1, arguments.jobs), short=arguments.short, tell=screen.draw, paths=paths)
    try:
        results = matrix.run(faults, again=arguments.again)
    finally:
        screen.close()
    documents = find_reports(arguments.out) if any(arguments.out.glob("*/report.json")) else []
    if documents:
        write_merged(arguments.out, documents)
    if arguments.json:
        print(json.dumps([_row(one) for one in results], indent=2))
    else:
        _table(results, sys.stdout)
        print(f"\n{arguments.out / 'report.html'}")
    return _exit_code([one.verdict for one in results])


def _row(one: Judged) -> dict[str, Any]:
    return {
        "name": one.fault.name,
        "stage": one.fault.stage,
        "verdict": one.verdict,
        "boots": one.boots,
        "seconds": round(one.seconds, 1),
        "problem": one.problem,
        "remembered": one.remembered,
    }


def _table(results: list[Judged], out: TextIO) -> None:
    paint = painter(out)
    width = max(len(one.fault.name) for one in results)
    print(f"\n{'verdict':8} {'fault':{width}} {'stage':10} boots   took", file=out)
    for one in results:
        verdict = paint(f"{one.verdict:8}", _COLOURS[one.verdict])
        took = "known" if one.remembered else f"{one.seconds:.0f} s"
        print(f"{verdict} {one.fault.name:{width}} {one.fault.stage:10} {one.boots:5d} {took:>6}", file=out)
        if one.problem:
            print(textwrap.indent(textwrap.shorten(one.problem, 2 * _SHOWN_PROBLEM), " " * 9), file=out)
    counts = Counter(one.verdict for one in results)
    print("\n" + ", ".join(f"{counts[word]} {word}" for word in ("pass", "fail", "error") if counts[word]), file=out)


def _report(arguments: argparse.Namespace) -> int:
    from integration.lab.merged import find_reports, problem_of, verdict_of, write_merged

    if arguments.recovery_times:
        return _recovery_times(arguments.folder, as_json=arguments.json)
    if len(arguments.folder) != 1:
        raise Misuse(
            "reports of several folders are not merged", mend="give one folder, or --recovery-times", reason="no-folder"
        )
    (folder,) = arguments.folder
    documents = find_reports(folder)
    written = write_merged(folder, documents)
    verdicts = [verdict_of(one) for one in documents]
    if arguments.json:
        rows = [
            {"name": one["name"], "verdict": verdict_of(one), "seconds": one.get("seconds"), "problem": problem_of(one)}
            for one in documents
        ]
        print(json.dumps(rows, indent=2))
    else:
        counts = Counter(verdicts)
        print(", ".join(f"{counts[word]} {word}" for word in ("pass", "fail", "error") if counts[word]))
        print("\n".join(str(path) for path in written))
    return _exit_code(verdicts)


def _recovery_times(folders: list[Path], *, as_json: bool) -> int:
    from integration.lab.catalogue import STAGES, fault_paths, load_fault
    from integration.lab.merged import find_reports
    from integration.lab.recovery_time import markdown, plain, table
    from integration.lab.scenario import find_scenarios, load_scenario

    kinds: dict[str, str] = {path.stem: load_fault(path).stage for path in fault_paths([])}
    for path in find_scenarios():
        stages = [tag for tag in load_scenario(path).tags if tag in STAGES]
        kinds.setdefault(path.stem, stages[-1] if stages else "other")
    documents = [document for folder in folders for document in find_reports(folder)]
    rows = table(documents, lambda name: kinds.get(name, "other"), STAGES)
    if not rows:
        raise Misuse(
            "no run in these folders fell back and passed", mend="run faults that end `back`", reason="no-recovery"
        )
    if as_json:
        print(json.dumps(plain(rows), indent=2))
        return ExitCode.DONE
    print(markdown(rows))
    print("Seconds as least / median / most. A failure counts from its first sign on the console (a boot without one")
    print("from its power-on), health from the moment at which the old release reached multi-user.target.")
    return ExitCode.DONE


def _exit_code(verdicts: list[str]) -> int:
    if "error" in verdicts:
        return ExitCode.ENVIRONMENT
    return ExitCode.FAILED if "fail" in verdicts else ExitCode.DONE


def _check_stages(stages: list[str]) -> None:
    from integration.lab.catalogue import STAGES

    for stage in stages:
        if stage not in STAGES:
            raise Misuse(f"there is no stage {stage!r}", mend=f"use one of {', '.join(STAGES)}", reason="no-stage")


class _Screen:
    """What a matrix shows while it runs: a live line on a terminal, a line for each verdict elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told = 0
        self._live = out.isatty()
        self._paint = painter(out)

    def draw(self, matrix: Matrix) -> None:
        for one in matrix.done[self._told :]:
            self._clear()
            words = f"  {textwrap.shorten(one.problem, _SHOWN_PROBLEM)}" if one.problem else ""
            took = "known already" if one.remembered else f"{one.seconds:.0f} s, {one.boots} boots"
            verdict = self._paint(f"{one.verdict:6}", _COLOURS[one.verdict])
            self._out.write(f"{verdict} {one.fault.name}  ({took}){words}\n")
        self._told = len(matrix.done)
        if self._live:
            self._clear()
            line = (
                f"{len(matrix.done)} done, {len(matrix.waiting)} to come; now {', '.join(matrix.running) or 'nothing'}"
            )
            self._out.write(line[: shutil.get_terminal_size((100, 24)).columns - 1])
        self._out.flush()

    def close(self) -> None:
        self._clear()
        self._out.flush()

    def _clear(self) -> None:
        if self._live:
            self._out.write("\r\x1b[K")
