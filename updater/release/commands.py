"""What each verb of `acl-release` does and prints."""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from updater.errors import ExitCode, InvalidDocument, Refused, UpdaterError
from updater.release import channels, create, publish, renew, rotate, settings
from updater.release.frames import IMAGE
from updater.release.keys import PASSPHRASE_VARIABLE, KeyRing, new_names, passphrase_from_environment
from updater.release.progress import Bars
from updater.release.repository import Repository, opened, utc_now
from updater.release.transport import Ways
from updater.trust.accepted import utc_text, utc_time
from updater.versions import Version


def run(args: argparse.Namespace) -> int:
    """Run one verb; return the exit code."""
    verb = f"{args.command} {args.verb}" if getattr(args, "verb", None) else args.command
    return int(_VERBS[verb](args))


def show_error(error: UpdaterError, *, as_json: bool) -> int:
    """Print an error with its mend; return its exit code."""
    if as_json:
        told = {"error": error.message, "mend": error.mend, "reason": error.reason, "exit_code": int(error.exit_code)}
        _print_json(told)
        return error.exit_code
    print(f"acl-release: {error.message}", file=sys.stderr)
    if error.mend:
        print(f"  what to do: {error.mend}", file=sys.stderr)
    return error.exit_code


def _keys_init(args: argparse.Namespace) -> int:
    ring = _ring(args)
    if ring.names():
        raise Refused(
            f"there are keys in {ring.home} already ({', '.join(ring.names())})",
            mend="name another folder with --keys, or replace one with `acl-release rotate-key`",
            reason="key-exists",
        )
    if not 1 <= args.root_keys <= 9:
        raise InvalidDocument("--root-keys", "", f"{args.root_keys} is not from 1 to 9", "3 is a good number")
    passphrase = _new_passphrase(args)
    made = {name: ring.create(name, args.scheme, passphrase).keyid for name in new_names(args.root_keys)}
    lines = [f"{name:<10} {keyid[:16]}…  {ring.home / name}.pem" for name, keyid in made.items()]
    lines.append("")
    lines.append("Move root-*.pem and targets.pem to offline media before nodes in production trust them.")
    return _report(args, {"keys": made, "folder": str(ring.home)}, lines)


def _repo_init(args: argparse.Namespace) -> int:
    chosen = settings.Settings(settings.lifetimes(args.expires), args.deltas)
    threshold = create.create(args.repo, _ring(args), chosen, args.root_threshold, _clock(args))
    root = args.repo / "metadata" / "1.root.json"
    lines = [
        f"repository: {args.repo}, a new root needs {threshold} signature{'s' if threshold > 1 else ''}",
        f"put {root} into images as /usr/share/acl-updater/trust/1.root.json",
    ]
    return _report(args, {"repository": str(args.repo), "root": str(root), "root_threshold": threshold}, lines)


def _publish(args: argparse.Namespace) -> int:
    framing = replace(IMAGE, level=args.level)
    with _opened(args) as repository, Bars() as bars:
        deltas = repository.settings.deltas if args.deltas is None else args.deltas
        made = Ways(frames=not args.no_frames, reuse=not args.no_packs, deltas=deltas, framing=framing)
        ways = None if args.plain else made
        done = publish.publish(repository, args.folders, ways, bars)
    lines = [
        f"{item.version}: published, {_megabytes(item.bytes_written)}"
        if item.new
        else f"{item.version}: was published before, {_megabytes(item.bytes_written)} mended"
        for item in done
    ]
    lines.append(
        "no channel offers it yet: acl-release promote VERSION --channel NAME" if any(d.new for d in done) else ""
    )
    payload = [{"version": d.version, "new": d.new, "bytes_written": d.bytes_written} for d in done]
    return _report(args, {"published": payload}, lines)


def _delta_add(args: argparse.Namespace) -> int:
    from updater.release.later import add_deltas

    with _opened(args) as repository, Bars() as bars:
        done = add_deltas(repository, args.source, args.target, progress=bars)
    named = f"deltas from {done.source_version} to {done.version}"
    state = "published" if done.new else "published before"
    line = f"{named}: {state}; a node fetches {_megabytes(done.fetch_bytes)} of image and UKI"
    payload = {"from": done.source_version, "to": done.version, "new": done.new, "fetch_bytes": done.fetch_bytes}
    return _report(args, payload, [line])


