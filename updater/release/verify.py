"""Proof of a whole repository, as the most thorough client would make it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from updater.errors import UpdaterError
from updater.fetch import Fetcher
from updater.release.publish import Build, later_files
from updater.trust import Accepted, Trust
from updater.versions import Version


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, on one object."""

    what: str
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was proven, and what is wrong."""

    mirror: str
    accepted: Accepted | None
    channels: dict[str, str]
    releases: list[str]
    files: int
    bytes: int
    findings: list[Finding]

    @property
    def good(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.findings


def verify(
    fetcher: Fetcher,
    roots: Sequence[Path],
    now: Callable[[], datetime],
    progress: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Prove metadata, channels, manifests, blobs and images of a repository, from its first root on; change nothing."""
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="acl-verify-") as scratch:
        trust = Trust(
            Path(scratch), fetcher, bootstrap_roots=roots, now=now, time_floor=datetime(1970, 1, 1, tzinfo=UTC)
        )
        mirror = ", ".join(fetcher.mirrors)
        try:
            accepted = trust.refresh()
            progress("metadata: proven")
            versions = trust.versions()
            withdrawn = {Version(item.version) for item in trust.withdrawn().releases}
        except UpdaterError as error:
            return Report(mirror, None, {}, [], 0, 0, [Finding("metadata", str(error), error.reason)])
        channels: dict[str, str] = {}
        for name in trust.channels():
            try:
                channels[name] = trust.channel(name).release
            except UpdaterError as error:
                findings.append(Finding(f"channel {name}", str(error), error.reason))
                continue
            if channels[name] not in versions:
                findings.append(
                    Finding(f"channel {name}", f"it offers {channels[name]}, which is not published", "release-unknown")
                )
            elif Version(channels[name]) in withdrawn:
                findings.append(
                    Finding(f"channel {name}", f"it offers {channels[name]}, which is withdrawn", "release-withdrawn")
                )
        files = total = 0
        for version in versions:
            try:
                manifest, raw = trust.manifest(version)
            except UpdaterError as error:
                findings.append(Finding(f"release {version}", str(error), error.reason))
                continue
            published = Build(Path(), manifest, raw).files()
            try:
                later = trust.later_deltas(manifest)
                published += later_files(later) if later else []
            except UpdaterError as error:
                findings.append(Finding(f"release {version}", str(error), error.reason))
            for file in published:
                try:
                    wrong = file.proof(fetcher.stream(file.path, 0, file.length_bytes))
                except UpdaterError as error:
                    findings.append(Finding(f"release {version}", str(error), error.reason))
                    continue
                files += 1
                total += file.length_bytes
                if wrong:
                    findings.append(Finding(f"release {version}", f"{file.path} {wrong}", "content-mismatch"))
            progress(f"release {version}: read")
        return Report(mirror, accepted, channels, versions, files, total, findings)
