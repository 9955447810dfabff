"""The ways in which a boot file can come: which delta fits this machine, and what each way takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from updater.fill.framed import FRAME_SPAN_BYTES
from updater.format.through import library
from updater.format.transport import Delta, FileTransport
from updater.prefetch import BYTES_AHEAD, SPAN_BYTES
from updater.records import FileRecord
from updater.ways import Cost, Way

_FRAMES_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """What a delta may take of this machine, in bytes; None where there is no limit."""

    memory_bytes: int | None = None
    scratch_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """The delta to take, or why there is none."""

    delta: Delta | None
    absent: str = ""


def pick_delta(
    transport: FileTransport | None, held: FileRecord | None, file: FileRecord, room: Room | None = None
) -> Picked:
    """Return the delta from the file that is held which fetches least of those that this machine can apply."""
    room = room or Room()
    known = transport.deltas if transport and held else []
    found = [delta for delta in known if held and delta.source == held.sha256]
    if not found or held is None:
        return Picked(None, "no delta is published from the running release's file")
    usable = [delta for delta in found if delta.through is None or delta.through.library == library()]
    if not usable:
        needed = " or ".join(sorted({delta.through.library for delta in found if delta.through}))
        return Picked(None, f"the delta needs {needed}, and here is {library()}")
    roomy = [delta for delta in usable if _fits(scratch_bytes(delta, held, file), room.scratch_bytes)]
    if not roomy:
        least = min(scratch_bytes(delta, held, file) for delta in usable)
        return Picked(None, f"the delta needs {least} bytes of the state partition, and {room.scratch_bytes} are free")
    lean = [delta for delta in roomy if _fits(_memory_bytes(delta), room.memory_bytes)]
    # Where none fits, the choice among the ways says so.
    return Picked(min(lean, key=_fetch_bytes) if lean else min(roomy, key=_memory_bytes))


def scratch_bytes(delta: Delta, held: FileRecord, file: FileRecord) -> int:
    """Return how much room a delta needs at most: the new file beside the old one and its unpacked form."""
    grown = sum(frame.content_bytes for frame in delta.through.source) if delta.through else 0
    return file.length_bytes + held.length_bytes + (held.length_bytes + grown if grown else 0)


def _fits(needed: int, most: int | None) -> bool:
    return most is None or needed <= most


def _fetch_bytes(delta: Delta) -> int:
    return delta.recipe.length_bytes + (delta.payload.length_bytes if delta.payload else 0)


def _memory_bytes(delta: Delta) -> int:
    return delta.memory_bytes + BYTES_AHEAD


def file_costs(
    file: FileRecord, transport: FileTransport | None, picked: Picked, barred: Mapping[Way, str]
) -> tuple[Cost, ...]:
    """Return what each way of fetching a boot file takes, as the manifest tells; requests are a lower bound."""
    length = file.length_bytes
    delta = picked.delta
    frames = transport.frames if transport else None
    costs = []
    if delta is not None:
        payload = delta.payload.length_bytes if delta.payload else 0
        requests = 1 + -(-payload // SPAN_BYTES)
        why = barred.get(Way.DELTA, "")
        costs.append(Cost(Way.DELTA, _fetch_bytes(delta), length, requests, _memory_bytes(delta), barred=why))
    else:
        costs.append(Cost(Way.DELTA, absent=picked.absent))
    if frames is not None:
        fetched = frames.index.length_bytes + frames.file.length_bytes
        requests = 1 + -(-frames.file.length_bytes // FRAME_SPAN_BYTES)
        why = barred.get(Way.FULL, "")
        costs.append(Cost(Way.FULL, fetched, length, requests, _FRAMES_MEMORY_BYTES, barred=why))
    else:
        costs.append(Cost(Way.FULL, absent="no frames are published"))
    return (*costs, Cost(Way.PLAIN, length, length, 1, 1 << 20))
