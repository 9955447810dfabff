"""QEMU's machine protocol, as far as the lab speaks it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """An asynchronous event of QEMU, such as SHUTDOWN or WATCHDOG."""

    name: str
    about: dict[str, Any] = field(default_factory=dict)


class QmpTalk:
    """Turns the bytes of one QMP connection into events and answers."""

    def __init__(self) -> None:
        """Begin before the greeting."""
        self._pending = b""
        self.answers: dict[int, dict[str, Any]] = {}
        self.ready = False

    def feed(self, data: bytes) -> list[QmpEvent]:
        """Take bytes; return the events in them, and keep answers by their id."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        events = []
        for line in lines:
            if not line.strip():
                continue
            message = json.loads(line)
            if "QMP" in message:
                self.ready = True
            elif "event" in message:
                events.append(QmpEvent(message["event"], message.get("data", {})))
            elif isinstance(message.get("id"), int):
                self.answers[message["id"]] = message
        return events


def ask(command: str, number: int, **arguments: Any) -> bytes:
    """Return the line that asks QEMU to execute a command."""
    return json.dumps({"execute": command, "id": number, "arguments": arguments}).encode() + b"\n"
