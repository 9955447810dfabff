"""The command `acl-release`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from updater import __version__
from updater.release.build_command import add_build_arguments, run_build

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = """\
Build, sign and publish releases for nodes that run acl-updater.

A repository is a folder that any static web server can serve. Its keys are files, one per role; keep the root and
targets keys offline: only `repo init`, `rotate-key` and `reset-epoch` need them (docs/trust.md).
"""

EXAMPLES = """\
examples, in the order in which a new publisher needs them:
  acl-release keys init                           make keys in ./keys, one per role
  acl-release repo init                           make a signed, empty repository in ./repo
  acl-release build --help                        make a release from a root tree or a root image
  acl-release publish out/1.0.0                   publish what build made; nodes do not take it yet
  acl-release delta add --from 0.7.0 --to 1.0.0   a delta that publish did not make
  acl-release promote 1.0.0 --channel stable      let the channel offer it
  acl-release serve                               try it over HTTP on this machine
  acl-release refresh                             renew what expires soon: run it daily
  acl-release withdraw 1.0.0 --why "breaks DNS"   nobody installs it any more
  acl-release verify                              prove the whole repository as a client would

exit codes: 0 done · 1 failed · 2 wrong usage · 4 refused · 5 invalid document · 6 not trusted · 7 machine or network
"""

_PUBLISH = """\
example:
  acl-release publish out/1.0.0 out/1.1.0

Each folder is an output of `acl-release build`. Every file is proven against its manifest, images block by block, and
becomes visible with one last flushed write. Publishing the same again changes nothing; a version that is published
with other bytes is refused.

First what nodes fetch is made (docs/release-format.md): compressed frames, a pack of the blocks that are new, and
deltas from the releases before. This takes some minutes of all processors; `--level` trades them for what nodes fetch.
"""

_DELTA_ADD = """\
example:
  acl-release delta add --from 1.0.0 --to 4.0.0

For nodes that run a release for which publishing made no delta, or that shall go back. The manifest of the newer one
stays as it is: the deltas are named in a signed document beside it, and nodes take them like the others from their next
check on. Needs the keys that publish needs; takes some minutes of all processors.
"""

_WITHDRAW = """\
example:
  acl-release withdraw 1.2.0 --why "kubelet leaks memory, incident 4711" --instead 1.1.0

Nodes that have staged or armed the release refuse it from their next check on; nodes that run it say so in `status`.
A channel that offers it goes to --instead, else back to what it offered before, else it offers nothing.
"""

_ROTATE = """\
examples:
  acl-release rotate-key timestamp            the key that signs most often; needs the root keys
  acl-release rotate-key channels             needs the targets key
  acl-release rotate-key root-2               one of the root keys; needs a threshold of old and new ones

