"""Unified kernel images: kernel, initrds and command line in one PE file, made by ukify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from updater.errors import EnvironmentFailure
from updater.run import find_tool, run

# The command line that DESIGN relies on, besides the verity parameters: each is checked by `uki_checks`.
DEADLINES = (
    "systemd.default_device_timeout_sec=40",
    "systemd.crash_action=reboot",
)


@dataclass(frozen=True, slots=True)
class SecureBoot:
    """The key and certificate (PEM files) that firmware trusts."""

    key: Path
    certificate: Path


@dataclass(frozen=True, slots=True)
class UkiParts:
    """What goes into a UKI; the initrds are concatenated in order, so a later one overrides."""

    kernel: Path
    initrds: Sequence[Path]
    command_line: str
    os_release: Path
    stub: Path | None = None
    kernel_version: str = ""


def make_uki(parts: UkiParts, uki: Path, *, mtime_s: int, signing: SecureBoot | None = None) -> None:
    """Write the UKI, signed where a key is given; raise EnvironmentFailure when ukify or its stub is missing."""
    argv: list[str | Path] = [
        find_tool("ukify", package="systemd-ukify"),
        "build",
        f"--linux={parts.kernel}",
        *(f"--initrd={initrd}" for initrd in parts.initrds),
        f"--cmdline={parts.command_line}",
        f"--os-release=@{parts.os_release}",
        f"--stub={parts.stub or find_stub()}",
        f"--output={uki}",
    ]
    if parts.kernel_version:
        argv.append(f"--uname={parts.kernel_version}")
    argv += _signed_by(signing)
    run(argv, env={"SOURCE_DATE_EPOCH": str(mtime_s)}, timeout_s=300)


def make_addon(
    words: Sequence[str], addon: Path, *, stub: Path | None, mtime_s: int, signing: SecureBoot | None
) -> None:
    """Write an addon that adds words to a UKI's command line, signed where a key is given."""
    argv: list[str | Path] = [
        find_tool("ukify", package="systemd-ukify"),
        "build",
        f"--cmdline={' '.join(words)}",
        f"--stub={stub or find_stub('addonx64.efi.stub')}",
        f"--output={addon}",
        *_signed_by(signing),
    ]
    run(argv, env={"SOURCE_DATE_EPOCH": str(mtime_s)}, timeout_s=300)


def find_stub(name: str = "linuxx64.efi.stub") -> Path:
    """Return systemd-stub: next to the `ukify` in use when that is a tool tree's, else from the system."""
    tools = Path(find_tool("ukify", package="systemd-ukify")).parent
    for folder in (tools.parent / "tree/usr/lib/systemd/boot/efi", Path("/usr/lib/systemd/boot/efi")):
        if (folder / name).exists():
            return folder / name
    raise EnvironmentFailure(
        f"there is no {name} to make a UKI with", mend="install the package systemd-boot-efi", reason="tool-missing"
    )


def _signed_by(signing: SecureBoot | None) -> list[str]:
    if signing is None:
        return []
    return [f"--secureboot-private-key={signing.key}", f"--secureboot-certificate={signing.certificate}"]
