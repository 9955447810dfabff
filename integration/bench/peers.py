"""The programs that we are measured against, from Debian, PyPI and Go's module proxy, run without installing them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from integration.images.base import SUITE
from integration.images.cache import cached
from integration.images.debian import PackageStore, find_mirror, keyring, package_version, sources, unpack
from updater.errors import EnvironmentFailure
from updater.run import find_tool, run

log = logging.getLogger(__name__)

PACKAGES = (
    "bsdiff", "casync", "coreutils", "cpio", "curl", "dbus-daemon", "nginx-light", "openssl", "rauc", "squashfs-tools",
    "swupdate", "xdelta3", "zchunk", "zstd",
)  # fmt: skip
_PROGRAMS = (
    "bin/bsdiff", "bin/bspatch", "bin/casync", "bin/cpio", "bin/curl", "bin/dbus-daemon", "bin/dd", "bin/mksquashfs",
    "bin/openssl", "bin/rauc", "bin/swupdate", "bin/unzck", "bin/xdelta3", "bin/zck", "bin/zckdl", "bin/zstd",
    "sbin/nginx", "lib/casync/protocols/casync-http",
)  # fmt: skip
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_HDIFFPATCH = "hdiffpatch==2.6.0"
_DESYNC = "github.com/folbricht/desync@v1.1.0"


@dataclass(frozen=True, slots=True)
class Peers:
    """The unpacked programs; `bin` goes in front of PATH."""

    folder: Path

    @property
    def bin(self) -> Path:
        """Return the folder with a wrapper per program."""
        return self.folder / "bin"

    @property
    def python_path(self) -> Path:
        """Return the folder with the Python packages."""
        return self.folder / "python"

    @property
    def versions(self) -> dict[str, str]:
        """Return what was got, by name."""
        lines = (self.folder / "versions").read_text().splitlines()
        return dict(line.split("\t", 1) for line in lines)

    @property
    def missing(self) -> dict[str, str]:
        """Return what could not be had, with the reason."""
        lines = (self.folder / "missing").read_text().splitlines()
        return {name: plain_reason(reason) for name, reason in (line.split("\t", 1) for line in lines)}


def plain_reason(said: str) -> str:
    """Return why a peer is missing, as a report may say it: without addresses."""
    if "verifying module" in said:
        return "its checksum is not in the checksum database, and unverified code is not run"
    return re.sub(r"https?://\S+", "(address)", said)


def peers() -> Peers:
    """Return the peers' programs, fetched on first use."""
    recipe = {"recipe": 4, "suite": SUITE, "packages": PACKAGES, "programs": _PROGRAMS, "python": _HDIFFPATCH,
              "go": _DESYNC, "interpreter": f"{sys.version_info.major}.{sys.version_info.minor}"}  # fmt: skip
    return Peers(cached("bench-peers", recipe, _make))


def _make(folder: Path, final: Path) -> None:
    log.info("peers: fetching %s", ", ".join(PACKAGES))
    store = PackageStore(folder / "apt", sources(find_mirror(), SUITE, keyring()))
    store.refresh()
    tree = folder / "tree"
    tree.mkdir()
    packages = store.download(PACKAGES)
    unpack(packages, tree)
    versions = {package.name.split("_", 1)[0]: package_version(package) for package in packages}
    versions = {name: version for name, version in versions.items() if name in PACKAGES}
    missing: dict[str, str] = {}
    (folder / "bin").mkdir()
    for program in _PROGRAMS:
        _wrap(folder, final, f"usr/{program}")
    _optional(versions, missing, "hdiffpatch", _HDIFFPATCH, lambda: _python_package(folder))
    _optional(versions, missing, "desync", _DESYNC, lambda: _go_program(folder))
    (folder / "versions").write_text("".join(f"{name}\t{version}\n" for name, version in sorted(versions.items())))
    (folder / "missing").write_text("".join(f"{name}\t{reason}\n" for name, reason in sorted(missing.items())))
    run(["rm", "-rf", folder / "apt", tree / "usr/share/doc", tree / "usr/share/man", tree / "usr/share/locale"])


def _optional(versions: dict[str, str], missing: dict[str, str], name: str, version: str, get: object) -> None:
    assert callable(get)
    try:
        get()
        versions[name] = version.rsplit("@v", 1)[-1].rsplit("==", 1)[-1]
    except EnvironmentFailure as error:
        missing[name] = " ".join(str(error).split())[-300:]
        log.warning("peers: %s cannot be had here: %s", name, missing[name])


def _wrap(folder: Path, final: Path, program: str) -> None:
    if not (folder / "tree" / program).exists():
        raise EnvironmentFailure(
            f"the unpacked packages hold no /{program}", mend="mend the list of peers", reason="tool-missing"
        )
    tree = final / "tree"
    wrapper = folder / "bin" / Path(program).name
    wrapper.write_text(
        f"#!/bin/sh\nexec '{tree}/{_LIBRARIES}/ld-linux-x86-64.so.2' --inhibit-cache "
        f"--library-path '{tree}/{_LIBRARIES}' '{tree}/{program}' \"$@\"\n"
    )
    wrapper.chmod(0o755)


def _python_package(folder: Path) -> None:
    words = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--target"]
    settings = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    run(
        [sys.executable, "-m", "pip", "install", *words, folder / "python", _HDIFFPATCH],
        env=settings,
        timeout_s=600,
    )


def _go_program(folder: Path) -> None:
    go = shutil.which("go", path=os.environ.get("PATH", "") + ":/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise EnvironmentFailure("there is no Go compiler here", mend="install Go", reason="tool-missing")
    work = folder / "go"
    settings = {"GOPATH": str(work), "GOCACHE": str(work / "cache"), "CGO_ENABLED": "0",
                "GOFLAGS": "-modcacherw -buildvcs=false"}  # fmt: skip
    settings |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    try:
        # Not `go install`: a module proxy may hold this version and yet refuse to list all of them. The download is
        # checked against the checksum database, what it needs against its own go.sum.
        found = run([go, "mod", "download", "-json", _DESYNC], env=settings, timeout_s=300)
        source = json.loads(found.stdout)["Dir"]
        run(["cp", "-r", source, work / "source"])
        run(["chmod", "-R", "u+w", work / "source"])
        run(
            [go, "-C", work / "source", "build", "-o", folder / "bin/desync", "./cmd/desync"],
            env=settings,
            timeout_s=900,
        )
    finally:
        run(["rm", "-rf", work])


def find_peer(peers: Peers, name: str) -> str:
    """Return a program's wrapper, or the host's program of that name."""
    wrapper = peers.bin / name
    return str(wrapper) if wrapper.exists() else find_tool(name)
