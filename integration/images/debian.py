"""Debian packages by apt's own signed metadata, with the network settings of this machine."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure
from updater.run import find_tool, run

log = logging.getLogger(__name__)

ARCHITECTURE = "amd64"
_DOWNLOAD_S = 1800.0


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where packages come from; `security_uri` is empty where the machine names none."""

    uri: str
    security_uri: str


def find_mirror() -> Mirror:
    """Return the machine's own Debian mirror, or debootstrap's default on other systems."""
    main = security = ""
    listing = run(
        [
            find_tool("apt-get", package="apt"),
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Created-By: Packages",
        ],
        check=False,
    )
    for line in listing.stdout.decode().splitlines():
        origin, label, uri = line.split("|", 2)
        if origin == "Debian" and label == "Debian":
            main = main or uri
        if origin == "Debian" and label == "Debian-Security":
            security = security or uri
    return Mirror(main or _default_mirror(), security)


def _default_mirror() -> str:
    script = Path(find_tool("debootstrap"))
    found = re.search(r'^DEF_MIRROR="([^"]+)"', script.read_text(), re.MULTILINE)
    if found is None:
        raise EnvironmentFailure(
            f"neither apt nor {script} names a Debian mirror",
            mend="add a Debian source to apt's settings",
            reason="no-mirror",
        )
    return found.group(1)


def keyring(tree: Path = Path("/")) -> Path:
    """Return the keyring that signs Debian's archive, from the machine or from an unpacked tree."""
    folder = tree / "usr/share/keyrings"
    for name in ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg"):
        if (folder / name).exists():
            return folder / name
    raise EnvironmentFailure(
        f"{folder} holds no debian-archive-keyring",
        mend="install the package debian-archive-keyring",
        reason="keyring-missing",
    )


def sources(mirror: Mirror, suite: str, signed_by: Path) -> str:
    """Return apt sources (deb822) for a suite, with its updates where it is a stable one."""
    rolling = suite in ("forky", "sid", "testing", "unstable")
    suites = [suite] if rolling else [suite, f"{suite}-updates"]
    stanzas = [(mirror.uri, suites)]
    if mirror.security_uri and not rolling:
        stanzas.append((mirror.security_uri, [f"{suite}-security"]))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(names)}\nComponents: main\nSigned-By: {signed_by}\n"
        for uri, names in stanzas
    )


def network_settings() -> list[str]:
    """Return the machine's apt settings for the network (proxies, certificates, clock) as configuration lines."""
    dump = run([find_tool("apt-config", package="apt"), "dump"]).stdout.decode()
    wanted = re.compile(r"Acquire::(http|https|ftp|Retries|Check-Date|Check-Valid-Until|ForceIPv[46])\b")
    return [line for line in dump.splitlines() if wanted.match(line)]


def proxy_environment() -> dict[str, str]:
    """Return proxy variables for programs that do not read apt's settings, such as debootstrap."""
    names = ("http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if "http_proxy" not in found:
        answer = run(["apt-config", "shell", "PROXY", "Acquire::http::Proxy"]).stdout.decode().strip()
        if answer:
            found["http_proxy"] = shlex.split(answer.partition("=")[2])[0]
    return found


class PackageStore:
    """A private apt: its own sources, lists and downloads in one folder, no root needed."""

    def __init__(self, folder: Path, source_stanzas: str, *, install_into: Path | None = None) -> None:
        """Write the configuration into `folder`; `install_into` names a root for dpkg to work in."""
        self._folder = folder
        for name in (
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/sources.list.d",
            "state/lists/partial",
            "cache/archives/partial",
            "log",
        ):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        (folder / "etc/sources.list.d/debian.sources").write_text(source_stanzas)
        settings = [
            f'Dir "{folder}/";',
            'Dir::Etc "etc";',
            'Dir::State "state";',
            f'Dir::State::status "{folder}/state/status";',
            'Dir::Cache "cache";',
            'Dir::Log "log";',
            f'APT::Architecture "{ARCHITECTURE}";',
            f'APT::Architectures {{ "{ARCHITECTURE}"; }};',
            'APT::Install-Recommends "false";',
            # Root may not be allowed to become _apt inside a container, and nobody else can.
            'APT::Sandbox::User "";',
            'Acquire::Languages "none";',
            'Acquire::Retries "3";',
            *network_settings(),
        ]
        if install_into is not None:
            # dpkg runs by chroot, so it must see the downloads inside its root.
            settings += [
                f'DPkg::Chroot-Directory "{install_into}";',
                f'Dir::State::status "{install_into}/var/lib/dpkg/status";',
                f'Dir::Cache::archives "{install_into}/var/cache/apt/archives";',
            ]
        self.config = folder / "apt.conf"
        self.config.write_text("\n".join(settings) + "\n")

    def refresh(self) -> None:
        """Fetch the package lists and check their signatures."""
        self._apt("apt-get", "update", "--error-on=any")

    def download(self, packages: Sequence[str], *, with_dependencies: bool = True) -> list[Path]:
        """Fetch packages (a name, or name/suite), by default with all that they need; return the files."""
        archives = self._folder / "cache/archives"
        if with_dependencies:
            self._apt("apt-get", "install", "--yes", "--download-only", *packages)
        else:
            for package in packages:
                run(
                    ["sh", "-c", 'cd "$0" && exec apt-get download "$1"', archives, package],
                    env=self._environment(),
                    timeout_s=_DOWNLOAD_S,
                )
        return sorted(archives.glob("*.deb"))

    def _apt(self, *argv: str) -> None:
        run(argv, env=self._environment(), timeout_s=_DOWNLOAD_S)

    def _environment(self) -> dict[str, str]:
        return {"APT_CONFIG": str(self.config), "DEBIAN_FRONTEND": "noninteractive", **proxy_environment()}


def unpack(packages: Sequence[Path], tree: Path) -> None:
    """Unpack packages into a folder without running any of their scripts."""
    for package in packages:
        run([find_tool("dpkg-deb", package="dpkg"), "--extract", package, tree], timeout_s=300)


def package_version(package: Path) -> str:
    """Return the version field of a package file."""
    return run(["dpkg-deb", "--field", package, "Version"]).stdout.decode().strip()
