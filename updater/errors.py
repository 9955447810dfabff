"""Errors of the updater, sorted by who must act.

Every error carries one sentence on what failed and on which object, and a `mend`: what to do next.
The command line prints both, and exits with the class's `exit_code`.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the three commands (documented in docs/exit-codes.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING_TO_DO = 3
    REFUSED = 4
    INVALID_INPUT = 5
    UNTRUSTED = 6
    ENVIRONMENT = 7
    INTERRUPTED = 130


class UpdaterError(Exception):
    """Say what failed, on which object, and what to do next."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, mend: str = "", reason: str = "failed") -> None:
        """Take a sentence, its mend, and `reason`: a stable kebab-case code for machines."""
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.message}: {self.mend}" if self.mend else self.message


class NothingToDo(UpdaterError):
    """Nobody must act: the node already is where it should be."""

    exit_code = ExitCode.NOTHING_TO_DO

    def __init__(self, message: str, *, mend: str = "", reason: str = "nothing-to-do") -> None:
        super().__init__(message, mend=mend, reason=reason)


class Refused(UpdaterError):
    """The operator must decide: policy, quarantine, a hold or a running trial forbids the step."""

    exit_code = ExitCode.REFUSED


class InvalidDocument(UpdaterError):
    """The document's author must act: it names the file, the key, the reason and the mend."""

    exit_code = ExitCode.INVALID_INPUT

    def __init__(self, source: str, key: str, why: str, mend: str) -> None:
        where = f"{source}: {key}" if key else source
        super().__init__(f"{where}: {why}", mend=mend, reason="invalid-document")
        self.source = source
        self.key = key
        self.why = why


class Untrusted(UpdaterError):
    """The publisher or the mirror must act: something that was served is not proven."""

    exit_code = ExitCode.UNTRUSTED


class EnvironmentFailure(UpdaterError):
    """The machine's owner must act: a disk, the ESP, the network or a tool does not do its part."""

    exit_code = ExitCode.ENVIRONMENT


class NetworkFailure(EnvironmentFailure):
    """A server could not be reached or stopped midway; trying again later is right."""


class SlotDamaged(EnvironmentFailure):
    """A slot's blocks do not match the root hash that it should hold."""
