"""Changes to a scenario's own copy of the repository, as its publisher or its mirror would make them."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import sys
from pathlib import Path

from updater.errors import EnvironmentFailure
from updater.run import run


def tamper(repository: Path, pattern: str) -> list[Path]:
    """Invert the middle byte of every served file whose path matches a glob; raise when none does."""
    found = _matching(repository, pattern)
    for path in found:
        content = bytearray(path.read_bytes())
        if content:
            content[len(content) // 2] ^= 0xFF
        # The copy shares its files with the stock by hard links: a new file takes the name, none is written into.
        path.unlink()
        path.write_bytes(content)
    return found


def lose(repository: Path, pattern: str) -> list[Path]:
    """Remove every served file whose path matches a glob; raise when none does."""
    found = _matching(repository, pattern)
    for path in found:
        path.unlink()
    return found


def _matching(repository: Path, pattern: str) -> list[Path]:
    found = [
        path
        for path in sorted(repository.rglob("*"))
        if path.is_file() and fnmatch.fnmatch(path.relative_to(repository).as_posix(), pattern)
    ]
    if not found:
        raise EnvironmentFailure(
            f"no file of the repository matches {pattern!r}", mend="mend the glob", reason="fault-not-injected"
        )
    return found


def restore(repository: Path, stock: Path) -> None:
    """Make the copy as the stock's repository is."""
    shutil.rmtree(repository)
    shutil.copytree(stock, repository, copy_function=link)


def link(source: str, target: str) -> str:
    """Link a file, or copy it where links cannot be had."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
    return target


def acl_release(*words: str | Path) -> str:
    """Run `acl-release` as a person would; return what it wrote."""
    start = "import sys; from updater.release.cli import main; sys.exit(main())"
    return run([sys.executable, "-c", start, *words], timeout_s=600).stdout.decode("utf-8", "replace")


def expire(repository: Path, keys: Path) -> None:
    """Let snapshot and timestamp expire, as if their keeper had renewed them for the last time a year ago."""
    roles = ("--role", "snapshot", "--role", "timestamp")
    acl_release("refresh", *roles, "--now", "2025-11-20T00:00:00Z", "--repo", repository, "--keys", keys)


def renew(repository: Path, keys: Path) -> None:
    """Sign snapshot and timestamp anew, one version further."""
    acl_release("refresh", "--role", "snapshot", "--role", "timestamp", "--repo", repository, "--keys", keys)


def promote(repository: Path, keys: Path, version: str) -> None:
    """Make the channel `stable` offer a release."""
    acl_release("promote", version, "--channel", "stable", "--repo", repository, "--keys", keys)


def unsign(repository: Path, keys: Path, version: str) -> None:
    """Publish a release again, as a builder would who forgot Secure Boot: its UKI bears no signature."""
    import msgspec

    from updater.manifest import Artifact, parse_manifest
    from updater.release.keys import KeyRing
    from updater.release.repository import opened, utc_now
    from updater.schema import encode_json

    with opened(repository, KeyRing([keys]), utc_now) as revision:
        path = f"manifests/{version}.json"
        manifest = parse_manifest(revision.target(path) or b"", path)
        content = without_signature((repository / _blob(manifest.uki.sha256)).read_bytes())
        digest = hashlib.sha256(content).hexdigest()
        blob = repository / _blob(digest)
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        uki = Artifact(len(content), digest)
        revision.put_target(path, encode_json(msgspec.structs.replace(manifest, uki=uki)))
        revision.publish()


def without_signature(program: bytes) -> bytes:
    """Return an EFI program without its signatures; raise EnvironmentFailure for one that bears none."""
    import pefile

    pe = pefile.PE(data=program, fast_load=True)
    entry = pe.OPTIONAL_HEADER.DATA_DIRECTORY[pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_SECURITY"]]
    if not entry.VirtualAddress:
        raise EnvironmentFailure(
            "this program bears no signature to take away", mend="make the stock anew", reason="fault-not-injected"
        )
    # Of this entry alone the address is a place in the file: the signatures are its last bytes.
    end = entry.VirtualAddress
    entry.VirtualAddress = entry.Size = 0
    return bytes(pe.write()[:end])


def _blob(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def withdraw(repository: Path, keys: Path, version: str) -> None:
    """Withdraw a release for good."""
    acl_release("withdraw", version, "--why", "the lab says so", "--repo", repository, "--keys", keys)
