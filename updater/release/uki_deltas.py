"""Deltas between two UKIs: of the files as they are, and of their unpacked forms where those can be packed again."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from updater.files import explained
from updater.format.through import library, memory_bytes, packing_bytes, unpacking_bytes, write_unpacked
from updater.format.transport import Delta, FrameWithin, Packing, Through
from updater.release.blobs import BlobFolder
from updater.release.delta import Content, OperationSizes, make_delta
from updater.release.files import mapped
from updater.release.frames import Progress
from updater.release.packings import frames_within, packing_of

log = logging.getLogger(__name__)

LEAN_BYTES = 64 << 20
"""What packing may take where any node shall be able to do it."""

# Unpacking is over before a recipe's own memory is taken, and its bound is the widest window, not the frame's own: an
# unpacked initrd of 70 MB must not count as too much.
_LEAN_UNPACKING_BYTES = 2 * LEAN_BYTES

_LEAST_GAIN = 0.9


@dataclass(frozen=True, slots=True)
class _Part:
    """A frame of a UKI: in which section, what it holds by digest, and how it is packed, where that is known."""

    section: str
    frame: FrameWithin
    sha256: bytes
    packing: Packing | None = None

    @property
    def lean(self) -> bool:
        if self.packing is None:
            return False
        return packing_bytes(self.packing) <= LEAN_BYTES and unpacking_bytes(self.frame) <= _LEAN_UNPACKING_BYTES


class Ukis:
    """Makes the deltas to one UKI from older ones; its packings are found once."""

    def __init__(self, path: Path, blobs: BlobFolder, sizes: OperationSizes, progress: Progress) -> None:
        """Take the new UKI."""
        self._path = path
        self._blobs = blobs
        self._sizes = sizes
        self._progress = progress
        self._new: list[_Part] | None = None

    def deltas(self, old: Path, source: str, source_version: str) -> list[Delta]:
        """Return the deltas from an older UKI, whose SHA-256 is `source`: one that any node can apply comes first.

        A second one, for nodes that may use more memory, is kept only where it is a tenth smaller.
        """
        if self._new is None:
            self._new = _parts(self._path, pack=True)
        before = _parts(old, pack=False)
        same = {part.sha256 for part in before} & {part.sha256 for part in self._new}
        sections = {part.section for part in before if part.sha256 not in same}
        new = [part for part in self._new if part.sha256 not in same and part.packing and part.section in sections]
        made: list[Delta] = []
        for parts in _choices(new):
            wanted = {part.section for part in parts}
            olds = [part for part in before if part.section in wanted and part.sha256 not in same]
            delta = self._made(old, source, source_version, olds, parts)
            if not made or _length(delta) < _length(made[0]) * _LEAST_GAIN:
                made.append(delta)
        return made

    def _made(self, old: Path, source: str, version: str, olds: Sequence[_Part], news: Sequence[_Part]) -> Delta:
        with ExitStack() as opened:
            before, after = old, self._path
            if news:
                before = opened.enter_context(_unpacked(old, [part.frame for part in olds]))
                after = opened.enter_context(_unpacked(self._path, [part.frame for part in news]))
            contents = [Content.of(opened.enter_context(mapped(path))) for path in (before, after)]
            delta = make_delta(
                contents[0], contents[1], source, version, self._blobs, self._progress, sizes=self._sizes
            )
            if not news:
                return delta
            length = len(contents[1].raw)
        through = Through(library(), length, [part.frame for part in olds], list(_placed(news)))
        needed = memory_bytes(through, delta.memory_bytes)
        return msgspec.structs.replace(delta, through=through, memory_bytes=needed)


def _choices(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Return which frames to unpack: those that any node can pack again, then all of them."""
    lean = [part for part in parts if part.lean]
    return [lean] if len(lean) == len(parts) else [lean, list(parts)]


def _placed(parts: Sequence[_Part]) -> Iterator[Packing]:
    """Yield the packings with their places in the unpacked form."""
    grown = 0
    for part in parts:
        assert part.packing is not None
        yield msgspec.structs.replace(part.packing, at_bytes=part.frame.at_bytes + grown)
        grown += part.frame.content_bytes - part.frame.length_bytes


def _parts(path: Path, *, pack: bool) -> list[_Part]:
    found = []
    with mapped(path) as raw:
        for section, frame in frames_within(raw, path.name):
            held = raw[frame.at_bytes : frame.at_bytes + frame.length_bytes]
            packing = packing_of(held, frame) if pack else None
            if pack and packing is None:
                log.info("%s: no packing of %s makes the same frame in its %s", path.name, library(), section)
            found.append(_Part(section, frame, hashlib.sha256(held).digest(), packing))
            held.release()
    return found


@contextmanager
def _unpacked(path: Path, frames: Sequence[FrameWithin]) -> Iterator[Path]:
    with ExitStack() as made:
        with explained("cannot make a scratch file", "set TMPDIR to a folder with room"):
            target = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="acl-uki-"))) / "unpacked"
            with path.open("rb") as file, target.open("wb") as out:
                write_unpacked(file, path.stat().st_size, frames, out, path.name)
        yield target


def _length(delta: Delta) -> int:
    return delta.recipe.length_bytes + (delta.payload.length_bytes if delta.payload else 0)
