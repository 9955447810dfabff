"""The lab's side of the guest agent: commands inside the guest, over a virtio-serial port, without a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in the guest did; `timed_out` when the agent ended it."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False


class AgentTalk:
    """Turns the bytes of one agent connection into answers; the agent greets when it runs."""

    def __init__(self) -> None:
        """Begin before the agent runs."""
        self._pending = b""
        self.greeted = False
        self.answers: dict[int, dict[str, Any]] = {}

    def feed(self, data: bytes) -> None:
        """Take bytes; keep the answers in them by id. Noise of a half-written line is skipped."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if not isinstance(message, dict):
                continue
            if message.get("event") == "ready":
                self.greeted = True
            elif isinstance(message.get("id"), int):
                self.answers[message["id"]] = message


def run_request(number: int, argv: list[str], *, stdin: str, timeout_s: float) -> bytes:
    """Return the line that asks the agent to run a command to its end."""
    request = {"id": number, "argv": argv, "stdin": stdin, "timeout_s": timeout_s}
    return json.dumps(request).encode() + b"\n"


def ran(argv: list[str], answer: dict[str, Any]) -> Ran:
    """Return an agent's answer as a value."""
    return Ran(
        tuple(argv),
        int(answer.get("rc", 255)),
        str(answer.get("stdout", "")),
        str(answer.get("stderr", "")),
        bool(answer.get("timed_out", False)),
    )
