"""A folder in memory that implements `Directory`, loses power where a test wants it, and tears what FAT tears."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from updater.errors import EnvironmentFailure
from updater.files import CHUNK_BYTES, checked, other_length

CLUSTER_BYTES = 4096
SECTOR_BYTES = 512


class PowerCut(BaseException):
    """Power failed: no code of ours may catch this and go on, so it is no Exception."""


class Power:
    """Power for several simulated devices: it fails before effect number `cut_after` (from 0), or one by name."""

    def __init__(self, cut_after: int | None = None, *, before: str | None = None) -> None:
        """Count effects; without a number or a name power lasts for ever."""
        self.cut_after = cut_after
        self.before = before
        self.effects: list[str] = []

    def spend(self, effect: str) -> None:
        """Let one durable effect happen, or raise PowerCut instead of it."""
        if effect == self.before or (self.cut_after is not None and len(self.effects) >= self.cut_after):
            raise PowerCut(effect)
        self.effects.append(effect)


@dataclass(frozen=True)
class Instant:
    """What a power cut right here would leave behind: `files`, and the effect that was under way."""

    effect: str
    files: Mapping[str, bytes]


class SimulatedDirectory:
    """A `Directory` in memory with FAT's manners: names without case, a capacity, read-only attributes.

    `instants` collects every state that a power cut could leave, torn ones included: a new file may be absent, empty,
    cut off after each chunk, or hold the bytes of the file that was last removed (its cluster was used again, and the
    folder reached the disk before the data); a replaced small file may be old, new or gone, with its temporary or not.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        capacity_bytes: int = 192 << 20,
        power: Power | None = None,
        ignore_case: bool = True,
    ) -> None:
        """Start with `files` by path."""
        self.capacity_bytes = capacity_bytes
        self.power = power or Power()
        self.ignore_case = ignore_case
        self.read_only: set[str] = set()
        self.instants: list[Instant] = []
        self._files: dict[str, tuple[str, bytes]] = {}
        self._last_removed = b""
        for path, content in (files or {}).items():
            self._files[self._key(path)] = (path, content)

    @property
    def files(self) -> dict[str, bytes]:
        """Return a copy of all files by path."""
        return dict(self._files.values())

    def set_read_only(self, path: str) -> None:
        """Give a file the read-only attribute."""
        self.read_only.add(self._key(path))

    def firmware_rename(self, old: str, new: str) -> None:
        """Rename as a FAT driver does, which a cut leaves old, new, both or neither; ours never rename on FAT."""
        content = self.files[old]
        with_both = {**self.files, new: content}
        without = {name: kept for name, kept in self.files.items() if name != old}
        self.instants += [Instant(f"rename {old}, both", with_both), Instant(f"rename {old}, neither", without)]

        def change() -> None:
            del self._files[self._key(old)]
            self._put(new, content)

        self._effect(f"rename {old} to {new}", change)

    def _key(self, path: str) -> str:
        checked(path)
        return path.lower() if self.ignore_case else path

    def _effect(self, effect: str, change: Callable[[], object]) -> None:
        self.power.spend(effect)
        change()
        self.instants.append(Instant(effect, self.files))

    def _torn(self, effect: str, path: str, content: bytes | None) -> None:
        """Record a state that only a cut can leave."""
        files = {name: old for name, old in self._files.values() if self._key(name) != self._key(path)}
        if content is not None:
            files[path] = content
        self.instants.append(Instant(effect, files))

    def _put(self, path: str, content: bytes) -> None:
        key = self._key(path)
        if any(key.startswith(f"{other}/") for other in self._files):
            raise EnvironmentFailure(f"cannot write {path}: a file stands where a folder should", reason="file-error")
        name = self._files[key][0] if key in self._files else path
        used = sum(_clusters(old) for other, (_, old) in self._files.items() if other != key)
        if used + _clusters(content) > self.capacity_bytes:
            raise EnvironmentFailure(
                f"cannot write {path}: {errno.errorcode[errno.ENOSPC]}", mend="free some space there", reason="no-space"
            )
        self._files[key] = (name, content)

    def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
        found = self._files.get(self._key(path))
        if found is None:
            return None
        if len(found[1]) > limit_bytes:
            raise EnvironmentFailure(f"{path} is larger than {limit_bytes} bytes", reason="file-too-large")
        return found[1]

    def chunks(self, path: str) -> Iterator[bytes]:
        found = self._files.get(self._key(path))
        if found is None:
            raise EnvironmentFailure(f"cannot read {path}: it is not there", reason="file-error")
        for start in range(0, len(found[1]), CHUNK_BYTES):
            yield found[1][start : start + CHUNK_BYTES]

    def write_new(self, path: str, chunks: Iterable[bytes]) -> None:
        if self._key(path) in self.read_only:
            raise EnvironmentFailure(f"cannot write {path}: it is read-only", reason="read-only")
        self._effect(f"create {path}", partial(self._put, path, b""))
        if self._last_removed:
            self._torn(f"create {path} over old bytes", path, self._last_removed)
        content = b""
        for chunk in chunks:
            content += chunk
            if len(chunk) > 1:
                self._torn(f"write a part of {path}", path, content[: -(len(chunk) // 2)])
            self._effect(f"write {path}", partial(self._put, path, content))

    def replace(self, path: str, content: bytes) -> None:
        self._effect(f"create {path}.new", partial(self._put, f"{path}.new", content))
        self._torn(f"rename to {path}, neither", path, None)

        def change() -> None:
            del self._files[self._key(f"{path}.new")]
            self._put(path, content)

        self._effect(f"rename to {path}", change)

    def overwrite(self, path: str, content: bytes) -> None:
        old = self._files.get(self._key(path), ("", b""))[1]
        if len(old) != len(content):
            raise other_length(path, len(old) or None, len(content))
        sectors = [
            at
            for at in range(0, len(content), SECTOR_BYTES)
            if old[at : at + SECTOR_BYTES] != content[at : at + SECTOR_BYTES]
        ]
        for number, at in enumerate(sectors):
            end = at + SECTOR_BYTES
            # A drive that dies inside a sector leaves it unreadable: garbage, for whoever asks for a signature.
            self._torn(
                f"overwrite {path}, sector {at // SECTOR_BYTES} lost",
                path,
                old[:at] + bytes(len(content[at:end])) + old[end:],
            )
            for later in sectors[number + 1 :]:
                self._torn(
                    f"overwrite {path}, sector {later // SECTOR_BYTES} first",
                    path,
                    old[:later] + content[later : later + SECTOR_BYTES] + old[later + SECTOR_BYTES :],
                )
            old = old[:at] + content[at:end] + old[end:]
            self._effect(f"overwrite {path}, sector {at // SECTOR_BYTES}", partial(self._put, path, old))

    def remove(self, path: str) -> None:
        key = self._key(path)
        for victim in sorted(self._files):
            if victim == key or victim.startswith(f"{key}/"):
                name, content = self._files[victim]
                self._effect(f"remove {name}", partial(self._files.pop, victim))
                self._last_removed = content
                self.read_only.discard(victim)

    def names(self, path: str = "") -> list[str]:
        prefix = f"{self._key(path)}/" if path else ""
        found: dict[str, str] = {}
        for key, (name, _) in self._files.items():
            if key.startswith(prefix):
                first = name[len(prefix) :].split("/", 1)[0]
                found.setdefault(first.lower() if self.ignore_case else first, first)
        return sorted(found.values())

    def size(self, path: str) -> int | None:
        found = self._files.get(self._key(path))
        return len(found[1]) if found is not None else None

    def rename_as_firmware(self, old: str, new: str) -> None:
        """Rename a file as the firmware does for the loader: before any of our code runs, so no effect of ours."""
        self._files[self._key(new)] = (new, self._files.pop(self._key(old))[1])

    def write_as_firmware(self, path: str, content: bytes) -> None:
        """Write a file as the loader does: before any of our code runs, so no effect of ours."""
        self._files[self._key(path)] = (path, content)

    def free_bytes(self) -> int:
        return self.capacity_bytes - sum(_clusters(content) for _, content in self._files.values())

    def is_read_only(self, path: str) -> bool:
        if self._key(path) not in self._files:
            raise EnvironmentFailure(f"cannot look at {path}: it is not there", reason="file-error")
        return self._key(path) in self.read_only


def _clusters(content: bytes) -> int:
    return -(-len(content) // CLUSTER_BYTES) * CLUSTER_BYTES