def _promote(args: argparse.Namespace) -> int:
    with _opened(args) as repository:
        moved = channels.promote(repository, args.release, args.channel)
    return _report(args, {"channels": [_moved(moved)]}, [_moved_line(moved)])


def _withdraw(args: argparse.Namespace) -> int:
    with _opened(args) as repository:
        moved = channels.withdraw(repository, args.release, args.why, args.instead)
    lines = [f"{args.release}: withdrawn ({args.why})", *(_moved_line(item) for item in moved)]
    return _report(args, {"withdrawn": args.release, "channels": [_moved(item) for item in moved]}, lines)


def _refresh(args: argparse.Namespace) -> int:
    with _opened(args) as repository:
        signed = renew.refresh(repository, args.role)
        left = renew.expiries(repository)
    lines = [f"renewed: {', '.join(signed)}", *_expiry_warnings(left)]
    return _report(args, {"renewed": signed, "roles": [_expiry(item) for item in left]}, lines)


def _rotate(args: argparse.Namespace) -> int:
    with _opened(args) as repository:
        done = rotate.rotate(repository, args.key, args.scheme, passphrase_from_environment())
    lines = [
        f"{done.name}: {done.new_keyid[:16]}… signs now",
        f"the old key lies beside it as retired-…-{done.name}.pem: destroy it once `acl-release verify` is content",
    ]
    payload = {"key": done.name, "old": done.old_keyid, "new": done.new_keyid, "root_version": done.root_version}
    return _report(args, payload, lines)


def _reset_epoch(args: argparse.Namespace) -> int:
    if not 0 <= args.floor <= 1_000_000:
        raise InvalidDocument("N", "", f"{args.floor} is not from 0 to 1,000,000", "give the new floor")
    with _opened(args) as repository:
        version = rotate.reset_epoch(repository, args.floor)
    lines = [f"root version {version} sets the floor of security epochs to {args.floor}, once on each node"]
    return _report(args, {"floor": args.floor, "root_version": version}, lines)


def _verify(args: argparse.Namespace) -> int:
    from updater.fetch import Fetcher
    from updater.release.verify import verify

    # What the client would log comes as findings.
    logging.getLogger("updater.trust").setLevel(logging.CRITICAL)
    root = args.repo / "metadata" / "1.root.json"
    fetcher = Fetcher([args.url or str(args.repo.resolve())])
    report = verify(fetcher, [root], _clock(args), logging.getLogger(__name__).info)
    lines = [f"{finding.what}: {finding.why}" for finding in report.findings]
    counted = f"{len(report.releases)} releases, {report.files} files, {_megabytes(report.bytes)}"
    if report.good and report.accepted:
        lines.append(f"{report.mirror}: good ({counted}; the first role expires {utc_text(report.accepted.expires)})")
    else:
        lines.append(f"{report.mirror}: {len(report.findings)} wrong ({counted} read)")
    payload = {
        "mirror": report.mirror,
        "good": report.good,
        "versions": report.accepted.versions if report.accepted else {},
        "channels": report.channels,
        "releases": report.releases,
        "files": report.files,
        "bytes": report.bytes,
        "findings": [{"what": f.what, "why": f.why, "reason": f.reason} for f in report.findings],
    }
    return _report(args, payload, lines, ExitCode.DONE if report.good else ExitCode.UNTRUSTED)


def _status(args: argparse.Namespace) -> int:
    with _opened(args) as repository:
        left = renew.expiries(repository)
        offered = {name: channel.release for name, channel in repository.channels().items()}
        versions = sorted(repository.versions(), key=Version)
        withdrawn = {item.version: item.why for item in repository.withdrawn().releases}
        signers = {role: _signers(repository, role) for role in (item.role for item in left)}
    lines = ["role        version  expires               keys"]
    for item in left:
        mark = "" if item.state == "good" else f"  <- {item.state}"
        lines.append(f"{item.role:<11} {item.version:>7}  {utc_text(item.expires)}  {signers[item.role]}{mark}")
    lines += ["", *(f"channel {name}: {version}" for name, version in offered.items())]
    lines += [
        f"release {version}" + (f"  withdrawn: {withdrawn[version]}" if version in withdrawn else "")
        for version in versions
    ]
    payload = {
        "roles": [{**_expiry(item), "keys": signers[item.role]} for item in left],
        "channels": offered,
        "releases": versions,
        "withdrawn": withdrawn,
    }
    return _report(args, payload, lines)


