"""Which release a node should run, and why not another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from updater.errors import NothingToDo, Refused
from updater.manifest import Manifest, Withdrawn
from updater.records import Ledger, Policy, Quarantined
from updater.store import utc_time
from updater.versions import Version


@dataclass(frozen=True, slots=True)
class Target:
    """A release that was chosen; `deliberate` when a person named it (a pin, or `--to`)."""

    version: str
    deliberate: bool
    why: str


def choose(
    *,
    to: str | None,
    policy: Policy,
    channel: str,
    offered: str | None,
    running: str,
    now: datetime,
) -> Target:
    """Choose the release to run: `to` before the pin before what the channel offers.

    Raises NothingToDo when it runs already, or when the channel offers an older one; Refused under a hold.
    """
    if holding(policy, now):
        until = f" until {policy.held_until}" if policy.held_until else ""
        why = f" ({policy.hold_why})" if policy.hold_why else ""
        raise Refused(f"this node is on hold{until}{why}", mend="`acl-updater unhold` ends the hold", reason="held")
    if to is not None:
        target = Target(to, deliberate=True, why=f"asked for by --to {to}")
    elif policy.pin is not None:
        target = Target(policy.pin, deliberate=True, why=f"this node is pinned to {policy.pin}")
    elif offered is None:
        raise NothingToDo(f"the channel {channel} offers no release", mend="promote one: `acl-release promote`")
    else:
        target = Target(offered, deliberate=False, why=f"the channel {channel} offers {offered}")
    if Version(target.version) == Version(running):
        raise NothingToDo(f"release {running} runs already ({target.why})", reason="already-at-target")
    if not target.deliberate and Version(target.version) < Version(running):
        raise NothingToDo(
            f"release {running} runs, the channel {channel} offers the older {target.version}",
            mend=f"to go down on purpose: `acl-updater pin {target.version}`",
            reason="channel-is-older",
        )
    return target


def holding(policy: Policy, now: datetime) -> bool:
    """Tell whether a hold is in force."""
    return policy.held and (policy.held_until is None or now < utc_time(policy.held_until))


def refuse_unfit(
    manifest: Manifest,
    *,
    manifest_sha256: str,
    target: Target,
    layout: str,
    architecture: str,
    image_id: str | None,
    running_root_hash: str,
    ledger: Ledger,
    withdrawn: Withdrawn,
    now: datetime,
) -> None:
    """Raise Refused for a release that this node must not install, whoever asks for it."""
    version = manifest.version
    if layout not in manifest.layouts:
        raise Refused(
            f"release {version} is made for {', '.join(manifest.layouts)}, this node's layout is {layout}",
            mend="publish a build for this layout",
            reason="wrong-layout",
        )
    if manifest.architecture != architecture:
        raise Refused(
            f"release {version} is for {manifest.architecture}, this node is {architecture}",
            mend="publish a build for this architecture",
            reason="wrong-architecture",
        )
    if image_id is not None and manifest.image_id != image_id:
        raise Refused(
            f"release {version} is an image of {manifest.image_id}, this node runs {image_id}",
            mend="point the node at its own repository",
            reason="wrong-image",
        )
    if manifest.root.root_hash == running_root_hash:
        raise NothingToDo(
            f"release {version} has the root hash of the running slot: it runs already", reason="already-at-target"
        )
    for item in withdrawn.releases:
        if item.version == version:
            raise Refused(
                f"release {version} was withdrawn on {item.withdrawn}: {item.why}",
                mend="wait for the next release",
                reason="withdrawn",
            )
    for seen in ledger.seen:
        if seen.version == version and seen.manifest_sha256 != manifest_sha256:
            raise Refused(
                f"release {version} is offered with another manifest than this node accepted before "
                f"({manifest_sha256[:12]}… instead of {seen.manifest_sha256[:12]}…): a version is immutable",
                mend="publish the change under a new version, and ask the publisher who changed it",
                reason="version-changed",
            )
    if manifest.security_epoch < ledger.floor:
        raise Refused(
            f"release {version} has security epoch {manifest.security_epoch}, below this node's floor {ledger.floor}",
            mend="choose a newer release; a root-signed reset of the floor is the only way down",
            reason="below-floor",
        )
    found = ledger.quarantined(manifest.root.root_hash)
    if found is not None and not may_retry(found, now=now, deliberate=target.deliberate):
        raise Refused(quarantine_sentence(found), mend=_quarantine_mend(found), reason="quarantined")


def may_retry(item: Quarantined, *, now: datetime, deliberate: bool) -> bool:
    """Tell whether a quarantined image may be tried: only one without evidence against it, and after its delay.

    A person who names the release does not have to wait for the delay.
    """
    if item.until is None:
        return False
    return deliberate or now >= utc_time(item.until)


def quarantine_sentence(item: Quarantined) -> str:
    """Return one sentence on why an image is quarantined."""
    if item.until is None:
        return f"release {item.version} is quarantined on this node since {item.at}: {item.sentence}"
    return f"release {item.version} is put off until {item.until}: {item.sentence}"


def _quarantine_mend(item: Quarantined) -> str:
    if item.until is None:
        return f"`acl-updater quarantine clear {item.version}` allows another try once the cause is mended"
    return f"wait, or try at once with `acl-updater update --to {item.version}`"


def floor_after_commit(floor: int, security_epoch: int) -> int:
    """Return the floor after a commit: raised by at most one, never lowered."""
    return floor + 1 if security_epoch > floor else floor
