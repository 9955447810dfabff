"""Running health checks: real commands, real servers on loopback, timeouts that hold."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollback.checks import AnyCheck, parse_health_file
from rollback.execute import execute
from rollback.probe_disk import parse_mount
from rollback.probes import Prober
from rollback.results import Result, Status, bounded


def check(**fields: Any) -> AnyCheck:
    raw = yaml.safe_dump({"format": 1, "checks": [{"name": "it", **fields}]}).encode()
    return parse_health_file(raw, "test.yaml").checks[0]


def command(*argv: str, **more: Any) -> AnyCheck:
    return check(kind="command", argv=list(argv), **more)


def shell(script: str, **more: Any) -> AnyCheck:
    return command("sh", "-c", script, **more)


def look(one: AnyCheck, prober: Prober | None = None) -> Result:
    results = (prober or Prober()).run([one])
    assert results is not None
    return results[0]


class Script:
    """Executables on PATH that stand in for tools of a running system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tool(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Script(folder)


# Commands.


def test_a_command_is_judged_by_its_exit_code_and_its_output() -> None:
    assert look(command("true")).status is Status.OK
    assert look(command("false", exit_code=1)).ok
    failed = look(shell("echo out; echo err >&2; exit 3"))
    assert failed.status is Status.FAILED
    assert "exit code 3 instead of 0" in failed.detail
    assert failed.output == "out\nerr"
    assert look(shell("echo all is well", contains="is well")).ok
    assert "did not say 'Server:'" in look(shell("echo Client:", contains="Server:")).detail


def test_a_command_that_is_missing_or_not_executable_fails_with_that_reason(tmp_path: Path) -> None:
    assert look(command("no-such-command-here")).detail == "no-such-command-here is not installed"
    (tmp_path / "text").write_text("text")
    assert "may not be executed" in look(command(str(tmp_path / "text"))).detail


def test_a_command_ended_by_a_signal_says_which() -> None:
    assert "ended by signal 11" in look(shell("kill -SEGV $$")).detail


def test_a_command_that_ignores_sigterm_times_out_and_is_gone_with_its_children(tmp_path: Path) -> None:
    # The children hold the write end of this FIFO: its end of file says that all of them are gone.
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        script = f"exec 3>{fifo}; trap '' TERM; sleep 600 & echo started; sleep 600"
        result = look(shell(script, timeout_s=0.5))
        assert result.status is Status.TIMEOUT
        assert result.output == "started"
        assert result.duration_s < 5
        select.select([reader], [], [], 30)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_a_child_that_keeps_the_pipes_does_not_hold_up_the_answer() -> None:
    result = look(shell("sleep 600 & echo done", timeout_s=60))
    assert result.ok
    assert result.duration_s < 30


def test_a_child_in_a_session_of_its_own_does_not_hold_up_the_answer(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600' & " \
             f"while [ ! -e {pid_file} ]; do :; done"  # fmt: skip
    result = look(shell(script, timeout_s=60))
    try:
        assert result.ok
        assert result.duration_s < 30
    finally:
        os.kill(int(pid_file.read_text()), 9)


def test_a_command_that_writes_without_end_is_bounded_in_memory_and_time() -> None:
    result = look(command("yes", timeout_s=0.5))
    assert result.status is Status.TIMEOUT
    assert len(result.output.encode()) <= 8192


def test_the_end_of_long_output_is_kept() -> None:
    result = look(shell("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 1"))
    assert len(result.output.encode()) <= 8192
    assert result.output.endswith("line 4999")
    assert bounded("€" * 1000, 100).encode().__len__() <= 100


def test_the_beginning_of_output_can_be_asked_for_and_ends_the_command() -> None:
    ended = execute(["yes"], timeout_s=60, limit_bytes=6, keep="head")
    assert ended.output == b"y\ny\ny\n"


def test_output_that_is_not_text_is_shown_all_the_same() -> None:
    assert "\ufffd" in look(shell(r"printf '\377\376'; exit 1")).output


# The runner.


def test_checks_run_at_once_and_come_back_in_their_order(tmp_path: Path) -> None:
    # Each of the first two waits for the other: one after the other they would never end.
    one, two = tmp_path / "one", tmp_path / "two"
    os.mkfifo(one)
    os.mkfifo(two)
    checks = [
        check(name="first", kind="command", argv=["sh", "-c", f"echo > {one}; cat {two}"], timeout_s=60),
        check(name="second", kind="command", argv=["sh", "-c", f"cat {one}; echo > {two}"], timeout_s=60),
        check(name="third", kind="command", argv=["true"]),
    ]
    results = Prober().run(checks)
    assert results is not None
    assert [(result.name, result.status) for result in results] == [
        ("first", Status.OK), ("second", Status.OK), ("third", Status.OK)]  # fmt: skip


def test_a_check_that_hangs_in_the_kernel_is_left_behind_and_not_started_again(tmp_path: Path) -> None:
    """A disk that does not answer cannot be had here; opening a FIFO as a mount table waits just as firmly."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    fifo = tmp_path / "proc" / "self" / "mountinfo"
    os.mkfifo(fifo)
    prober = Prober(root=tmp_path, grace_s=0.1)
    hung = check(kind="mount", path="/", timeout_s=0.1)
    first = look(hung, prober)
    assert first.status is Status.TIMEOUT
    assert "could not be ended" in first.detail
    assert "has not come back yet" in look(hung, prober).detail
    before = threading.active_count()
    assert look(hung, prober).status is Status.TIMEOUT
    assert threading.active_count() == before
    # Once the kernel answers, the check runs again.
    stuck = [thread for thread in threading.enumerate() if thread.name == "check-it"]
    fifo.write_text("1 1 0:1 / / rw - ext4 /dev/x rw\n")
    for thread in stuck:
        thread.join(30)
    fifo.unlink()
    fifo.write_text("1 1 0:1 / / rw - ext4 /dev/x rw\n")
    # The late answer is taken from the mailbox during this run, of another check.
    assert look(command("true", name="other"), prober).ok
    assert look(hung, prober).ok


def test_a_hanging_check_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    os.mkfifo(tmp_path / "proc" / "self" / "mountinfo")
    prober = Prober(root=tmp_path, parallel=1, grace_s=0.1)
    results = prober.run([check(name="hung", kind="mount", path="/", timeout_s=0.1), check(name="b", kind="command",
                          argv=["true"])])  # fmt: skip
    assert results is not None
    assert [result.status for result in results] == [Status.TIMEOUT, Status.OK]
    with (tmp_path / "proc" / "self" / "mountinfo").open("w"):
        pass


def test_a_run_is_dropped_when_its_caller_no_longer_wants_it() -> None:
    asked = []

    def going_on() -> bool:
        asked.append(time.monotonic())
        return False

    assert Prober().run([command("sleep", "5", timeout_s=10)], going_on=going_on) is None
    assert len(asked) == 1


def test_a_mistake_in_a_check_of_ours_counts_as_its_failure(tmp_path: Path) -> None:
    broken = check(kind="mount", path="/")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "mountinfo").mkdir()
    result = look(broken, Prober(root=tmp_path))
    assert result.status is Status.ERROR
    assert "could not be carried out" in result.detail


# TCP and HTTP.


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Answer(BaseHTTPRequestHandler):
    pages: dict[str, tuple[int, bytes]]
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        status, body = self.pages.get(self.path, (404, b"nothing here"))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/healthz")
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:
        return


PAGES = {
    "/healthz": (200, b"ok"),
    "/busy": (503, b"warming up"),
    "/moved": (302, b""),
    "/json": (200, json.dumps({"status": {"ready": True, "nodes": [{"name": "a"}], "code": 1}}).encode()),
    "/broken": (200, b"{"),
    "/q?x=1": (200, b"asked"),
}


@pytest.fixture
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), type("Page", (Answer,), {"pages": PAGES, "seen": []}))
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


def http(url: str, **more: Any) -> Result:
    return look(check(kind="http", url=url, **more))


def test_a_server_is_judged_by_status_and_text(site: str) -> None:
    assert http(site + "/healthz", contains="ok").ok
    assert http(site + "/q?x=1", contains="asked").ok
    busy = http(site + "/busy")
    assert busy.status is Status.FAILED
    assert "status 503 instead of 200" in busy.detail
    assert busy.output == "warming up"
    assert http(site + "/busy", status=503).ok
    assert "does not say 'fine'" in http(site + "/healthz", contains="fine").detail


def test_a_redirect_is_not_health(site: str) -> None:
    assert "status 302" in http(site + "/moved").detail


def test_a_field_of_a_json_answer_is_compared_with_its_type(site: str) -> None:
    assert http(site + "/json", json_field="status.ready", json_equals=True).ok
    assert http(site + "/json", json_field="status.nodes.0.name", json_equals="a").ok
    assert not http(site + "/json", json_field="status.code", json_equals=True).ok
    assert "has no field status.gone" in http(site + "/json", json_field="status.gone", json_equals=1).detail
    assert "has no field" in http(site + "/json", json_field="status.nodes.7", json_equals=1).detail
    assert "not answer in JSON" in http(site + "/broken", json_field="a", json_equals=1).detail


def test_a_proxy_of_the_environment_is_not_asked(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert http(site + "/healthz").ok


def test_a_server_on_a_unix_socket_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    handler = type("Page", (Answer,), {"pages": PAGES, "seen": []})
    with serving(socketserver.UnixStreamServer(str(path), handler)):
        assert http("http://localhost/healthz", unix_socket=str(path), contains="ok").ok
    assert "cannot be reached" in http("http://localhost/", unix_socket=str(tmp_path / "gone")).detail


def test_a_port_that_nobody_serves_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert look(check(kind="tcp", port=port)).status is Status.FAILED
    assert "cannot be reached" in http(f"http://127.0.0.1:{port}/").detail


def test_a_port_that_listens_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert look(check(kind="tcp", port=server.getsockname()[1])).ok


@contextlib.contextmanager
def answering(say: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                say(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_a_server_that_never_answers_times_out() -> None:
    with answering(lambda connection: connection.recv(1 << 16) and connection.recv(1)) as port:  # type: ignore[arg-type]
        assert http(f"http://127.0.0.1:{port}/", timeout_s=0.2).status is Status.TIMEOUT


def test_a_server_that_sends_a_byte_now_and_then_times_out_as_well() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not select.select([connection], [], [], 0.05)[0] or connection.recv(1 << 16):
            connection.sendall(b".")

    with answering(drip) as port:
        assert http(f"http://127.0.0.1:{port}/", timeout_s=0.5).status is Status.TIMEOUT


def test_a_server_that_speaks_something_else_fails() -> None:
    with answering(lambda connection: connection.sendall(b"SSH-2.0-x\r\n\r\n")) as port:
        assert look(check(kind="http", url=f"http://127.0.0.1:{port}/")).status is Status.FAILED


# Files, mounts, verity.


def test_a_file_is_judged_by_existence_and_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert "does not exist" in look(check(kind="file", path=str(path))).detail
    assert look(check(kind="file", path=str(path), exists=False)).ok
    path.write_text("ready=1\n")
    assert look(check(kind="file", path=str(path), contains="ready=1")).ok
    assert look(check(kind="file", path=str(path), contains="ready=2")).status is Status.FAILED
    assert look(check(kind="file", path=str(path), exists=False)).status is Status.FAILED
    assert look(check(kind="file", path=str(tmp_path))).ok
    assert "not a regular file" in look(check(kind="file", path=str(tmp_path), contains="x")).detail


def test_a_fifo_does_not_hang_a_file_check(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in look(check(kind="file", path=str(tmp_path / "fifo"), contains="x")).detail


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "mountinfo").write_text(
        "22 1 254:0 / / ro,relatime shared:1 - erofs /dev/mapper/root ro,user_xattr\n"
        "30 22 8:6 / /var rw,relatime shared:9 - ext4 /dev/sda6 rw,errors=remount-ro\n"
        "31 22 8:7 / /srv rw - ext4 /dev/sda7 ro\n"
        "32 22 0:44 / /with\\040space rw - tmpfs tmpfs rw\n"
        "not a mount\n"
    )
    (tmp_path / "sys/dev/block/254:0/dm").mkdir(parents=True)
    (tmp_path / "sys/dev/block/254:0/dm/name").write_text("root\n")
    return tmp_path


def test_a_mount_is_judged_by_file_system_options_and_room(machine: Path) -> None:
    prober = Prober(root=machine)
    assert look(check(kind="mount", path="/var", fstype="ext4", options=["rw"]), prober).ok
    assert look(check(kind="mount", path="/with space"), prober).ok
    assert "nothing is mounted at /opt" in look(check(kind="mount", path="/opt"), prober).detail
    assert "erofs instead of ext4" in look(check(kind="mount", path="/", fstype="ext4"), prober).detail
    full = look(check(kind="mount", path="/var", free_bytes=1 << 46), prober)
    assert "bytes free, fewer than" in full.detail


def test_a_folder_is_judged_by_the_file_system_that_holds_it(machine: Path) -> None:
    prober = Prober(root=machine)
    assert "nothing is mounted" in look(check(kind="mount", path="/var/lib"), prober).detail
    assert look(check(kind="mount", path="/var/lib", itself=False, fstype="ext4", options=["rw"]), prober).ok
    assert (
        "erofs instead of ext4" in look(check(kind="mount", path="/opt/x", itself=False, fstype="ext4"), prober).detail
    )


def test_a_file_system_that_went_read_only_after_an_error_is_not_writable(machine: Path) -> None:
    assert "without rw" in look(check(kind="mount", path="/srv", options=["rw"]), Prober(root=machine)).detail


def test_a_line_that_is_no_mount_is_left_out() -> None:
    assert parse_mount("") is None
    assert parse_mount("a b c - d") is None


def test_verity_is_judged_by_the_kernels_own_word(machine: Path, tools: Script) -> None:
    prober = Prober(root=machine)
    one = check(kind="verity", path="/")
    tools.tool("dmsetup", '[ "$*" = "status --target verity root" ] && echo "0 2048 verity V"')
    assert look(one, prober).ok
    tools.tool("dmsetup", 'echo "0 2048 verity V 17"')
    assert look(one, prober).ok
    tools.tool("dmsetup", 'echo "0 2048 verity C"')
    corrupt = look(one, prober)
    assert corrupt.status is Status.FAILED
    assert "did not match its hash" in corrupt.detail
    tools.tool("dmsetup", 'echo "0 2048 linear"')
    assert "does not guard" in look(one, prober).detail
    tools.tool("dmsetup", "exit 1")
    assert look(one, prober).status is Status.FAILED


@pytest.mark.parametrize(
    "usr", ["36 1 254:0 / /usr ro - erofs /dev/mapper/usr ro", "36 1 0:31 / /usr ro - btrfs /dev/mapper/usr ro"]
)
def test_where_only_usr_is_proven_that_is_the_running_image(tmp_path: Path, tools: Script, usr: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(f"25 1 8:9 / / rw - ext4 /dev/sda9 rw\n{usr}\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/class/block/dm-0/dm").mkdir(parents=True)
    (tmp_path / "sys/class/block/dm-0/dm/name").write_text("usr\n")
    (tmp_path / "sys/dev/block/254:0").symlink_to("../../class/block/dm-0")
    (tmp_path / "dev/mapper").mkdir(parents=True)
    (tmp_path / "dev/dm-0").touch()
    (tmp_path / "dev/mapper/usr").symlink_to("../dm-0")
    tools.tool("dmsetup", '[ "$*" = "status --target verity usr" ] && echo "0 2048 verity V"')
    assert look(check(kind="verity"), Prober(root=tmp_path)).ok
    assert "does not guard" in look(check(kind="verity", path="/"), Prober(root=tmp_path)).detail


def test_a_mount_without_verity_below_it_fails_its_verity_check(machine: Path) -> None:
    assert "does not guard" in look(check(kind="verity", path="/var"), Prober(root=machine)).detail


# systemd.

UNIT = 'case "$*" in *"show --property=LoadState"*) printf "%s\\n" {lines} ;; *) exit 9 ;; esac'


def unit_is(tools: Script, **properties: str) -> None:
    found = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success"} | properties
    tools.tool("systemctl", UNIT.format(lines=" ".join(f"{key}={value}" for key, value in found.items())))


def test_a_unit_is_judged_by_its_state(tools: Script) -> None:
    one = check(kind="systemd-unit", unit="containerd.service")
    unit_is(tools)
    assert look(one).ok
    unit_is(tools, ActiveState="failed", SubState="failed", Result="exit-code")
    assert look(one).detail == "containerd.service is failed (failed), result exit-code"
    unit_is(tools, ActiveState="activating", SubState="auto-restart")
    assert look(one).status is Status.FAILED
    unit_is(tools, LoadState="not-found", ActiveState="inactive", SubState="dead")
    assert "not-found instead of loaded" in look(one).detail
    relaxed = check(kind="systemd-unit", unit="containerd.service", expect="not-failed")
    unit_is(tools, ActiveState="inactive", SubState="dead")
    assert look(relaxed).ok
    assert not look(one).ok


def test_a_unit_that_was_restarted_between_two_looks_fails_although_it_runs(tools: Script) -> None:
    prober = Prober()
    one = check(kind="systemd-unit", unit="containerd.service")
    unit_is(tools, NRestarts="2")
    assert look(one, prober).ok
    assert look(one, prober).ok
    unit_is(tools, NRestarts="3")
    assert "restarted since the last look (3 times)" in look(one, prober).detail
    assert look(one, prober).ok


def test_a_unit_that_was_restarted_too_often_since_the_boot_fails(tools: Script) -> None:
    unit_is(tools, NRestarts="2")
    assert not look(check(kind="systemd-unit", unit="a.service", max_restarts=1)).ok
    assert look(check(kind="systemd-unit", unit="a.service", max_restarts=2)).ok


def system_is(tools: Script, state: str, *units: tuple[str, str], triggered: str = "") -> None:
    listed = json.dumps([{"unit": name, "load": "loaded", "active": active, "sub": active} for name, active in units])
    tools.tool(
        "systemctl",
        f"""case "$*" in
        *--property=SystemState*) echo {state} ;;
        *list-units*) echo '{listed}' ;;
        *--property=TriggeredBy*{triggered or "nothing.at.all"}) echo "TriggeredBy=x.timer" ;;
        *--property=TriggeredBy*) echo "TriggeredBy=" ;;
        *) exit 9 ;;
        esac""",
    )


SYSTEM = {"kind": "systemd-system", "allowed": ["known-bad.service"]}


def test_a_system_that_only_waits_for_the_verdict_is_started(tools: Script) -> None:
    system_is(tools, "running")
    assert look(check(**SYSTEM)).ok
    system_is(tools, "starting", ("acl-updater-health.service", "activating"), ("dev-sda.device", "activating"))
    assert look(check(**SYSTEM)).ok


def test_a_system_with_something_failed_or_pending_names_it(tools: Script) -> None:
    system_is(
        tools,
        "starting",
        ("b.service", "failed"),
        ("slow.service", "activating"),
        ("known-bad.service", "failed"),
    )
    result = look(check(**SYSTEM))
    assert result.status is Status.FAILED
    assert result.failures == ("it/b.service", "it/slow.service")


def test_a_degraded_system_is_accepted_when_only_allowed_units_failed(tools: Script) -> None:
    system_is(tools, "degraded", ("known-bad.service", "failed"))
    assert look(check(**SYSTEM)).ok
    system_is(tools, "degraded", ("other.service", "failed"))
    assert look(check(**SYSTEM)).failures == ("it/other.service",)


def test_a_job_that_a_timer_started_does_not_count_as_starting(tools: Script) -> None:
    system_is(tools, "starting", ("logrotate.service", "activating"), triggered="logrotate.service")
    assert look(check(**SYSTEM)).ok


@pytest.mark.parametrize("state", ["maintenance", "initializing", "offline", ""])
def test_other_states_of_the_system_fail(tools: Script, state: str) -> None:
    system_is(tools, state)
    assert look(check(**SYSTEM)).status is Status.FAILED


def test_a_systemd_that_fails_or_does_not_answer_is_an_error_not_a_pass(tools: Script) -> None:
    tools.tool("systemctl", "echo broken bus >&2; exit 1")
    failed = look(check(**SYSTEM))
    assert failed.status is Status.ERROR
    assert "broken bus" in failed.detail
    tools.tool("systemctl", "exec sleep 600")
    assert look(check(kind="systemd-unit", unit="a.service", timeout_s=0.3)).status is Status.ERROR
    tools.tool("systemctl", 'case "$*" in *SystemState*) echo degraded ;; *) echo "not json" ;; esac')
    assert "no list of units" in look(check(**SYSTEM)).detail
