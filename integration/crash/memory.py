"""What a node would remember after a cut, once the journal of its state partition's file system is replayed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from updater.run import run

_FOLDER = "lib/acl-updater"
_CORRECTED = (0, 1)
# Phases in which a trial may stand in the boot menu.
_TRIAL_KNOWN = ("armed", "committing", "rolling-back", "reverting")


@dataclass(frozen=True, slots=True)
class Memory:
    """The journal's phase, the slot and version that it is about, and the ledgers that could be read."""

    phase: str
    about: tuple[str, str] | None
    ledgers: tuple[Mapping[str, Any], ...]
    complaints: tuple[str, ...] = ()

    def proven(self, esp: tuple[Mapping[str, Any], ...]) -> set[tuple[str, str]]:
        """Return (slot, version) of what is proven by the newest ledger, of these and the ESP's."""
        return {(item["slot"], item["release"]["version"]) for item in self._newest(esp).get("proven", [])}

    def knows_trial(self, slot: str, version: str, esp: tuple[Mapping[str, Any], ...]) -> bool:
        """Tell whether journal or ledger knows that this release may be on trial."""
        armed = self._newest(esp).get("armed")
        told = armed is not None and (armed["slot"], armed["release"]["version"]) == (slot, version)
        return told or (self.phase in _TRIAL_KNOWN and self.about == (slot, version))

    def _newest(self, esp: tuple[Mapping[str, Any], ...]) -> Mapping[str, Any]:
        return max((*self.ledgers, *esp), key=lambda ledger: int(ledger.get("serial", 0)), default={})


@dataclass(slots=True)
class MemoryReader:
    """Reads the state partition of a medium by e2fsprogs, on a copy; remembers what it read for equal states.

    `tool` returns the path of a program of that name. `repaired` counts the states that replaying the journal did not
    mend.
    """

    tool: Callable[[str], Path | str]
    scratch: Path
    repaired: int = 0
    _known: dict[int, Memory] = field(default_factory=dict)

    def read(self, fingerprint: int, partition: Path) -> Memory:
        """Return what a node with this state partition would remember."""
        found = self._known.get(fingerprint)
        if found is None:
            found = self._known[fingerprint] = self._read(partition)
        return found

    @property
    def count(self) -> int:
        """Return how many states were really looked at."""
        return len(self._known)

    def _read(self, partition: Path) -> Memory:
        copy = self.scratch / "state.img"
        run(["cp", "--reflink=auto", "--", partition, copy])
        if self._refusal(copy, "-p") is not None:
            # As the images' initrd does: half a superblock has the wrong checksum, and its backup is asked for by a
            # full repair alone.
            self.repaired += 1
            if (said := self._refusal(copy, "-fy")) is not None:
                return Memory("lost", None, (), (f"e2fsck gives up on the state partition: {said}",))
        complaints: list[str] = []
        journal, ledger = (self._document(copy, name, complaints) for name in ("journal", "ledger"))
        update = journal.get("update")
        about = (update["slot"], update["release"]["version"]) if update else None
        return Memory(str(journal.get("phase", "none")), about, (ledger,) if ledger else (), tuple(complaints))

    def _refusal(self, copy: Path, how: str) -> str | None:
        done = run([self.tool("e2fsck"), how, copy], check=False)
        return None if done.returncode in _CORRECTED else done.stdout.decode("utf-8", "replace").strip()[-200:]

    def _document(self, copy: Path, name: str, complaints: list[str]) -> Mapping[str, Any]:
        raw = run([self.tool("debugfs"), "-R", f"cat {_FOLDER}/{name}.json", copy]).stdout
        found = body_of(raw)
        if raw and found is None:
            # A name that reached the disk before its content did.
            complaints.append(f"{name}.json is corrupt")
        return found or {}


def body_of(raw: bytes | None) -> Mapping[str, Any] | None:
    """Return a document out of its envelope, or None when it is not whole."""
    try:
        body = json.loads(raw or b"")["body"]
    except (ValueError, KeyError, TypeError):
        return None
    return body if isinstance(body, dict) else None


def untrue(
    boots: tuple[str, str] | None,
    trials: tuple[tuple[str, str], ...],
    memory: Memory,
    esp: tuple[Mapping[str, Any], ...],
) -> Iterator[str]:
    """Tell what journal and ledger do not say and must: a trial that nobody knows of could never be judged.

    `boots` is the slot and version that would boot, `trials` are those whose counted entries have tries left.
    """
    proven = memory.proven(esp)
    for slot, version in trials:
        if (slot, version) not in proven and not memory.knows_trial(slot, version, esp):
            yield f"slot {slot} ({version}) is on trial, and neither journal (phase {memory.phase}) nor ledger knows"
    # The journal says that the verdict was to commit before the entry becomes good, the ledger says so after it.
    known = boots in proven or (memory.phase == "committing" and memory.about == boots)
    if boots is not None and boots not in trials and not known:
        yield (
            f"slot {boots[0]} ({boots[1]}) would boot without guard, "
            f"and neither journal (phase {memory.phase}) nor ledger knows"
        )
