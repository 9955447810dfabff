"""What the lab works with: a factory disk, a signed repository, and the releases in it by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from integration.lab.emulator import Emulator
from integration.lab.terms import DEFAULT_LAYOUT
from updater.errors import EnvironmentFailure


@dataclass(frozen=True, slots=True)
class Known:
    """A release of the lab's repository."""

    number: int
    version: str
    root_hash: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Stock:
    """Everything that scenarios start from; nothing in it is ever changed by one.

    `disk` is a powered-off factory disk of the layout `layout` on release 1, `repository` a folder for any static
    server, `keys` the folder of its keys, `trust` the folder of trusted roots that the images carry. `variables` is the
    factory's store of EFI variables, where the disk's loader needs one, `trusting` the same with Secure Boot on: it
    trusts the key that signed the loader and every release.
    """

    emulator: Emulator
    disk: Path
    repository: Path
    keys: Path
    releases: Mapping[int, Known]
    trust: Path
    about: Mapping[str, str] = field(default_factory=dict)
    layout: str = DEFAULT_LAYOUT
    variables: Path | None = None
    trusting: Path | None = None

    def release(self, number: int) -> Known:
        """Return a release by its number; raise EnvironmentFailure when the repository has none."""
        try:
            return self.releases[number]
        except KeyError:
            raise EnvironmentFailure(
                f"the lab's repository has no release {number}",
                mend=f"use one of {', '.join(map(str, sorted(self.releases)))}",
                reason="lab-release",
            ) from None

    def store_with_secure_boot(self) -> Path:
        """Return the variable store of a machine with Secure Boot; raise EnvironmentFailure where there is none."""
        if self.trusting is None:
            raise EnvironmentFailure(
                f"a machine of the layout {self.layout} has no UEFI, so no Secure Boot",
                mend="take `secure_boot` away, or choose another layout",
                reason="lab-secure-boot",
            )
        return self.trusting

    def number(self, version: str | None) -> int | None:
        """Return the number of a version, or None for one that the lab does not know."""
        return next((known.number for known in self.releases.values() if known.version == version), None)

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions by root hash."""
        return {known.root_hash: known.version for known in self.releases.values()}