At no instant would a node refuse the repository. An interrupted rotation goes on when it is run again.
"""


def parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    top = argparse.ArgumentParser(
        prog="acl-release",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"acl-release {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    _fill(shared, suppress=True)
    _fill(top, suppress=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, epilog: str = "", *, under: Verbs | None = None) -> argparse.ArgumentParser:
        return (under or commands).add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            parents=[shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    keys = add("keys", "make keys").add_subparsers(dest="verb", metavar="VERB", required=True)
    make = add("init", "make a key for each role", under=keys)
    make.add_argument("--scheme", choices=("ed25519", "ecdsa"), default="ed25519", help="ecdsa is what most KMS offer")
    make.add_argument("--root-keys", type=int, default=3, metavar="N", help="how many root keys (default 3)")
    make.add_argument("--passphrase", action="store_true", help="encrypt: from ACL_RELEASE_PASSPHRASE, or asked for")

    repo = add("repo", "make a repository").add_subparsers(dest="verb", metavar="VERB", required=True)
    init = add("init", "make a signed, empty repository", under=repo)
    init.add_argument("--root-threshold", type=int, metavar="N", help="signatures a new root needs (default 2)")
    init.add_argument(
        "--expires",
        action="append",
        default=[],
        metavar="ROLE=DURATION",
        help="how long a role's metadata lives, such as timestamp=12h; may be repeated",
    )
    init.add_argument(
        "--deltas",
        type=_count,
        default=3,
        metavar="N",
        help="from how many kept releases `publish` makes deltas (default: %(default)s; `deltas` in acl-release.json)",
    )

    add_build_arguments(add("build", "make a release from a root tree or a root image"))
    publish = add("publish", "publish built releases", _PUBLISH)
    publish.add_argument("folders", nargs="+", type=Path, metavar="OUT_DIR", help="an output folder of build")
    publish.add_argument(
        "--deltas",
        type=_count,
        metavar="N",
        help="make deltas from the N kept releases before it (default: the repository's own, see `repo init`)",
    )
    publish.add_argument(
        "--level",
        type=_level,
        default=19,
        metavar="N",
        help="zstd level of frames and packs, 1 to 22: 3 takes seconds, and nodes fetch a quarter more (default: "
        "%(default)s)",
    )
    publish.add_argument("--no-frames", action="store_true", help="let whole images travel uncompressed")
    publish.add_argument("--no-packs", action="store_true", help="make no packs: nodes without a delta fetch it whole")
    publish.add_argument("--plain", action="store_true", help="make nothing of this: image and UKI travel as they are")
    deltas = add("delta", "add deltas to published releases")
    verbs = deltas.add_subparsers(dest="verb", metavar="VERB", required=True)
    delta = add("add", "make the delta from one published release to another", _DELTA_ADD, under=verbs)
    delta.add_argument("--from", required=True, dest="source", metavar="VERSION", help="what nodes run")
    delta.add_argument("--to", required=True, dest="target", metavar="VERSION", help="what they shall run")
    promote = add("promote", "let a channel offer a release")
    promote.add_argument("release", metavar="VERSION")
    promote.add_argument("--channel", required=True, metavar="NAME")
    withdraw = add("withdraw", "forbid a release to all nodes", _WITHDRAW)
    withdraw.add_argument("release", metavar="VERSION")
    withdraw.add_argument("--why", required=True, metavar="TEXT", help="shown to every operator")
    withdraw.add_argument("--instead", metavar="VERSION", help="what its channels offer from now on")
    refresh = add("refresh", "renew the metadata that expires soon; needs the online keys only")
    refresh.add_argument(
        "--role", action="append", default=[], metavar="ROLE", help="renew this role too; may be repeated"
    )
    rotate = add("rotate-key", "replace a key", _ROTATE)
    rotate.add_argument("key", metavar="NAME", help="a role, or a key's name such as root-2")
    rotate.add_argument("--scheme", choices=("ed25519", "ecdsa"), default="ed25519")
    reset = add("reset-epoch", "let nodes lower their floor of security epochs; signed by the root")
    reset.add_argument("floor", type=int, metavar="N")
    verify = add("verify", "prove a whole repository as a client would")
    verify.add_argument("--url", metavar="URL", help="prove what is served there, by the roots in --repo")
    add("status", "show roles, expiries, channels and releases")
    serve = add("serve", "serve the repository over HTTP, for development")
    serve.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1")
    serve.add_argument("--port", type=int, default=8080, help="default 8080; 0 takes a free one")
    return top


def _fill(target: argparse.ArgumentParser, *, suppress: bool) -> None:
    """Add the options that may stand before or after the command; the later parser must not reset the earlier one."""
    repo = Path(os.environ.get("ACL_RELEASE_REPO", "repo"))
    target.add_argument(
        "--repo",
        type=Path,
        default=argparse.SUPPRESS if suppress else repo,
        metavar="DIR",
        help="the repository (default $ACL_RELEASE_REPO or ./repo)",
    )
    target.add_argument(
        "--keys",
        type=Path,
        action="append",
        default=argparse.SUPPRESS if suppress else None,
        metavar="DIR",
        help="a folder of keys, such as a mounted stick (default $ACL_RELEASE_KEYS or ./keys); may be repeated",
    )
    target.add_argument(
        "--now",
        default=argparse.SUPPRESS if suppress else None,
        metavar="TIME",
        help="sign and judge as at this time, such as 2026-11-20T05:00:00Z: for tests",
    )
    target.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS if suppress else False, help="print JSON"
    )
    target.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS if suppress else False, help="say more"
    )


def _level(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 22:
        raise argparse.ArgumentTypeError(f"{text!r} is not a level from 1 to 22")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 32")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see docs/exit-codes.md)."""
    from updater.errors import ExitCode, UpdaterError

    args = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="acl-release: %(message)s", stream=sys.stderr
    )
    try:
        if args.command == "build":
            return run_build(args)
        from updater.release.commands import run

        return run(args)
    except UpdaterError as error:
        from updater.release.commands import show_error

        return show_error(error, as_json=args.json)
    except KeyboardInterrupt:
        print(
            "acl-release: interrupted. Nothing unfinished is visible to nodes; the same command goes on.",
            file=sys.stderr,
        )
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
