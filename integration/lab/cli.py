"""The command `acl-lab`: boot the reference image, run scenarios, list them."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from integration.lab import cli_catalogue, cli_machines
from integration.lab.terms import DEFAULT_LAYOUT, Misuse
from updater.errors import ExitCode, UpdaterError

if TYPE_CHECKING:
    from updater.layouts import Layout

_EXAMPLES = """\
examples:
  acl-lab list                              the scenarios that ship with the lab, each in one sentence
  acl-lab run kernel-panic                  run one; live timeline, then a verdict
  acl-lab run mine.yaml power-cut-*         run files and shipped ones, by name or glob
  acl-lab run --all --json > lab.json       run everything, for a machine to read
  acl-lab faults --stage verity             the catalogue of faults, or a part of it
  acl-lab run --fault verity-data-flipped   the standard scenario around one fault
  acl-lab matrix --jobs 2                   every fault that has no verdict yet; ends with a table
  acl-lab report build/matrix               one report.html, junit.xml and report.json over many runs
  acl-lab boot                              boot a fresh node on release 1, and watch its console
  acl-lab boot --fault 1:panic              the same, with a fault
  acl-lab boot --secure-boot                the same, by a firmware that starts only what the lab's key has signed
  acl-lab boot --disk node.raw              your own image; what changes is kept in it
  acl-lab shell                             a root shell in that machine, from another terminal
  acl-lab shell --ssh -c 'acl-updater status'    one command, through the network
  acl-lab inject hang-userspace --dry-run   on a staging node: say how its next trial would be broken
  acl-lab mkdisk --layout flatcar           make an empty disk image of a layout

Reports (report.json, report.html, junit.xml) and a serial log of every boot lie in build/lab/<scenario>/.
Exit codes: 0 all passed, 1 a scenario failed, 2 usage, 5 a scenario is not sound, 7 the lab itself could not work.
Environment: ACL_LAB_ACCEL=tcg|kvm|auto (default auto), ACL_LAB_PATIENCE=2 doubles every time limit.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    if not arguments.verbose:
        # Ours alone: virt-firmware tells of every look at a variable store.
        for name in ("integration", "updater"):
            logging.getLogger(name).setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _leave)
    try:
        return int(arguments.run(arguments))
    except UpdaterError as error:
        print(f"acl-lab: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("acl-lab: interrupted; every machine is off", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


def _leave(number: int, frame: FrameType | None) -> None:
    # Through the context managers, so that no machine stays behind.
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="acl-lab",
        description="Boot the reference image in QEMU, inject failures, and judge from outside what happened.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say every command that is run")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the scenarios", description="List the scenarios that ship.")
    listing.add_argument("--json", action="store_true", help="write JSON")
    listing.set_defaults(run=_list)

    run = commands.add_parser(
        "run",
        help="run scenarios and judge them",
        description="Run scenarios one after another, each on its own copy of the factory disk.",
    )
    run.add_argument("scenario", nargs="*", help="a file, or the name or a glob of shipped scenarios")
    run.add_argument("--all", action="store_true", help="run every shipped scenario")
    run.add_argument(
        "--fault", action="append", default=[], metavar="NAME", help="the standard scenario around a fault (or a glob)"
    )
    run.add_argument("--short", action="store_true", help="arm the update after a fault, without booting it")
    run.add_argument("--tag", action="append", default=[], help="run the shipped scenarios that bear this tag")
    run.add_argument("--json", action="store_true", help="write the reports as one JSON document, and no timeline")
    run.add_argument("--out", type=Path, default=Path("build/lab"), help="folder for reports (default: %(default)s)")
    run.add_argument("--keep-disk", action="store_true", help="keep the disk and the variable store for a look")
    run.set_defaults(run=_run)

    boot = commands.add_parser(
        "boot",
        help="boot a fresh node and watch its console",
        description="Boot a copy of the factory disk and print its console until it powers off, or Ctrl-C.",
    )
    boot.add_argument(
        "--fault", action="append", default=[], metavar="RELEASE:NAME", help="a hook, or a fault of the catalogue"
    )
    boot.add_argument("--layout", default=DEFAULT_LAYOUT, metavar="NAME", help="the disk's (default: %(default)s)")
    boot.add_argument("--disk", type=Path, help="boot this raw disk image instead, and keep what changes")
    boot.add_argument("--secure-boot", action="store_true", help="by a firmware that starts what is signed alone")
    boot.add_argument(
        "--variables", type=Path, metavar="FILE", help="begin with a copy of this store of EFI variables, and its keys"
    )
    boot.add_argument("--out", type=Path, default=Path("build/lab/boot"), help="folder (default: %(default)s)")
    boot.add_argument("--memory", type=int, default=1024, metavar="MIB", help="memory (default: %(default)s MiB)")
    boot.set_defaults(run=_boot)

    cli_catalogue.add_parsers(commands)
    cli_machines.add_parsers(commands)

    mkdisk = commands.add_parser(
        "mkdisk",
        help="make a disk image from any layout",
        description="Make a disk image after a layout: its partition table, its boot and state file systems, and with "
        "--release a release in slot a, proven. Neither root nor a loop device is needed; the file is sparse.",
    )
    mkdisk.add_argument("--layout", metavar="NAME", help="a layout's name, or the path of its file")
    mkdisk.add_argument("--release", type=Path, metavar="FOLDER", help="what `acl-release build` left")
    mkdisk.add_argument("--sector", type=int, choices=(512, 4096), default=512, help="bytes (default: %(default)s)")
    mkdisk.add_argument("--seed", default="factory", help="all UUIDs follow from it (default: %(default)s)")
    mkdisk.add_argument("--out", type=Path, default=Path("node.raw"), metavar="FILE", help="(default: %(default)s)")
    mkdisk.add_argument("--secure-boot-key", type=Path, metavar="PEM", help="sign the loader with this key")
    mkdisk.add_argument("--secure-boot-certificate", type=Path, metavar="PEM", help="the key's certificate")
    mkdisk.add_argument("--force", action="store_true", help="write over a file that is there")
    mkdisk.set_defaults(run=_mkdisk)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    from integration.lab.scenario import find_scenarios, load_scenario

    scenarios = [load_scenario(path) for path in find_scenarios()]
    if arguments.json:
        rows = [{"name": s.name, "summary": s.summary, "tags": s.tags, "steps": len(s.steps)} for s in scenarios]
        print(json.dumps(rows, indent=2))
        return ExitCode.DONE
    width = max((len(scenario.name) for scenario in scenarios), default=0)
    for scenario in scenarios:
        print(f"{scenario.name:{width}}  {scenario.summary}")
    return ExitCode.DONE


