"""Steps that break something, as documents."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from integration.lab.terms import (
    Condition,
    EntryPattern,
    Release,
    Seconds,
    SlotName,
    Text,
    Wrong,
    check_pattern,
    exactly_one,
)
from updater.schema import Name, limited

_Script = Annotated[str, limited("write a shell script of at most 8000 characters", min_length=1, max_length=8000)]
_Count = Annotated[int, limited("write a number, 0 or more", ge=0, le=1 << 40)]

# Where a script of a fault runs; the guest finds it as the credential `acl.lab.<word>.<fault>`.
SCRIPTS = {"early": "early", "script": "root", "initrd_early": "initrd-early", "initrd": "initrd"}


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give the guest a fault by name; that release alone obeys it, and must be seen to.

    From then on every boot is given it, until `clear` is a step. Without a script the name is that of a hook in the
    reference image. `script` runs once the release is up, `early` while PID 1 reads its units (`$1` is a folder for
    drop-ins), `initrd` when the initrd has found its root, `initrd_early` before.
    """

    release: Release
    name: Name
    # A fault that acts before any console can tell is proven by its effect: the scenario's own expectations.
    silent: bool = False
    early: _Script | None = None
    script: _Script | None = None
    initrd_early: _Script | None = None
    initrd: _Script | None = None

    @property
    def credentials(self) -> dict[str, str]:
        """Return its scripts as the guest gets them."""
        scripts = {word: getattr(self, key) for key, word in SCRIPTS.items()}
        return {f"acl.lab.{word}.{self.name}": text for word, text in scripts.items() if text is not None}


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cut the power when a condition holds: `boot` or the guest command `updater` is begun after the trigger is set."""

    when: Condition
    boot: bool = False
    updater: Text | None = None
    timeout_s: Seconds = 240.0


class Tamper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change bytes on the powered-off disk, behind everybody's back.

    Either 4096-byte block `block` of a slot (of its hash tree with `tree`, else of its data); or the whole slot, which
    becomes a copy of the slot `copy_of`; or a file of the ESP:
    truncated to `truncate_bytes`, with the byte at `at_byte` changed, renamed to `rename` in its folder, filled up with
    `append_bytes` zeros, zeroed (`zero`), removed (`remove`), with the attribute `read_only`, with the `content`
    of another, or with a hole in its chain of clusters, where one sector of the ESP's first table became zeros
    (`lose_clusters`); or a `partition` by its label: `zero_bytes` of it from the byte `at_byte` on become zero.
    """

    slot: SlotName | None = None
    block: _Count | None = None
    tree: bool = False
    copy_of: SlotName | None = None
    file: Text | None = None
    truncate_bytes: _Count | None = None
    at_byte: _Count | None = None
    rename: EntryPattern | None = None
    append_bytes: Annotated[int, limited("write a number of bytes", ge=1, le=1 << 30)] | None = None
    zero: Literal[True] | None = None
    remove: Literal[True] | None = None
    read_only: Literal[True] | None = None
    lose_clusters: Literal[True] | None = None
    content: Text | None = None
    partition: Text | None = None
    zero_bytes: Annotated[int, limited("write a number of bytes", ge=1, le=1 << 30)] | None = None

    def __post_init__(self) -> None:
        if sum(item is not None for item in (self.slot, self.file, self.partition)) != 1:
            raise Wrong(
                "scenario",
                "",
                "it needs one object",
                "give `slot` and `block`, `file`, or `partition` and `zero_bytes`",
            )
        if self.slot is not None and (self.block is None) == (self.copy_of is None):
            raise Wrong("scenario", "block", "a slot needs one change", "give `block` or `copy_of`")
        if self.partition is not None and self.zero_bytes is None:
            raise Wrong("scenario", "zero_bytes", "the key 'zero_bytes' is missing", "add it")
        if self.file is not None and len([key for key in FILE_CHANGES if getattr(self, key) is not None]) != 1:
            raise Wrong("scenario", "file", "it needs one change", f"give one of: {', '.join(FILE_CHANGES)}")


FILE_CHANGES = (
    "truncate_bytes",
    "at_byte",
    "rename",
    "append_bytes",
    "zero",
    "remove",
    "lose_clusters",
    "read_only",
    "content",
)


class Fill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fill the ESP of the powered-off disk, or the state partition of the running guest; `free` undoes it."""

    what: Literal["esp", "state"]
    leave_bytes: Annotated[int, limited("write a number of bytes", ge=0)] = 0
    free: bool = False


class Firmware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change the variable store of the powered-off machine; exactly one key.

    `wipe` makes it as new, `forget_boot_order` deletes BootOrder and every Boot####, `fill` leaves no room for another
    variable, `read_only` keeps the firmware from writing to it (false undoes that).
    """

    wipe: Literal[True] | None = None
    forget_boot_order: Literal[True] | None = None
    fill: Literal[True] | None = None
    read_only: bool | None = None

    def __post_init__(self) -> None:
        exactly_one(self, self.__struct_fields__, "a firmware step")


