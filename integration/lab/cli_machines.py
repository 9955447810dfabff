"""The commands of `acl-lab` that reach into one machine: `shell` and `inject`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from integration.lab.terms import Misuse
from updater.errors import ExitCode


def add_parsers(commands: Any) -> None:
    """Add the parsers of these commands."""
    shell = commands.add_parser(
        "shell",
        help="a root shell in a machine that `acl-lab boot` started",
        description="Open a root shell on the second serial port of the machine in FOLDER; Ctrl-] leaves it. It works "
        "without a network, and as soon as PID 1 of the release runs. With --ssh it is `ssh` with a key of this "
        "machine's own: several at once, with pipes; FOLDER/ssh-config is for `ssh -F`.",
    )
    shell.add_argument("folder", nargs="?", type=Path, default=Path("build/lab/boot"), help="the --out of `boot`")
    shell.add_argument("-c", "--command", metavar="COMMAND", help="run this, print its output, exit with its code")
    shell.add_argument("--ssh", action="store_true", help="through the network, once the guest has one")
    shell.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="for -c and a server to answer (default: %(default)g)"
    )
    shell.set_defaults(run=_shell)

    inject = commands.add_parser(
        "inject",
        help="break the next trial of this staging node, once",
        description="Arm a fault on the node where this runs. It strikes once, in the first boot of another release, "
        "and removes itself before it does. The node must allow it in /etc/acl-updater/lab.yaml: `format: 1`, "
        "`allow: true`, and optionally `faults: [globs]` and `until: 2026-12-01T00:00:00Z`.",
    )
    inject.add_argument("fault", nargs="?", metavar="NAME", help="a fault's name or file: see `acl-lab faults`")
    inject.add_argument("--next-boot", action="store_true", help="strike in the next boot, whatever release it is")
    inject.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    inject.add_argument("--remove", action="store_true", help="take away what is armed")
    inject.add_argument("--json", action="store_true", help="write JSON")
    inject.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    inject.set_defaults(run=_inject)


def _shell(arguments: argparse.Namespace) -> int:
    from integration.lab import ssh
    from integration.lab.shell import connect, interact, run_command

    if arguments.ssh:
        words = [arguments.command] if arguments.command is not None else []
        return ssh.run(arguments.folder, words, timeout_s=arguments.timeout)
    with connect(arguments.folder) as connection:
        if arguments.command is not None:
            try:
                code, output = run_command(connection, arguments.command, timeout_s=arguments.timeout)
            except KeyboardInterrupt:
                print("acl-lab: interrupted; the command and its machine go on", file=sys.stderr)
                return ExitCode.INTERRUPTED
            sys.stdout.write(output)
            return code
        print("acl-lab: Ctrl-] leaves this shell; the machine goes on", file=sys.stderr)
        interact(connection)
        print(file=sys.stderr)
    return ExitCode.DONE


def _inject(arguments: argparse.Namespace) -> int:
    from integration.lab import staging
    from integration.lab.catalogue import chosen_faults

    root: Path = arguments.root
    if arguments.remove:
        was = staging.armed(root)
        staging.remove(root)
        print(json.dumps({"removed": was}) if arguments.json else f"removed: {was or 'nothing was armed'}")
        return ExitCode.DONE
    if arguments.fault is None:
        now = staging.armed(root)
        if now is None:
            raise Misuse(
                "nothing is armed, and no fault was named", mend="name one of `acl-lab faults`", reason="no-fault"
            )
        print(json.dumps({"armed": now}) if arguments.json else f"armed: {now}")
        return ExitCode.DONE
    faults = chosen_faults([arguments.fault])
    if len(faults) != 1:
        raise Misuse(f"{arguments.fault!r} names {len(faults)} faults", mend="name one", reason="no-fault")
    staging.permitted(root, faults[0].name)
    injection = staging.plan(faults[0], root, "next-boot" if arguments.next_boot else "trial")
    if not arguments.dry_run:
        staging.arm(injection, root)
    if arguments.json:
        print(
            json.dumps({"fault": injection.fault, "armed": not arguments.dry_run, "files": injection.files}, indent=2)
        )
        return ExitCode.DONE
    verb = "would strike" if arguments.dry_run else "strikes"
    print(f"{injection.fault} {verb} once, in {injection.moment}: {faults[0].why}")
    for name, text in injection.files.items():
        print(f"\n/{name}\n{textwrap.indent(text.rstrip(), '  ')}")
    if not arguments.dry_run:
        print("\nIt removes itself before it strikes; `acl-lab inject --remove` takes it away now.")
    return ExitCode.DONE
