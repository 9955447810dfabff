"""The signed repository as a node sees it: what is offered, and the bytes of a release."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from updater.config import Config
from updater.errors import EnvironmentFailure, NetworkFailure, Refused, Untrusted
from updater.format.later import with_later
from updater.format.transport import Transport
from updater.manifest import Manifest, Root, Withdrawn
from updater.node.protocol import Node
from updater.records import ReleaseRecord, release_record
from updater.store import utc_time

if TYPE_CHECKING:
    from updater.fetch import Fetcher
    from updater.trust import Accepted, Trust

log = logging.getLogger(__name__)

T = TypeVar("T")


class RepositoryImage:
    """A `writer.Source`: the image and the hash tree of one release on the mirrors."""

    def __init__(self, fetcher: Fetcher, root: Root) -> None:
        self._fetcher = fetcher
        self._base = f"images/{root.root_hash}"

    @property
    def name(self) -> str:
        return f"{', '.join(self._fetcher.mirrors)}: {self._base}"

    def tree(self, offset: int, length: int) -> Iterator[bytes]:
        return self._fetcher.stream(f"{self._base}/tree", offset, length)

    def data(self, offset: int, length: int) -> Iterator[bytes]:
        return self._fetcher.stream(f"{self._base}/data", offset, length)


class Repository:
    """The trusted metadata that this node accepted last, and the mirrors that serve the bytes."""

    def __init__(self, trust: Trust, fetcher: Fetcher) -> None:
        self.trust = trust
        self.fetcher = fetcher

    def refresh(self) -> Accepted:
        """Fetch and verify the metadata; raise Untrusted or NetworkFailure."""
        return self.trust.refresh()

    def offered(self, channel: str) -> str | None:
        """Return the release that a channel offers, None when there is no such channel."""
        try:
            return self.trust.channel(channel).release
        except Untrusted as error:
            if error.reason == "target-missing":
                return None
            raise

    def withdrawn(self) -> Withdrawn:
        """Return the signed list of withdrawn releases."""
        return self.trust.withdrawn()

    def release(self, version: str) -> tuple[Manifest, ReleaseRecord]:
        """Return a release's proven manifest and what to remember of it; raise Refused when it is not published."""
        try:
            manifest, raw = self.trust.manifest(version)
        except Untrusted as error:
            if error.reason == "target-missing":
                raise Refused(
                    f"the repository has no release {version}",
                    mend="see `acl-updater check` for what it has",
                    reason="unknown-release",
                ) from error
            raise
        return manifest, release_record(manifest, raw)

    def images(self, root: Root) -> list[RepositoryImage]:
        """Return the sources of a release's blocks, one for each mirror, the best first."""
        return [RepositoryImage(fetcher, root) for fetcher in self.fetcher.per_mirror()]

    def transport(self, manifest: Manifest, *, later: bool = True) -> Transport:
        """Return how a release travels, with the deltas that it was given after its publication.

        Raises Untrusted or NetworkFailure when these cannot be had: without them (`later` false) it travels all the
        same.
        """
        transport = manifest.transport or Transport()
        added = self.trust.later_deltas(manifest) if later else None
        return transport if added is None else with_later(transport, added)


def from_any(attempts: Iterable[Callable[[], T]]) -> T:
    """Return the result of the first attempt that a mirror does not spoil; raise the worst failure otherwise.

    A mirror that serves wrong bytes, or none, is passed over for the next one; what an earlier attempt proved and
    wrote stays. Untrusted comes before NetworkFailure: wrong bytes say more than none.
    """
    failures: list[Untrusted | NetworkFailure] = []
    for attempt in attempts:
        try:
            return attempt()
        except (Untrusted, NetworkFailure) as failure:
            log.warning("%s", failure)
            failures.append(failure)
    failures.sort(key=lambda failure: isinstance(failure, NetworkFailure))
    raise failures[0]


@contextmanager
def open_repository(node: Node, *, built: str | None) -> Iterator[Repository]:
    """Open the node's repository; `built` is the running image's build time, below which no clock is believed."""
    from updater.fetch import Fetcher
    from updater.mirrors import Timeouts
    from updater.trust import Trust

    mirrors = mirrors_of(node.config)
    network = node.config.network
    certificate: str | tuple[str, str] | None = network.client_cert
    if network.client_cert and network.client_key:
        certificate = (network.client_cert, network.client_key)
    fetcher = Fetcher(
        mirrors,
        ca_file=Path(network.ca_file) if network.ca_file else None,
        client_cert=certificate,
        headers=network.headers,
        timeouts=Timeouts(connect_s=network.connect_s, stall_s=network.stall_s, grace_s=network.grace_s),
        rate_limit=network.rate_limit,
    )
    floor = utc_time(built) if built else datetime.fromtimestamp(0, tz=UTC)
    trust = Trust(node.trust, fetcher, bootstrap_roots=node.bootstrap_roots(), now=node.now, time_floor=floor)
    try:
        yield Repository(trust, fetcher)
    finally:
        fetcher.close()


def mirrors_of(config: Config) -> Sequence[str]:
    """Return the configured mirrors; raise EnvironmentFailure when there are none."""
    if not config.mirrors:
        raise EnvironmentFailure(
            "no mirror is configured",
            mend="add `mirrors: [https://…]` to /etc/acl-updater/config.yaml",
            reason="no-mirror",
        )
    return config.mirrors
