"""The lab's side of the guest agent: commands inside the guest, over a virtio-serial port, without a network."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in the guest did."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return its standard output as JSON; raise ValueError that shows what came instead."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise ValueError(f"{' '.join(self.argv)} wrote no JSON: {(self.stdout + self.stderr)[-400:]!r}") from error


class AgentTalk:
    """Turns the bytes of one agent connection into answers; the agent says hello when its system is up."""

    def __init__(self) -> None:
        """Begin before the agent runs."""
        self._pending = b""
        self.hello: dict[str, Any] | None = None
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
            if isinstance(message.get("hello"), dict):
                self.hello = message["hello"]
            elif isinstance(message.get("id"), int):
                self.answers[message["id"]] = message


def run_request(number: int, argv: list[str], *, stdin: bytes, timeout_s: float) -> bytes:
    """Return the line that asks the agent to run a command to its end."""
    request = {
        "id": number,
        "run": argv,
        "stdin_base64": base64.b64encode(stdin).decode(),
        "timeout_s": timeout_s,
    }
    return json.dumps(request).encode() + b"\n"


def ran(argv: list[str], answer: dict[str, Any]) -> Ran:
    """Return an agent's answer as a value."""
    return Ran(
        tuple(argv),
        int(answer.get("exit_code", 255)),
        str(answer.get("stdout", "")),
        str(answer.get("stderr", answer.get("error", ""))),
    )
