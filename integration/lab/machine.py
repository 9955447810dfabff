"""A machine under watch: a disk, a variable store and a power button."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from integration.lab.agent import AgentTalk, Ran, ran, run_request
from integration.lab.boots import Observer
from integration.lab.emulator import Emulator, Given, Hardware, Wires, command
from integration.lab.patience import Patience
from integration.lab.qmp import QmpTalk, ask
from integration.lab.timeline import Boot, Ending
from updater.errors import EnvironmentFailure

T = TypeVar("T")
_LOCK_TRIES = 50
Trigger = Callable[[], str | None]


class LabTimeout(EnvironmentFailure):
    """Something that the lab waited for did not come."""


class Machine:
    """One machine in QEMU that keeps its disk and variable store over any number of boots.

    A guest's reset ends its QEMU and the next boot is a new one, so that every boot has its own serial log, what it
    was given can change from boot to boot, and the disk between two boots is at rest when it is looked at. A power
    cut is a SIGKILL. Use it as a context manager: leaving it leaves no process behind.
    """

    def __init__(
        self,
        emulator: Emulator,
        *,
        disk: Path,
        folder: Path,
        observer: Observer,
        hardware: Hardware | None = None,
    ) -> None:
        """Take a raw disk image, which is changed in place, and a folder for the variable store and serial logs."""
        self.emulator = emulator
        self.disk = disk
        self.folder = folder
        self.observer = observer
        self.hardware = hardware or Hardware()
        self.given = Given()
        self.most_boots = 40
        folder.mkdir(parents=True, exist_ok=True)
        self.variables = folder / "efi-variables.fd"
        if not self.variables.exists():
            shutil.copyfile(emulator.firmware_variables, self.variables)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._wires: tuple[socket.socket, socket.socket] | None = None  # agent, QMP
        self._agent = AgentTalk()
        self._qmp = QmpTalk()
        self._number = 0
        self._cut_because: str | None = None
        self._stop = False
        self._failure: BaseException | None = None
        self._triggers: list[Trigger] = []

    # -- power ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_on(self) -> bool:
        """Tell whether the machine has power."""
        return self._thread is not None and self._thread.is_alive()

    def power_on(self) -> None:
        """Give power; the machine then boots, and boots again after each reset, until it is cut or powers off."""
        if self.is_on:
            raise RuntimeError("the machine is on already")
        self._cut_because = None
        self._stop = False
        self._thread = threading.Thread(target=self._live, name="machine", daemon=True)
        self._thread.start()

    def power_cut(self, because: str = "the scenario cut it") -> None:
        """Take the power away between two instructions; return when nothing runs any more."""
        self.cut_soon(because)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def cut_soon(self, because: str) -> None:
        """Take the power away from any thread, at once, without waiting for the end."""
        with self._changed:
            self._stop = True
            self._cut_because = self._cut_because or because
            self._kill()

    def power_off(self, *, budget_s: float = 90) -> None:
        """Have the guest power off in good order, and wait until it is off."""
        if self.agent_is_up:
            self.guest_begin("systemctl", "poweroff", "--no-block")
        else:
            self._ask("system_powerdown")
        self.wait(lambda: not self.is_on or None, "the guest to power off", budget_s=budget_s)

    def close(self) -> None:
        """End whatever still runs."""
        with self._changed:
            self._stop = True
            self._kill()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def cut_when(self, trigger: Trigger) -> None:
        """Cut the power the moment `trigger`, called on the watching thread, returns a reason; then forget it."""
        with self._changed:
            self._triggers.append(trigger)

    @property
    def cut_because(self) -> str | None:
        """Return why the power was cut, once it was."""
        return self._cut_because

    def forget_triggers(self) -> int:
        """Disarm the triggers that have not fired; return how many there were."""
        with self._changed:
            left = len(self._triggers)
            self._triggers.clear()
            return left

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    # -- waiting -------------------------------------------------------------------------------------------------

    @property
    def boots(self) -> tuple[Boot, ...]:
        """Return every boot so far, the running one last."""
        return self.observer.boots

    def wait(self, ready: Callable[[], T | None], what: str, *, budget_s: float, while_on: bool = False) -> T:
        """Return what `ready` gives once it is neither None nor False; raise LabTimeout that shows the serial log.

        `budget_s` is meant for a quiet machine. With `while_on`, a machine that lost its power ends the wait.
        """
        patience = Patience(budget_s)
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                value = ready()
                if value is not None and value is not False:
                    return value
                if while_on and not self.is_on:
                    raise LabTimeout(
                        f"the machine went off while the lab waited for {what}",
                        mend=f"see {self.observer.newest_log()}",
                        reason="machine-off",
                    )
                if patience.is_over:
                    raise LabTimeout(
                        f"waited {budget_s:g} s (of a quiet machine) for {what}",
                        mend=f"see {self.observer.newest_log()}",
                        reason="lab-timeout",
                    )
                self._changed.wait(0.25)

    def pause(self, most_s: float) -> None:
        """Let something happen: return at the next change, or after `most_s` seconds without one."""
        with self._changed:
            self._changed.wait(most_s)

    # -- the guest -----------------------------------------------------------------------------------------------

    @property
    def agent_is_up(self) -> bool:
        """Tell whether the guest's agent greeted in this boot."""
        return self._agent.greeted

    def guest(self, *argv: str, stdin: str = "", budget_s: float = 120) -> Ran:
        """Run a command in the guest to its end; raise LabTimeout when the guest dies or takes too long."""
        talk, number = self.guest_begin(*argv, stdin=stdin, budget_s=budget_s)
        what = f"`{' '.join(argv)}` in the guest"
        answer = self.wait(
            lambda: talk.answers.pop(number, None) or ({} if talk is not self._agent else None),
            what,
            budget_s=budget_s,
            while_on=True,
        )
        if not answer:
            raise LabTimeout(f"the guest rebooted during {what}", mend="see its serial log", reason="guest-rebooted")
        return ran(list(argv), answer)

    def guest_begin(self, *argv: str, stdin: str = "", budget_s: float = 120) -> tuple[AgentTalk, int]:
        """Start a command in the guest and return at once; nobody need wait for its answer."""
        self.wait(lambda: self.agent_is_up or None, "the guest's agent", budget_s=budget_s, while_on=True)
        with self._changed:
            self._number += 1
            number, talk, wires = self._number, self._agent, self._wires
        if wires is None:
            raise LabTimeout("the machine is off", mend="power it on first", reason="machine-off")
        # The guest's clock runs on a machine as busy as ours: its limit is generous, ours decides.
        wires[0].sendall(run_request(number, list(argv), stdin=stdin, timeout_s=budget_s * 8))
        return talk, number

    def _ask(self, name: str, **arguments: Any) -> None:
        with self._changed:
            self._number += 1
            number, talk, wires = self._number, self._qmp, self._wires
        if wires is None:
            return
        wires[1].sendall(ask(name, number, **arguments))
        self.wait(lambda: talk.answers.pop(number, None), f"QEMU to do {name}", budget_s=30, while_on=True)

    # -- the watching thread -------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            while not self._stop:
                ending = self._boot_once()
                if ending not in (Ending.RESET, Ending.WATCHDOG):
                    return
                if len(self.observer.boots) >= self.most_boots:
                    self.observer.note("lab", f"gave up after {self.most_boots} boots")
                    return
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._kill()
                self._changed.notify_all()

    def _boot_once(self) -> Ending:
        with self._changed:
            if self._stop:
                return Ending.POWER_CUT
            self.observer.begin(self.given)
        shutdown, said = self._emulate()
        for _ in range(_LOCK_TRIES):
            # The kernel may drop the lock of a QEMU that has just ended a little after it was reaped.
            if self._stop or shutdown is not None or "lock" not in said:
                break
            time.sleep(0.1)
            shutdown, said = self._emulate()
        ending = self._ending(shutdown, said)
        with self._changed:
            self.observer.end(ending)
            self._changed.notify_all()
        return ending

    def _emulate(self) -> tuple[str | None, str]:
        """Run QEMU to its end; return the guest's reason for it, if there was one, and what QEMU itself said."""
        console, console_end = os.pipe()
        pairs = [socket.socketpair() for _ in range(2)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        wires = Wires(*(end.fileno() for end in theirs))
        argv = command(self.emulator, self.hardware, self.given, wires, disk=self.disk, variables=self.variables)
        with self._changed:
            self._agent, self._qmp = AgentTalk(), QmpTalk()
            self._wires = (ours[0], ours[1])
            self._process = process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console_end,
                stderr=subprocess.PIPE,
                pass_fds=(wires.agent, wires.qmp),
                start_new_session=True,
            )
            if self._stop:
                self._kill()
        os.close(console_end)
        for end in theirs:
            end.close()
        said = b""
        try:
            with contextlib.suppress(OSError):
                ours[1].sendall(ask("qmp_capabilities", 0))
            shutdown = self._watch(console, ours)
        finally:
            self._kill()
            if process.stderr is not None:
                said = process.stderr.read()
                process.stderr.close()
            process.wait()
            with self._changed:
                self._wires = None
            os.close(console)
            for end in ours:
                end.close()
        return shutdown, said.decode("utf-8", "replace")

    def _ending(self, shutdown: str | None, said: str) -> Ending:
        if self._cut_because is not None:
            self.observer.note("power cut", self._cut_because)
            return Ending.POWER_CUT
        if shutdown in ("guest-reset", "subsystem-reset", "host-qmp-system-reset"):
            return Ending.WATCHDOG if self.observer.saw_watchdog else Ending.RESET
        if shutdown is not None:
            return Ending.POWER_OFF
        if not self._stop:
            self._failure = EnvironmentFailure(
                f"QEMU ended without a reason: {said.strip()[-400:] or 'it said nothing'}",
                mend="see the words of QEMU itself",
                reason="emulator-failed",
            )
            return Ending.CRASH
        return Ending.STILL_ON

    def _watch(self, console: int, ours: list[socket.socket]) -> str | None:
        shutdown: str | None = None
        # The console first: what the guest printed before it reset belongs before the event that says so.
        ends = [console, *(end.fileno() for end in ours)]
        with selectors.DefaultSelector() as selector:
            for end in ends:
                selector.register(end, selectors.EVENT_READ)
            while selector.get_map():
                # A trigger that looks at the disk must see the window between two flushes of a slow guest.
                ready = {key.fd for key, _ in selector.select(0.002 if self._triggers else 0.5)}
                for end in [end for end in ends if end in ready]:
                    data = _received(end)
                    with self._changed:
                        if not data:
                            selector.unregister(end)
                        elif end == ends[0]:
                            self.observer.serial(data)
                        elif end == ends[1]:
                            self._agent.feed(data)
                        else:
                            shutdown = self._heard(data) or shutdown
                        self._changed.notify_all()
                self._pull_triggers()
        return shutdown

    def _heard(self, data: bytes) -> str | None:
        shutdown = None
        for event in self._qmp.feed(data):
            self.observer.event(event)
            if event.name == "SHUTDOWN":
                shutdown = str(event.about.get("reason"))
        return shutdown

    def _pull_triggers(self) -> None:
        for trigger in list(self._triggers):
            reason = trigger()
            if reason is not None:
                self._triggers.remove(trigger)
                self.cut_soon(reason)
                return


def _received(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except ConnectionResetError:
        return b""
