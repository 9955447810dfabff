"""A disk that QEMU's own block layer takes away and puts back."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.images.tooltree import tool_tree
from integration.lab.qmp import QmpTalk, ask
from integration.lab.storage import below_disk
from integration.lab.strikes import Moment
from integration.lab.unplug import Unplug

LENGTH = 1 << 20


@dataclass
class Storage:
    """A machine's disk without the machine, served to whoever connects."""

    wire: socket.socket
    url: str
    debugger: bytes | str | None = None
    monitor: QmpTalk = field(default_factory=QmpTalk)
    number: int = 0

    def ask(self, name: str, **arguments: Any) -> int:
        self.number += 1
        self.wire.sendall(ask(name, self.number, **arguments))
        while self.number not in self.monitor.answers:
            self.monitor.feed(self.wire.recv(65536))
        return self.number

    def can(self, *access: str) -> bool:
        argv = [str(tool_tree().tool("qemu-img")), "bench", "-c", "2", "-f", "raw", *access, self.url]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@dataclass
class Boots:
    """A machine's boots as a strike sees them."""

    running: tuple[int, str | None] = (1, "2.0.0")
    disk_errors: int = 0

    def console_shows(self, pattern: re.Pattern[str]) -> bool:
        return True

    def note(self, kind: str, text: str) -> None:
        pass


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    (tmp_path / "disk").write_bytes(b"x" * LENGTH)
    ours, theirs = socket.socketpair()
    lax = "cache.no-flush=on,discard=unmap"
    daemon = subprocess.Popen(
        [
            *(str(tool_tree().tool("qemu-storage-daemon")), "--chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
            *(
                "--monitor",
                "chardev=qmp",
                "--blockdev",
                f"driver=file,node-name=file,filename={tmp_path / 'disk'},{lax}",
            ),
            *("--blockdev", f"driver=raw,node-name=disk,file=file,{lax},detect-zeroes=unmap"),
            *("--nbd-server", f"addr.type=unix,addr.path={tmp_path / 'nbd'}"),
            *("--export", "type=nbd,id=disk,node-name=disk,writable=on"),
        ],
        pass_fds=(theirs.fileno(),),
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    made = Storage(ours, f"nbd+unix:///disk?socket={tmp_path / 'nbd'}")
    made.ask("qmp_capabilities")
    yield made
    daemon.kill()
    daemon.wait()
    ours.close()


def test_nothing_can_be_read_or_written_until_the_reset(storage: Storage) -> None:
    moment = Moment("2.0.0", re.compile(""))
    strike, boots = Unplug(moment, LENGTH, below_disk(slow=None, bad_sectors=())), Boots()
    seen = [(storage.can(), storage.can("-w"))]
    for boots.running in ((1, "2.0.0"), (2, "2.0.0")):
        strike.look(boots, storage)
        seen.append((storage.can(), storage.can("-w")))
        strike.boot_ended(storage)
        seen.append((storage.can(), storage.can("-w")))
    strike.look(Boots(running=(3, "1.0.0")), storage)
    assert seen == [(True, True), (False, False), (True, True), (False, False), (True, True)]
