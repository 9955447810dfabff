"""The health service over whole boots: an engine that records, real checks, a clock that jumps."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from rollback.clock import BootClock
from rollback.health_files import load_checks
from rollback.notify import Notifier
from rollback.probes import Prober
from rollback.service import HealthService
from updater.config import Health
from updater.errors import EnvironmentFailure, Refused
from updater.files import Directory, MountedDirectory
from updater.health_plugin import Aftermath, Cause, Evidence, Stage, Trial
from updater.slots import Slot

SETTINGS = Health(deadline_s=600, hold_s=60, interval_s=5, watch_s=60)


class FakeClock:
    """A clock that only pauses move; what is due in between happens on the way."""

    def __init__(self, start_s: float = 20.0) -> None:
        self.now_s = start_s
        self.stopped = False
        self._due: list[tuple[float, Callable[[], Any]]] = []

    def at(self, seconds: float, action: Callable[[], Any]) -> None:
        self._due.append((seconds, action))
        self._due.sort(key=lambda item: item[0])

    def stop(self) -> None:
        self.stopped = True

    def now(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds
        while self._due and self._due[0][0] <= self.now_s:
            self._due.pop(0)[1]()


class Engine:
    """An engine that keeps what it was told."""

    def __init__(self, state: Path, clock: FakeClock) -> None:
        self.settings = SETTINGS
        self.state: Directory = MountedDirectory(state)
        self.evidence_bytes = 1 << 20
        self.clock = clock
        self.on_trial: Trial | None = None
        self.rolled_back_before: Aftermath | None = None
        self.unhealthy_answer: Literal["reboot", "stay"] = "stay"
        self.told: list[tuple[str, float, Any]] = []
        self.broken: dict[str, Exception] = {}

    def _note(self, event: str, more: Any = None) -> None:
        if event in self.broken:
            raise self.broken[event]
        self.told.append((event, self.clock.now(), more))

    def happened(self) -> list[str]:
        return [event for event, _, _ in self.told]

    def trial(self) -> Trial | None:
        if "trial" in self.broken:
            raise self.broken["trial"]
        return self.on_trial

    def commit(self, reason: str, sentence: str) -> None:
        self._note("commit", (reason, sentence))

    def roll_back(self, reason: str, sentence: str, evidence: Evidence) -> None:
        self._note("roll-back", (reason, sentence, evidence))
        self.clock.at(self.clock.now() + 3, self.clock.stop)

    def healthy_boot(self) -> None:
        self._note("healthy-boot")

    def unhealthy_boot(self, sentence: str, checks: tuple[str, ...]) -> Literal["reboot", "stay"]:
        self._note("unhealthy-boot", checks)
        if self.unhealthy_answer == "reboot":
            self.clock.at(self.clock.now() + 3, self.clock.stop)
        return self.unhealthy_answer

    def aftermath(self) -> Aftermath | None:
        return self.rolled_back_before

    def clear_blame(self, aftermath: Aftermath, sentence: str) -> None:
        self._note("clear-blame", sentence)

    def keep_blame(self, aftermath: Aftermath, sentence: str) -> None:
        self._note("keep-blame", sentence)

    def report(self, event: str, sentence: str, checks: tuple[str, ...]) -> None:
        self._note(event, checks)


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind(str(folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        while True:
            try:
                self.heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return self.heard


class Boot:
    """One boot: a folder whose files are what the checks look at."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path
        self.clock = FakeClock()
        self.engine = Engine(tmp_path / "state", self.clock)
        self.vendor = tmp_path / "vendor"
        self.vendor.mkdir()
        (tmp_path / "operator").mkdir()
        self.shutting_down = False
        self.manager = Manager(tmp_path, monkeypatch)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("updater.run._SBIN", "/nowhere")
        self.checks("containerd", "network")
        self.works("containerd", "network")

    def on_trial(self, **more: Any) -> None:
        self.engine.on_trial = Trial(
            **{
                "release": "202611.3.0",
                "root_hash": "5f" * 32,
                "slot": Slot.B,
                "try_number": 1,
                "tries": 3,
                "baseline": None,
                **more,
            }
        )

    def checks(self, *names: str, **more: Any) -> None:
        checks = [{"name": name, "kind": "file", "path": str(self.folder / name), **more} for name in names]
        (self.vendor / "a.yaml").write_text(yaml.safe_dump({"format": 1, "checks": checks}))

    def works(self, *names: str) -> None:
        for name in names:
            (self.folder / name).touch()

    def fails(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def run(self) -> int:
        notifier = Notifier()
        try:
            return HealthService(
                self.engine,
                lambda: load_checks(self.vendor, self.folder / "operator"),
                self.clock,
                notifier=notifier,
                prober=Prober(),
                shutting_down=lambda: self.shutting_down,
            ).run()
        finally:
            notifier.close()

    @property
    def ready(self) -> bool:
        return "READY=1" in self.manager.listen()


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    one = Boot(tmp_path, monkeypatch)
    yield one
    one.manager.socket.close()


# A trial.


def test_a_healthy_trial_is_committed_once_it_has_held(boot: Boot) -> None:
    boot.on_trial()
    boot.clock.at(70, lambda: boot.fails("containerd"))
    boot.clock.at(80, lambda: boot.works("containerd"))
    assert boot.run() == 0
    event, at_s, (reason, sentence) = boot.engine.told[0]
    assert (event, at_s, reason) == ("commit", 140, "healthy")
    assert sentence == "2 required checks have held for 60 s"
    assert boot.ready
    assert boot.engine.happened() == ["commit"]


def test_a_trial_whose_runtime_never_comes_up_is_rolled_back_with_evidence(boot: Boot) -> None:
    boot.on_trial()
    boot.fails("containerd")
    assert boot.run() == 0
    assert boot.engine.happened() == ["roll-back"]
    _, at_s, (reason, sentence, evidence) = boot.engine.told[0]
    assert 540 < at_s <= 600
    assert reason == "check-failed"
    assert "containerd" in sentence
    assert (evidence.stage, evidence.cause, evidence.checks) == (Stage.HEALTH, Cause.CHECK, ("containerd",))
    assert boot.engine.state.names("evidence/202611.3.0-1") == ["health.json"]
    assert not boot.ready


def test_a_trial_that_flaps_until_the_deadline_is_rolled_back(boot: Boot) -> None:
    boot.on_trial()
    for start_s in range(50, 600, 50):
        boot.clock.at(start_s, lambda: boot.fails("network"))
        boot.clock.at(start_s + 5, lambda: boot.works("network"))
    assert boot.run() == 0
    _, at_s, (reason, _, evidence) = boot.engine.told[0]
    assert boot.engine.happened() == ["roll-back"]
    assert at_s < 600
    assert reason in ("check-failed", "not-held")
    assert evidence.checks == ("network",)


def test_what_was_broken_before_the_update_does_not_keep_a_trial_from_its_commit(boot: Boot) -> None:
    boot.on_trial(baseline={"format": 1, "failing": {"network": "no route"}})
    boot.fails("network")
    assert boot.run() == 0
    assert boot.engine.happened() == ["commit"]


def test_an_image_whose_own_checks_cannot_be_read_is_rolled_back(boot: Boot) -> None:
    boot.on_trial()
    (boot.vendor / "b.yaml").write_text("format: 9")
    assert boot.run() == 0
    assert boot.engine.told[0][2][2].checks == ("vendor-file/b.yaml",)


def test_an_operators_broken_file_does_not_roll_a_good_image_back(boot: Boot) -> None:
    boot.on_trial()
    (boot.folder / "operator" / "a.yaml").write_text("")
    assert boot.run() == 0
    assert boot.engine.happened() == ["commit"]


def test_an_operators_reboot_during_the_trial_is_no_verdict(boot: Boot) -> None:
    boot.on_trial()
    boot.fails("containerd")
    boot.clock.at(100, boot.clock.stop)
    assert boot.run() == 0
    assert boot.engine.happened() == []
    assert not boot.ready


def test_a_deadline_that_passes_while_the_system_shuts_down_is_no_verdict(boot: Boot) -> None:
    boot.on_trial()
    boot.fails("containerd")
    boot.shutting_down = True
    boot.clock.at(560, boot.clock.stop)
    assert boot.run() == 0
    assert boot.engine.happened() == []


def test_a_commit_that_fails_is_tried_again(boot: Boot) -> None:
    boot.on_trial()
    boot.engine.broken["commit"] = EnvironmentFailure("the ESP is busy")
    boot.clock.at(200, boot.engine.broken.clear)
    assert boot.run() == 0
    assert [(event, at_s) for event, at_s, _ in boot.engine.told] == [("commit", 200)]


def test_a_commit_that_fails_until_the_deadline_ends_the_trial_without_blaming_the_release(boot: Boot) -> None:
    boot.on_trial()
    boot.engine.broken["commit"] = EnvironmentFailure("the ESP is read-only")
    assert boot.run() == 0
    _, at_s, (reason, sentence, evidence) = boot.engine.told[0]
    assert at_s > 600
    assert reason == "commit-failed"
    assert "the ESP is read-only" in sentence
    assert not evidence.points_at_release


@pytest.mark.parametrize("healthy", [True, False])
def test_an_operators_commit_by_hand_is_respected(boot: Boot, healthy: bool) -> None:
    boot.on_trial()
    if not healthy:
        boot.fails("containerd")
    boot.engine.broken["commit"] = Refused("no release is on trial")

    def commit_by_hand() -> None:
        boot.engine.on_trial = None

    boot.clock.at(50, commit_by_hand)
    assert boot.run() == 0
    assert "roll-back" not in boot.engine.happened()
    assert boot.ready


def test_a_reboot_that_does_not_come_makes_the_service_fail(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    boot.on_trial()
    boot.fails("containerd")
    monkeypatch.setattr(boot.clock, "at", lambda *_: None)
    assert boot.run() == 1


def test_a_mistake_of_ours_during_a_trial_leaves_the_service_failed_for_pid_1_to_act(boot: Boot) -> None:
    boot.on_trial()
    boot.engine.broken["commit"] = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        boot.run()
    assert not boot.ready


def test_a_boot_that_cannot_be_told_is_asked_about_until_the_deadline(boot: Boot) -> None:
    boot.on_trial()
    boot.engine.broken["trial"] = EnvironmentFailure("the ESP cannot be mounted")
    with pytest.raises(EnvironmentFailure):
        boot.run()
    assert boot.clock.now() >= 600
    boot.clock.now_s = 30.0
    boot.clock.at(70, boot.engine.broken.clear)
    assert boot.run() == 0
    assert boot.engine.happened() == ["commit"]


def test_a_service_that_was_restarted_late_does_not_get_a_later_deadline(boot: Boot) -> None:
    boot.on_trial()
    boot.clock.now_s = 590
    assert boot.run() == 0
    assert boot.engine.happened() == ["roll-back"]
    assert boot.engine.told[0][1] <= 600


def test_a_check_that_is_spared_is_looked_at_once_more_before_the_commit(boot: Boot) -> None:
    boot.on_trial()
    boot.checks("containerd", interval_s=600)
    boot.clock.at(40, lambda: boot.fails("containerd"))
    assert boot.run() == 0
    assert boot.engine.happened() == ["roll-back"]


# After a commit.


def test_what_changes_after_a_commit_is_reported_and_never_rolled_back(boot: Boot) -> None:
    boot.on_trial()
    boot.clock.at(100, lambda: boot.fails("network"))
    boot.clock.at(110, lambda: boot.works("network"))
    assert boot.run() == 0
    assert [(event, more) for event, _, more in boot.engine.told[1:]] == [
        ("unhealthy-after-commit", ("network",)),
        ("healthy-again", ("network",)),
    ]
    assert boot.clock.now() >= 80 + SETTINGS.watch_s


def test_a_report_that_cannot_be_written_does_not_undo_a_commit(boot: Boot) -> None:
    boot.on_trial()
    boot.clock.at(100, lambda: boot.fails("network"))
    boot.engine.broken["unhealthy-after-commit"] = OSError("disk full")
    assert boot.run() == 0
    assert boot.engine.happened() == ["commit"]


def test_checks_for_trials_only_are_not_watched_after_the_commit(boot: Boot) -> None:
    boot.on_trial()
    boot.checks("network", when="trial")
    boot.clock.at(100, lambda: boot.fails("network"))
    assert boot.run() == 0
    assert boot.engine.happened() == ["commit"]


# A boot of a proven release.


def test_a_healthy_boot_of_a_proven_release_renews_its_protection(boot: Boot) -> None:
    assert boot.run() == 0
    assert boot.engine.happened() == ["healthy-boot"]
    assert boot.ready


def test_an_unhealthy_boot_without_a_better_release_stays_up_and_satisfies_pid_1(boot: Boot) -> None:
    boot.fails("containerd")
    assert boot.run() == 0
    assert boot.engine.told[0][::2] == ("unhealthy-boot", ("containerd",))
    assert boot.ready
    assert any("staying" in line for line in boot.manager.heard)


def test_an_unhealthy_boot_with_a_better_release_behind_it_ends(boot: Boot) -> None:
    boot.fails("containerd")
    boot.engine.unhealthy_answer = "reboot"
    assert boot.run() == 0
    assert not boot.ready


@pytest.mark.parametrize("event", ["healthy-boot", "unhealthy-boot"])
def test_a_mistake_of_ours_never_reboots_a_proven_release(boot: Boot, event: str) -> None:
    boot.engine.broken[event] = ZeroDivisionError("ours")
    if event == "unhealthy-boot":
        boot.fails("containerd")
    assert boot.run() == 0
    assert boot.ready


def test_a_protection_that_cannot_be_renewed_leaves_the_boot_accepted(boot: Boot) -> None:
    boot.engine.broken["healthy-boot"] = EnvironmentFailure("the ESP is read-only")
    assert boot.run() == 0
    assert boot.ready


# The aftermath of a rollback.


def aftermath(*checks: str) -> Aftermath:
    return Aftermath("202611.3.0", "5f" * 32, checks)


def test_an_image_is_cleared_when_the_old_release_fails_the_same_check(boot: Boot) -> None:
    boot.engine.rolled_back_before = aftermath("network")
    boot.fails("network")
    assert boot.run() == 0
    assert boot.engine.happened() == ["clear-blame", "unhealthy-boot"]
    assert "fails on the old release as well" in boot.engine.told[0][2]


def test_a_check_that_fails_while_the_old_release_is_still_starting_clears_nobody(boot: Boot) -> None:
    boot.engine.rolled_back_before = aftermath("network")
    boot.fails("network")
    boot.clock.at(60, lambda: boot.works("network"))
    assert boot.run() == 0
    assert boot.engine.happened() == ["keep-blame", "healthy-boot"]


def test_an_image_stays_condemned_when_the_old_release_fails_only_some_of_its_checks(boot: Boot) -> None:
    boot.engine.rolled_back_before = aftermath("network", "containerd")
    boot.fails("network")
    assert boot.run() == 0
    assert boot.engine.happened() == ["keep-blame", "unhealthy-boot"]
    assert "containerd: this passes on the old release" in boot.engine.told[0][2]


def test_an_image_condemned_by_a_check_that_the_old_release_does_not_know_stays_condemned(boot: Boot) -> None:
    boot.engine.rolled_back_before = aftermath("new-check")
    assert boot.run() == 0
    assert boot.engine.happened() == ["keep-blame", "healthy-boot"]


def test_a_check_for_trials_that_condemned_an_image_is_run_by_the_old_release_too(boot: Boot) -> None:
    boot.engine.rolled_back_before = aftermath("network")
    boot.checks("network", when="trial")
    boot.fails("network")
    assert boot.run() == 0
    assert boot.engine.happened()[0] == "clear-blame"


# systemd.


def test_the_watchdog_is_fed_through_checks_and_pauses_and_the_status_is_told(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    boot.engine.settings = Health(deadline_s=600, hold_s=10, interval_s=5, watch_s=0)
    boot.on_trial()
    pauses: list[float] = []
    advance = boot.clock.pause

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        advance(1)

    monkeypatch.setattr(boot.clock, "pause", pause)
    assert boot.run() == 0
    heard = boot.manager.listen()
    assert heard.count("WATCHDOG=1") >= 10
    assert max(pauses) <= 5e-7
    assert any(line.startswith("STATUS=trial of release 202611.3.0, try 1 of 3: healthy for") for line in heard)
    assert heard.index("READY=1") > heard.index("WATCHDOG=1")


def test_another_processes_watchdog_is_not_fed() -> None:
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).beat_s is None
    assert Notifier({"WATCHDOG_USEC": "junk"}).beat_s is None
    assert Notifier({"WATCHDOG_USEC": "60000000"}).beat_s == 30
    assert Notifier({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}).beat_s == 30


def test_a_status_with_any_letter_reaches_systemd(boot: Boot) -> None:
    notifier = Notifier()
    notifier.status("“déjà vu” …\nand more")
    notifier.close()
    assert boot.manager.listen() == ["STATUS=?d?j? vu? ? and more"]


def test_a_signal_ends_a_pause_at_once() -> None:
    script = (
        "import signal; from rollback.clock import BootClock\n"
        "clock = BootClock(); signal.signal(signal.SIGTERM, lambda *_: clock.stop())\n"
        "print('ready', flush=True); clock.pause(600); assert clock.stopped; clock.pause(600); print('ended')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "ended\n"
    assert process.wait() == 0


def test_the_boots_clock_runs_forward() -> None:
    clock = BootClock()
    before = clock.now()
    clock.pause(0.01)
    assert clock.now() - before >= 0.01