def _run(arguments: argparse.Namespace) -> int:
    from integration.lab import terminal
    from integration.lab.catalogue import chosen_faults, compose
    from integration.lab.leftovers import sweep
    from integration.lab.own_stock import stock_for
    from integration.lab.report import junit, report_document
    from integration.lab.runner import execute
    from integration.lab.scenario import load_scenario

    faults = chosen_faults(arguments.fault) if arguments.fault else []
    scenarios = [compose(fault, short=arguments.short) for fault in faults]
    if arguments.scenario or arguments.tag or arguments.all or not scenarios:
        paths = chosen(arguments.scenario, arguments.tag, everything=arguments.all)
        scenarios += [load_scenario(path) for path in paths]
    live = None if arguments.json else terminal.Live()
    reports = []
    sweep(arguments.out)
    for scenario in scenarios:
        if live is not None:
            print(f"\n{scenario.name}: {scenario.summary}\n", flush=True)
        stock = stock_for(scenario)
        try:
            report = execute(
                stock,
                scenario,
                arguments.out / scenario.name,
                tell=live.tell if live else None,
                show=live.show if live else None,
                keep_disk=arguments.keep_disk,
            )
        finally:
            if live is not None:
                live.close()
        reports.append(report)
        if live is not None:
            terminal.summary(report)
    (arguments.out / "junit.xml").write_bytes(junit(reports))
    if arguments.json:
        print(json.dumps([report_document(report) for report in reports], indent=2))
    if all(report.passed for report in reports):
        return ExitCode.DONE
    return ExitCode.ENVIRONMENT if any(report.error for report in reports) else ExitCode.FAILED