class BadSector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sector of the machine's disk that cannot be read, or written: in 4096-byte block `block` of a partition."""

    partition: Text
    block: _Count = 0
    access: Literal["read", "write"] = "read"


class MachineChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change the powered-off machine from its next start on; what is not given stays, `restore` undoes all.

    `clock` is what the real-time clock says at power-on (UTC; OVMF reads two digits of the year, as 1998 to 2097),
    `slow_disk` the bytes a second that the disk can do, `twin_disk` adds a copy of the disk as it is now, with the same
    UUIDs, as a second one. `network: none` takes the card away.
    """

    clock: (
        Annotated[
            str, limited("write a time such as 1999-01-01T00:00:00", pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$(?!\n)")
        ]
        | None
    ) = None
    slow_disk: Annotated[int, limited("write bytes a second, 10000 or more", ge=10_000, le=1 << 40)] | None = None
    bad_sectors: list[BadSector] | None = None
    twin_disk: Literal[True] | None = None
    network: Literal["none"] | None = None
    watchdog: bool | None = None
    restore: Literal[True] | None = None


_UP = "Reached target .*(multi-user.target|Multi-User System)"


class Processor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let the processor go wrong inside the kernel, in every boot of a release whose console shows `at`.

    The lab stops it there and puts other instructions where it would go on. `oops`: one that there is not, in another
    task than the idle one; `spin`: an endless loop, interrupts on (a soft lockup); `spin-without-interrupts`: the same
    with interrupts off, so that no timer of the kernel is left. Without `at`, once the system is up.
    """

    release: Release
    does: Literal["oops", "spin", "spin-without-interrupts"]
    at: Text = _UP

    def __post_init__(self) -> None:
        check_pattern("at", self.at)


class Unplug(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take the disk away in every boot of a release whose console shows `at`; without it, once the system is up.

    Whatever is read or written fails from then on. A reset finds it plugged in again.
    """

    release: Release
    at: Text = _UP

    def __post_init__(self) -> None:
        check_pattern("at", self.at)


class LyingDiskStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let the powered-off machine's disk lie from now on: it acknowledges writes and flushes, and keeps none of them.

    Until the next power cut nobody notices; then these `partitions` (labels; all of the disk without any) hold what
    they hold now. After it the disk is honest again.
    """

    partitions: Annotated[list[Text], limited("list at most 20 labels", max_length=20)] = []


class Serve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tell the repository's server to fail; `works` mends it.

    `refuse` closes connections without a word, `reset` with a TCP reset, `cut` ends a body early, `stall` never ends
    it, `slow` sends `rate` bytes a second, `status` sends an HTTP status, `no-range` the whole file whatever was
    asked, `wrong-range` another part of it, `gzip` the file packed on the fly, `endless` a body without an end,
    `portal` a page that wants a login, `garble` wrong bytes, `longer` a body one byte longer than the file.
    """

    kind: Literal[
        "works",
        "refuse",
        "reset",
        "cut",
        "stall",
        "slow",
        "status",
        "no-range",
        "wrong-range",
        "gzip",
        "endless",
        "portal",
        "garble",
        "longer",
    ]
    paths: Text = "*"
    after_bytes: Annotated[int, limited("write a number of bytes", ge=0)] = 0
    status: Annotated[int, limited("write an HTTP status, from 400 to 599", ge=400, le=599)] = 503
    rate: Annotated[int, limited("write bytes a second", ge=1, le=1 << 40)] = 20_000


class Repository(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Change this scenario's own copy of the repository; exactly one key.

    `tamper` flips a byte in every served file that matches a glob, `lose` removes them; `expire` lets the short-lived
    metadata expire; `renew` signs it anew; `promote` makes the channel offer a release; `withdraw` withdraws one;
    `unsign` publishes one again whose UKI bears no signature for Secure Boot;
    `attack` forges metadata: `mixed` (a new timestamp over the old snapshot), `wrong-key` (a timestamp that a stranger
    signed), `unsigned`, `short-threshold` (a new root that too few signed), `huge`, `deep` (32 delegations in a chain);
    `restore` undoes all.
    """

    tamper: Text | None = None
    lose: Text | None = None
    expire: Literal[True] | None = None
    renew: Literal[True] | None = None
    promote: Release | None = None
    withdraw: Release | None = None
    unsign: Release | None = None
    attack: Literal["mixed", "wrong-key", "unsigned", "short-threshold", "huge", "deep"] | None = None
    restore: Literal[True] | None = None

    def __post_init__(self) -> None:
        exactly_one(self, self.__struct_fields__, "a repository step")