def _serve(args: argparse.Namespace) -> int:
    from updater.release.serve import StaticServer

    if not (args.repo / "metadata").is_dir():
        raise Refused(f"{args.repo} is no repository", mend="name its folder with --repo", reason="no-repository")
    logging.getLogger("updater.release.serve").setLevel(logging.INFO)
    try:
        server = StaticServer(args.repo, args.bind, args.port)
    except OSError as error:
        raise Refused(
            f"cannot listen on {args.bind} port {args.port}: {error.strerror}",
            mend="choose another --port; 0 takes a free one",
            reason="port-taken",
        ) from error
    print(server.url, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return ExitCode.DONE
    finally:
        server.server_close()
    return ExitCode.DONE


_VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "keys init": _keys_init,
    "repo init": _repo_init,
    "publish": _publish,
    "delta add": _delta_add,
    "promote": _promote,
    "withdraw": _withdraw,
    "refresh": _refresh,
    "rotate-key": _rotate,
    "reset-epoch": _reset_epoch,
    "verify": _verify,
    "status": _status,
    "serve": _serve,
}


def _ring(args: argparse.Namespace) -> KeyRing:
    return KeyRing(args.keys or [Path(os.environ.get("ACL_RELEASE_KEYS", "keys"))])


def _opened(args: argparse.Namespace) -> Any:
    return opened(args.repo, _ring(args), _clock(args))


def _clock(args: argparse.Namespace) -> Callable[[], datetime]:
    if args.now is None:
        return utc_now
    try:
        moment = utc_time(args.now)
    except ValueError as error:
        raise InvalidDocument("--now", "", f"{args.now!r} is no time", "write such as 2026-11-20T05:00:00Z") from error
    return lambda: moment.replace(tzinfo=UTC)


def _new_passphrase(args: argparse.Namespace) -> bytes | None:
    if not args.passphrase:
        return passphrase_from_environment()
    given = passphrase_from_environment()
    if given is None and sys.stdin.isatty():
        given = getpass.getpass("Passphrase for the new keys: ").encode()
        if given != getpass.getpass("Again: ").encode():
            raise Refused("the two passphrases differ", mend="try again", reason="passphrase-missing")
    if not given:
        raise Refused("no passphrase was given", mend=f"set {PASSPHRASE_VARIABLE}", reason="passphrase-missing")
    return given


def _signers(repository: Repository, role: str) -> str:
    found, keys = repository.keys_of(role)
    return f"{found.threshold} of {len(keys)}"


def _expiry(item: renew.Expiry) -> dict[str, Any]:
    return {"role": item.role, "version": item.version, "expires": utc_text(item.expires), "state": item.state}


def _expiry_warnings(left: list[renew.Expiry]) -> list[str]:
    return [
        f"{item.role} expires {utc_text(item.expires)}: run `acl-release refresh --role {item.role}` with its key"
        for item in left
        if item.state != "good"
    ]


def _moved(item: channels.Moved) -> dict[str, Any]:
    return {"channel": item.channel, "before": item.before, "after": item.after}


def _moved_line(item: channels.Moved) -> str:
    if item.before == item.after:
        return f"{item.channel}: offers {item.after} already"
    return f"{item.channel}: {item.before or 'nothing'} -> {item.after or 'nothing'}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _report(args: argparse.Namespace, payload: Any, lines: list[str], code: ExitCode = ExitCode.DONE) -> int:
    if args.json:
        _print_json(payload)
    else:
        print("\n".join(lines).rstrip("\n"))
    return code


def _print_json(payload: Any) -> None:
    print(json.dumps(payload, indent=2, sort_keys=True))
