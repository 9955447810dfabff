"""The trust that a node has built up in a repository, and what it reads by it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from updater.errors import InvalidDocument, NetworkFailure, Untrusted, UpdaterError
from updater.fetch import Fetcher
from updater.files import Directory, MountedDirectory
from updater.format.later import LaterDeltas, later_path, parse_later
from updater.manifest import Channel, Manifest, Withdrawn, parse_manifest
from updater.records import Kept
from updater.schema import Name, convert, decode_json
from updater.trust import accepted as sets
from updater.trust import floors as floor_file
from updater.trust import refusals, roots, targets, workflow
from updater.trust.accepted import Accepted, utc_text, utc_time
from updater.trust.floors import Floors
from updater.trust.memory import ROOT_FILE, Memory, corrupt, held_floors, held_set, newest_root, remember, to_hold
from updater.trust.workflow import WITHDRAWN_PATH, Proven
from updater.versions import Version

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_PREFETCHED = 64


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """What is known without the network; `damage` says which part of the memory cannot be read, if any."""

    accepted: Accepted | None
    root_version: int
    time_floor: datetime
    reference: datetime
    damage: str = ""

    @property
    def expired(self) -> bool:
        """Tell whether the accepted set is too old to act on."""
        return self.accepted is not None and self.reference >= self.accepted.expires


class Trust:
    """Prove a repository's metadata, remember what was proven, and read channels and manifests by it.

    Of the state folder it owns `accepted.json`, `sets/`, `floors.json`, `root.json` and `targets/`. One process at a
    time: the caller holds the lock. Errors are Untrusted with a stable reason (docs/trust.md lists them),
    NetworkFailure, and EnvironmentFailure of the state folder.
    """

    def __init__(
        self,
        folder: Path | Directory,
        fetcher: Fetcher,
        *,
        bootstrap_roots: Sequence[Path],
        now: Callable[[], datetime],
        time_floor: datetime,
    ) -> None:
        """Take the state folder and the roots that this image ships (`<N>.root.json`), used while nothing is trusted.

        `now` returns an aware time; none before `time_floor` (the image's build time) is believed.
        """
        self._state: Directory = MountedDirectory(folder) if isinstance(folder, Path) else folder
        self._fetcher = fetcher
        self._bootstrap_roots = list(bootstrap_roots)
        self._now = now
        self._time_floor = time_floor
        self._open: Proven | None = None

    # Refreshing.

    def refresh(self) -> Accepted:
        """Fetch, prove and accept the newest metadata from the first mirror that has a valid set.

        What was accepted before stays as it is until the new set is proven and flushed as a whole.
        """
        memory = remember(self._state, self._bootstrap_roots)
        failures: list[Untrusted | NetworkFailure] = []
        for fetcher in self._fetcher.per_mirror():
            mirror = fetcher.mirrors[0]
            try:
                proven = self._attempt(fetcher, mirror, memory)
            except (Untrusted, NetworkFailure) as failure:
                log.warning("trust: %s", failure)
                failures.append(failure)
                # Whoever has old metadata lacks the new release's bytes as well.
                self._fetcher.avoid(mirror)
                continue
            return self._accept(proven, mirror, memory)
        # A mirror that serves something wrong says more than one that serves nothing.
        failures.sort(key=lambda failure: isinstance(failure, NetworkFailure))
        raise failures[0]

    def _reference(self, floors: Kept[Floors] | None) -> datetime:
        floor = self._time_floor if floors is None else max(self._time_floor, utc_time(floors.value.time))
        now = self._now()
        if now < floor:
            log.warning("trust: the clock says %s, before %s: not believed", utc_text(now), utc_text(floor))
        return max(now, floor)

    def _attempt(self, fetcher: Fetcher, mirror: str, memory: Memory) -> Proven:
        served: dict[str, bytes] = {}

        def source(path: str, max_bytes: int) -> bytes:
            raw = fetcher.read(path, max_bytes)
            served.pop(path, None)
            served[path] = raw
            return raw

        cached = memory.held.files if memory.held else {}
        attempt = refusals.Attempt(mirror, served, cached, self._reference(memory.floors))
        try:
            proven = workflow.run(memory.root, cached, source, attempt.reference)
        except UpdaterError:
            raise
        except Exception as error:
            raise refusals.refusal(error, attempt) from error
        self._judge(proven, attempt, memory.floors)
        self._prefetch(proven, fetcher)
        return proven

    def _judge(self, proven: Proven, attempt: refusals.Attempt, floors: Kept[Floors] | None) -> None:
        """Check again what must hold whatever ngclient made of its cache and of the clock."""
        versions = proven.versions
        for role, expires in proven.expiries.items():
            if attempt.reference >= expires:
                raise refusals.expired(attempt.mirror, role, versions[role], expires, attempt.reference)
        for role, version in versions.items():
            listed = proven.snapshot.signed.meta.get(f"{role}.json")
            if type(version) is not int or (listed is not None and listed.version != version):
                raise Untrusted(
                    f"{role} version {version!r} from {attempt.mirror} is not the one of its snapshot",
                    mend="use another mirror, and tell the publisher",
                    reason="metadata-mixed",
                )
        if floors is not None:
            for role, offered, known in floors.value.breaches(versions, proven.root.signed):
                raise refusals.rolled_back(attempt.mirror, role, offered, known)
        # These raise on what is signed and still cannot be right.
        roots.epoch_reset(proven.root.signed)
        proven.manifests()

    def _prefetch(self, proven: Proven, fetcher: Fetcher) -> None:
        """Cache the channels and the list of withdrawn releases, for a node that goes offline later."""
        for path in [WITHDRAWN_PATH, *proven.paths("channels/")][:_MAX_PREFETCHED]:
            try:
                targets.read_target(self._state, proven, path, [fetcher])
            except (Untrusted, NetworkFailure) as error:
                if path == WITHDRAWN_PATH:
                    raise
                log.warning("trust: %s", error)

    def _accept(self, proven: Proven, mirror: str, memory: Memory) -> Accepted:
        reference = self._reference(memory.floors)
        before = memory.floors or Kept(Floors(time=utc_text(self._time_floor)))
        manifests = proven.manifests()
        for version, digest in manifests.items():
            if before.value.seen_sha256(version) not in (None, digest):
                log.error("trust: release %s has changed its manifest: it will be refused", version)
        floors = before.value.raised(proven.versions, proven.signers, manifests, reference)
        if floors != before.value or memory.mended:
            floor_file.save(self._state, Kept(floors, before.raw))
        held = to_hold(proven, mirror, reference, memory.held)
        sets.publish(self._state, held, memory.held)
        if self._state.read(ROOT_FILE) != held.files["root"]:
            self._state.replace(ROOT_FILE, held.files["root"])
        self._open = proven
        targets.drop_unreferenced(self._state, proven)
        return held.accepted(utc_time(floors.time), tuple(memory.mended))

    # Reading.

    def accepted(self) -> Accepted | None:
        """Return the last accepted set without the network, None when there is none; raise Untrusted if damaged."""
        held = held_set(self._state)
        return None if held is None else held.accepted(self._known_time())

    def channel(self, name: str) -> Channel:
        """Return what a channel offers; cached content needs no network."""
        convert(name, Name, "channel")
        path = f"channels/{name}.json"
        if path == WITHDRAWN_PATH:
            raise InvalidDocument("channel", "", "'withdrawn' is the list of withdrawn releases", "name a channel")
        channel = self._document(path, Channel)
        if channel.channel != name:
            raise Untrusted(
                f"{path} is the document of channel {channel.channel!r}",
                mend="ask the publisher to promote a release again",
                reason="channel-mismatch",
            )
        return channel

    def channels(self) -> list[str]:
        """Return the sorted names of the channels there are."""
        paths = self._proven().paths("channels/")
        return [path.removeprefix("channels/").removesuffix(".json") for path in paths if path != WITHDRAWN_PATH]

    def withdrawn(self) -> Withdrawn:
        """Return the signed list of withdrawn releases."""
        return self._document(WITHDRAWN_PATH, Withdrawn)

    def versions(self) -> list[str]:
        """Return the versions of all published manifests, oldest first."""
        return sorted(self._proven().manifests(), key=Version)

    def manifest(self, version: str) -> tuple[Manifest, bytes]:
        """Return a release's manifest with its proven bytes; cached content needs no network."""
        release = Version(version)
        path = f"manifests/{release}.json"
        raw = self._read(path)
        floors = held_floors(self._state)
        seen = floors.seen_sha256(release.text) if floors else None
        digest = hashlib.sha256(raw).hexdigest()
        if seen is not None and seen != digest:
            raise Untrusted(
                f"release {release} was published with manifest {seen[:16]}…, and now has {digest[:16]}…",
                mend="a version never changes: ask the publisher for a new one, and why this one was touched",
                reason="version-changed",
            )
        try:
            manifest = parse_manifest(raw, path)
        except InvalidDocument as error:
            raise Untrusted(
                f"the signed manifest is not valid: {error.message}",
                mend="ask the publisher for a corrected release under a new version",
                reason="manifest-invalid",
            ) from error
        if manifest.version != release.text:
            raise Untrusted(
                f"{path} is the manifest of release {manifest.version}",
                mend="ask the publisher to publish the release again under a new version",
                reason="version-mismatch",
            )
        return manifest, raw

    def later_deltas(self, manifest: Manifest) -> LaterDeltas | None:
        """Return the deltas that a release was given after its publication, None when there are none."""
        path = later_path(manifest.version)
        if self._proven().find(path) is None:
            return None
        try:
            return parse_later(self._read(path), manifest, path)
        except InvalidDocument as error:
            raise Untrusted(
                f"a signed document is not valid: {error.message}",
                mend="ask the publisher to sign it anew",
                reason="target-invalid",
            ) from error

    def status(self) -> TrustStatus:
        """Return what is known offline; damage is told, not raised."""
        damages: list[str] = []
        accepted: Accepted | None = None
        root_version = 0
        floor = self._time_floor
        try:
            floor = self._known_time()
        except Untrusted as error:
            damages.append(error.message)
        try:
            held = held_set(self._state)
            if held is not None:
                accepted = held.accepted(floor)
                root_version = accepted.role("root").version
        except Untrusted as error:
            damages.append(error.message)
        try:
            root_version = roots.parse_root(
                newest_root(self._state, None, self._bootstrap_roots), "the trusted root"
            ).signed.version
        except Untrusted as error:
            damages.append(error.message)
        return TrustStatus(accepted, root_version, floor, max(self._now(), floor), "; ".join(damages))

    # Changing what is trusted.

    def adopt_root(self, chain: Sequence[Path]) -> int:
        """Follow the roots that a committed image ships, from the trusted one on; return the version now trusted.

        Older ones count for nothing. Raises Untrusted (`root-chain-broken`) when the chain does not hang from ours.
        """
        memory = remember(self._state, self._bootstrap_roots)
        root = memory.root
        version = roots.parse_root(root, "the trusted root").signed.version
        for source, candidate in roots.read_chain(chain):
            if roots.parse_root(candidate, source).signed.version > version:
                root = roots.follow(root, candidate, source)
                version += 1
        if root != memory.root:
            if memory.floors is not None:
                floors = memory.floors.value.with_root(version)
                floor_file.save(self._state, Kept(floors, memory.floors.raw))
            self._state.replace(ROOT_FILE, root)
            log.info("trust: root version %d is trusted now", version)
        return version

    def start_over(self) -> None:
        """Forget all that was accepted; the next refresh begins with the image's roots. For an operator to decide."""
        self._open = None
        for name in (sets.POINTER, floor_file.FILE, ROOT_FILE, sets.SETS, targets.FOLDER):
            self._state.remove(name)

    # Inside.

    def _known_time(self) -> datetime:
        floors = held_floors(self._state)
        return self._time_floor if floors is None else max(self._time_floor, utc_time(floors.time))

    def _proven(self) -> Proven:
        if self._open is None:
            held = held_set(self._state)
            if held is None:
                raise Untrusted(
                    "nothing has been accepted from the repository yet",
                    mend="run `acl-updater check` while it can be reached",
                    reason="nothing-accepted",
                )
            try:
                self._open = workflow.replay(held.files, utc_time(held.stored.refreshed))
            except Exception as error:
                raise corrupt(f"the accepted metadata does not prove itself: {error}") from error
        return self._open

    def _document(self, path: str, kind: type[T]) -> T:
        raw = self._read(path)
        try:
            return decode_json(raw, kind, path)
        except InvalidDocument as error:
            raise Untrusted(
                f"a signed document is not valid: {error.message}",
                mend="ask the publisher to sign it anew",
                reason="target-invalid",
            ) from error

    def _read(self, path: str) -> bytes:
        return targets.read_target(self._state, self._proven(), path, self._fetcher.per_mirror())
