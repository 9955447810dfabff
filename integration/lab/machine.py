"""A machine under watch: a disk, a variable store and a power button."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from integration.lab.agent import AgentTalk, Ran, ran, run_request
from integration.lab.boots import Observer
from integration.lab.emulator import Emulator, Given, Hardware, Recording, command
from integration.lab.patience import Patience
from integration.lab.session import Session, Wire
from integration.lab.strikes import Strikes
from integration.lab.timeline import Boot, Ending
from updater.errors import EnvironmentFailure

T = TypeVar("T")
_LOCK_TRIES = 50
_MOST_REPEATED = 4
Trigger = Callable[[], str | None]


class LabTimeout(EnvironmentFailure):
    """Something that the lab waited for did not come."""


class Machine:
    """One machine in QEMU that keeps its disk and variable store over any number of boots.

    A guest's reset pauses the machine, so that every boot has its own serial log, and the disk between two boots is
    at rest when it is looked at; where what it is given has changed meanwhile, the next boot is another QEMU. A
    power cut is a SIGKILL. Use it as a context manager: leaving it leaves no process behind.
    """

    def __init__(
        self,
        emulator: Emulator,
        *,
        disk: Path,
        folder: Path,
        observer: Observer,
        hardware: Hardware | None = None,
        recording: Recording | None = None,
    ) -> None:
        """Take a raw disk image, which is changed in place, and a folder for the variable store and serial logs.

        With a `recording` the disk's file holds the variable store as well, and every write is kept.
        """
        self.emulator = emulator
        self.disk = disk
        self.folder = folder
        self.observer = observer
        self.hardware = hardware or Hardware()
        self.recording = recording
        self.given = Given()
        self.most_boots = 40
        folder.mkdir(parents=True, exist_ok=True)
        self.variables = folder / "efi-variables.fd"
        if not self.variables.exists():
            shutil.copyfile(emulator.firmware_variables, self.variables)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._number = 0
        self._cut_because: str | None = None
        self._stop = False
        self._failure: BaseException | None = None
        self._triggers: list[Trigger] = []
        self.strikes = Strikes()

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
            with self._changed:
                if self._session is not None:
                    self._session.ask("system_powerdown")
        self.wait(lambda: not self.is_on or None, "the guest to power off", budget_s=budget_s)

    def reboot(self, *, budget_s: float = 90) -> None:
        """Have the guest reboot in good order, and wait until its next boot begins."""
        before = len(self.boots)
        self.guest_begin("systemctl", "reboot", "--no-block")
        self.wait(lambda: len(self.boots) > before, "the guest to reboot", budget_s=budget_s, while_on=True)

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
        if self._session is not None:
            self._session.kill()

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
        """Let something happen: return at the next change, or after `most_s` seconds without one.

        Raises what ended the watching, such as a full disk.
        """
        with self._changed:
            if self._failure is None:
                self._changed.wait(most_s)
            if self._failure is not None:
                raise self._failure

    # -- the guest -----------------------------------------------------------------------------------------------

    @property
    def agent_is_up(self) -> bool:
        """Tell whether the guest's agent greeted in this boot."""
        return self._session is not None and self._session.agent.greeted

    def guest(self, *argv: str, stdin: str = "", budget_s: float = 120) -> Ran:
        """Run a command in the guest to its end; raise LabTimeout when the guest dies or takes too long."""
        talk, number = self.guest_begin(*argv, stdin=stdin, budget_s=budget_s)
        what = f"`{' '.join(argv)}` in the guest"

        def answer() -> dict[str, Any] | None:
            gone = self._session is None or self._session.agent is not talk
            return talk.answers.pop(number, None) or ({} if gone else None)

        answered = self.wait(answer, what, budget_s=budget_s, while_on=True)
        if not answered:
            raise LabTimeout(f"the guest rebooted during {what}", mend="see its serial log", reason="guest-rebooted")
        return ran(list(argv), answered)

    def guest_begin(self, *argv: str, stdin: str = "", budget_s: float = 120) -> tuple[AgentTalk, int]:
        """Start a command in the guest and return at once; nobody need wait for its answer."""
        self.wait(lambda: self.agent_is_up or None, "the guest's agent", budget_s=budget_s, while_on=True)
        with self._changed:
            session = self._session
            self._number += 1
            number = self._number
        if session is None:
            raise LabTimeout("the machine is off", mend="power it on first", reason="machine-off")
        talk = session.agent
        # The guest's clock runs on a machine as busy as ours: its limit is generous, ours decides.
        session.tell_agent(run_request(number, list(argv), stdin=stdin, timeout_s=budget_s * 8))
        return talk, number

    # -- the watching thread -------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._boot_on()
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._kill()
                self._changed.notify_all()

    def _boot_on(self) -> None:
        """Boot until the power goes; a reset with other things given needs another QEMU."""
        again = True
        while again and not self._stop:
            with self._changed:
                self.observer.begin(self.given)
            for _ in range(_LOCK_TRIES):
                said, again = self._in_one_session()
                # The kernel may drop the lock of a QEMU that has just ended a little after it was reaped.
                if "lock" not in said or self._stop:
                    break
                time.sleep(0.1)
            else:
                raise EnvironmentFailure(
                    f"QEMU did not start: {said.strip()[-400:]}", mend="see who uses the disk", reason="emulator-failed"
                )

    def _in_one_session(self) -> tuple[str, bool]:
        """Follow one QEMU over its boots; return what it said of itself, and whether the machine boots again."""
        given = self.given
        with self._changed:
            self._session = session = Session(
                lambda wires: command(
                    self.emulator,
                    self.hardware,
                    given,
                    wires,
                    disk=self.disk,
                    variables=self.variables,
                    recording=self.recording,
                ),
                given,
                debugger=self.hardware.debugger,
            )
            if self._stop:
                session.kill()
        shutdown: str | None = None
        again = False
        repeated = 0
        try:
            while True:
                shutdown = self._follow(session)
                if shutdown is None or self._cut_because is not None:
                    break
                ending = self._ending_of(shutdown)
                # A kernel asks for its reset in several ways, one after the other, and the second request may be
                # on its way when the first one stops the machine: before a word was said it is the same reset.
                if ending is Ending.RESET and self.observer.is_silent and 0 < repeated < _MOST_REPEATED:
                    repeated += 1
                    session.reset()
                    continue
                repeated = 1
                again = ending in (Ending.RESET, Ending.WATCHDOG)
                self._ended(ending)
                if not again or self._stop or self.given is not given or self._has_enough():
                    break
                with self._changed:
                    self.observer.begin(given)
                self.strikes.boot_ended(session)
                session.reset()
        finally:
            with self._changed:
                self._session = None
            said = session.close()
        if shutdown is None or self._cut_because is not None:
            again = self._ended_without_reason(said)
        return ("" if shutdown is not None else said), again and not self._has_enough()

    def _follow(self, session: Session) -> str | None:
        """Watch one boot; return the guest's reason for its end, or None when QEMU is gone."""
        while not session.has_ended:
            # A trigger that looks at the disk must see the window between two flushes of a slow guest.
            found = session.read(0.002 if self._triggers or self.strikes.is_urgent else 0.5)
            shutdown = None
            with self._changed:
                for wire, data in found:
                    if wire is Wire.CONSOLE:
                        self.observer.serial(data)
                    elif wire is Wire.AGENT:
                        session.agent.feed(data)
                    else:
                        shutdown = self._heard(session, data) or shutdown
                self._changed.notify_all()
            self._strike(session)
            if shutdown is not None:
                return shutdown
            self._pull_triggers()
        return None

    def _strike(self, session: Session) -> None:
        try:
            self.strikes.look(self.observer, session)
        except EnvironmentFailure:
            # Where the power went meanwhile there is nothing left to strike.
            if not self._stop:
                raise

    def _heard(self, session: Session, data: bytes) -> str | None:
        shutdown = None
        for event in session.monitor.feed(data):
            self.observer.event(event)
            if event.name == "SHUTDOWN":
                shutdown = str(event.about.get("reason"))
        return shutdown

    def _ending_of(self, shutdown: str) -> Ending:
        if shutdown in ("guest-reset", "subsystem-reset"):
            return Ending.WATCHDOG if self.observer.saw_watchdog else Ending.RESET
        return Ending.POWER_OFF

    def _ended(self, ending: Ending) -> None:
        with self._changed:
            self.observer.end(ending)
            self._changed.notify_all()

    def _ended_without_reason(self, said: str) -> bool:
        """Record the end of a QEMU that was killed or fell over; return whether it is worth another try."""
        if self._cut_because is not None:
            self.observer.note("power cut", self._cut_because)
            self._ended(Ending.POWER_CUT)
        elif self._stop:
            self._ended(Ending.STILL_ON)
        elif "lock" in said:
            return True
        else:
            self._ended(Ending.CRASH)
            raise EnvironmentFailure(
                f"QEMU ended without a reason: {said.strip()[-400:] or 'it said nothing'}",
                mend="see the words of QEMU itself",
                reason="emulator-failed",
            )
        return False

    def _has_enough(self) -> bool:
        if len(self.observer.boots) < self.most_boots:
            return False
        self.observer.note("lab", f"gave up after {self.most_boots} boots")
        return True

    def _pull_triggers(self) -> None:
        for trigger in list(self._triggers):
            reason = trigger()
            if reason is not None:
                self._triggers.remove(trigger)
                self.cut_soon(reason)
                return