def _mkdisk(arguments: argparse.Namespace) -> int:
    from updater.layouts import load_layout

    if arguments.layout is None and arguments.release is None:
        raise Misuse("no layout was named", mend="give --layout NAME, or --release FOLDER", reason="no-layout")
    if (arguments.secure_boot_key is None) != (arguments.secure_boot_certificate is None):
        raise Misuse("a key goes with its certificate", mend="give both or none", reason="no-certificate")
    disk: Path = arguments.out
    if disk.exists() and not arguments.force:
        raise Misuse(f"{disk} is there already", mend="give --force, or another --out", reason="file-exists")
    fresh = disk.with_name(f"{disk.name}.new")
    layout = load_layout(arguments.layout) if arguments.layout else None
    try:
        if arguments.release is not None:
            _make_with_release(arguments, fresh, layout)
        elif layout is not None:
            from integration.images.new_disk import make_empty_disk

            make_empty_disk(layout, fresh, seed=arguments.seed, sector_bytes=arguments.sector)
        fresh.rename(disk)
    finally:
        fresh.unlink(missing_ok=True)
    name = f" --layout {arguments.layout}" if arguments.layout else ""
    print(f"{disk}: `acl-updater layout show{name} --disk {disk}` draws it")
    return ExitCode.DONE


def _make_with_release(arguments: argparse.Namespace, disk: Path, layout: Layout | None) -> None:
    from integration.images.disk import make_factory_disk
    from integration.images.tooltree import tool_tree
    from updater.manifest import parse_manifest
    from updater.release.build import BuiltRelease
    from updater.release.uki import SecureBoot

    path = arguments.release / "manifest.json"
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise Misuse(f"there is no release in {arguments.release}: {error}", mend="build one first") from error
    release = BuiltRelease(arguments.release, manifest)
    make_factory_disk(
        release,
        disk,
        tool_tree(),
        seed=arguments.seed,
        layout=layout,
        sector_bytes=arguments.sector,
        signing=SecureBoot(arguments.secure_boot_key, arguments.secure_boot_certificate)
        if arguments.secure_boot_key
        else None,
    )


def chosen(names: Sequence[str], tags: Sequence[str], *, everything: bool) -> list[Path]:
    """Return the scenario files that a command line names; raise Misuse for a name that there is not."""
    import fnmatch

    from integration.lab.scenario import find_scenarios, load_scenario

    shipped = find_scenarios()
    paths: list[Path] = list(shipped) if everything else []
    paths += [path for path in shipped if set(tags) & set(load_scenario(path).tags)]
    for name in names:
        found = [path for path in shipped if fnmatch.fnmatchcase(path.stem, name)]
        if not found and Path(name).is_file():
            found = [Path(name)]
        if not found:
            raise Misuse(f"there is no scenario {name!r}", mend="see `acl-lab list`", reason="no-scenario")
        paths += found
    if not paths:
        raise Misuse("no scenario was named", mend="name one of `acl-lab list`, or give --all")
    return list(dict.fromkeys(paths))


def _boot(arguments: argparse.Namespace) -> int:
    from integration.lab.booting import to_boot
    from integration.lab.boots import Event, Observer
    from integration.lab.machine import Machine
    from integration.lab.serial import plain

    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    start = to_boot(
        folder,
        layout=arguments.layout,
        disk=arguments.disk,
        variables=arguments.variables,
        secure_boot=arguments.secure_boot,
        memory_mib=arguments.memory,
        faults=arguments.fault,
    )

    def tell(event: Event) -> None:
        print(f"\x1b[36m── {event.text}\x1b[0m", flush=True)

    def show(data: bytes) -> None:
        for line in data.decode("utf-8", "replace").split("\n"):
            if shown := plain(line):
                print(shown, flush=True)

    disk = start.disk
    observer = Observer(folder, releases=start.versions, look=disk.look, tell=tell, show=show)
    with Machine(start.emulator, disk=disk.path, folder=folder, observer=observer, hardware=start.hardware) as machine:
        machine.given = start.given
        print(f"acl-lab: `acl-lab shell {folder}` opens a root shell in it", file=sys.stderr)
        print(f"acl-lab: so does `ssh -F {folder}/ssh-config node`, once it has a network", file=sys.stderr)
        machine.power_on()
        with contextlib.suppress(KeyboardInterrupt):
            while machine.is_on:
                machine.pause(1.0)
    return ExitCode.DONE
