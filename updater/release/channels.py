"""Channels: which release each offers, and which releases nobody may install any more."""

from __future__ import annotations

from dataclasses import dataclass

from updater.errors import InvalidDocument, Refused
from updater.manifest import Channel, Withdrawal, Withdrawn
from updater.release.repository import WITHDRAWN, Repository
from updater.schema import Name, convert, encode_json
from updater.trust.accepted import utc_text
from updater.versions import Version


@dataclass(frozen=True, slots=True)
class Moved:
    """A channel that now offers another release, or nothing."""

    channel: str
    before: str | None
    after: str | None


def promote(repository: Repository, version: str, channel: str) -> Moved:
    """Let a channel offer a release; raise Refused when it is not published, or withdrawn."""
    _refuse_bad_name(channel)
    _refuse_unpublished(repository, version)
    withdrawal = _withdrawal(repository.withdrawn(), version)
    if withdrawal is not None:
        raise Refused(
            f"release {version} is withdrawn: {withdrawal.why}",
            mend="promote another release",
            reason="release-withdrawn",
        )
    current = repository.channels().get(channel)
    if current is not None and current.release == version:
        return Moved(channel, version, version)
    _offer(repository, channel, version)
    repository.publish()
    return Moved(channel, current.release if current else None, version)


def withdraw(repository: Repository, version: str, why: str, instead: str | None) -> list[Moved]:
    """Put a release on the signed list, and take it out of every channel; return the channels that moved.

    A channel goes to `instead`, else back to what it offered before, else it offers nothing.
    """
    _refuse_unpublished(repository, version)
    if instead is not None:
        _refuse_unpublished(repository, instead)
        if instead == version or _withdrawal(repository.withdrawn(), instead) is not None:
            raise Refused(
                f"release {instead} is withdrawn itself", mend="name another with --instead", reason="release-withdrawn"
            )
    withdrawn = repository.withdrawn()
    if _withdrawal(withdrawn, version) is None:
        entry = convert(
            {"version": version, "why": why, "withdrawn": utc_text(repository.now())}, Withdrawal, "withdrawal"
        )
        withdrawn = Withdrawn(1, [*withdrawn.releases, entry])
        repository.put_target(WITHDRAWN, encode_json(withdrawn))
    moved = []
    for name, channel in repository.channels().items():
        if channel.release == version:
            after = instead or _earlier(repository, name, withdrawn)
            if after is None:
                repository.drop_target(f"channels/{name}.json")
            else:
                _offer(repository, name, after)
            moved.append(Moved(name, version, after))
    repository.publish()
    return moved


def _offer(repository: Repository, channel: str, version: str) -> None:
    document = Channel(1, channel, version, utc_text(repository.now()))
    repository.put_target(f"channels/{channel}.json", encode_json(document))
    history = [release for release in repository.settings.history(channel) if release != version]
    repository.settings = repository.settings.with_history(channel, [*history, version])


def _earlier(repository: Repository, channel: str, withdrawn: Withdrawn) -> str | None:
    published = set(repository.versions())
    bad = {Version(item.version) for item in withdrawn.releases}
    usable = [
        release
        for release in repository.settings.history(channel)
        if release in published and Version(release) not in bad
    ]
    return usable[-1] if usable else None


def _withdrawal(withdrawn: Withdrawn, version: str) -> Withdrawal | None:
    release = Version(version)
    return next((item for item in withdrawn.releases if Version(item.version) == release), None)


def _refuse_bad_name(channel: str) -> None:
    convert(channel, Name, "channel")
    if channel == "withdrawn":
        raise InvalidDocument(
            "channel", "", "'withdrawn' is the name of the list of withdrawn releases", "choose another name"
        )


def _refuse_unpublished(repository: Repository, version: str) -> None:
    if Version(version).text not in repository.versions():
        known = ", ".join(sorted(repository.versions(), key=Version)[-5:]) or "none"
        raise Refused(
            f"release {version} is not published here (the newest are: {known})",
            mend="publish it first",
            reason="release-unknown",
        )
