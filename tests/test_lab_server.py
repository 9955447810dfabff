"""The tests' web server: ranges, counts and faults."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests

from integration.lab.server import Http, LabServer, ServerFault

CONTENT = bytes(range(256)) * 2048


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabServer]:
    (tmp_path / "served" / "blobs").mkdir(parents=True)
    (tmp_path / "served" / "blobs" / "one").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(b"secret")
    with LabServer(tmp_path / "served") as running:
        yield running


def get(server: LabServer, path: str, **headers: str) -> requests.Response:
    return requests.get(f"{server.url}/{path}", headers=headers, timeout=10)


def test_a_file_is_served_whole_and_counted(server: LabServer) -> None:
    assert get(server, "blobs/one").content == CONTENT
    assert server.body_bytes == len(CONTENT)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=1000-2999", 1000, 3000), ("bytes=524000-", 524000, None), ("bytes=-100", -100, None)],
)
def test_a_range_is_served_as_asked(server: LabServer, asked: str, start: int, end: int | None) -> None:
    answer = get(server, "blobs/one", Range=asked)
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])


def test_a_range_beyond_the_end_is_refused_with_the_length(server: LabServer) -> None:
    answer = get(server, "blobs/one", Range="bytes=99999999-")
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


def test_nothing_outside_the_folder_is_served(server: LabServer) -> None:
    assert get(server, "%2e%2e/secret").status_code == 404
    assert get(server, "nothing").status_code == 404


def test_a_server_that_dies_midway_cuts_the_body(server: LabServer) -> None:
    server.break_with(ServerFault("cut", after_bytes=128 * 1024))
    with pytest.raises(requests.RequestException):
        get(server, "blobs/one")
    assert 128 * 1024 <= server.bytes_since_mark < len(CONTENT)


def test_a_status_fault_hits_the_paths_that_it_names(server: LabServer) -> None:
    server.break_with(ServerFault("status", paths="metadata/*", status=503))
    assert get(server, "metadata/timestamp.json").status_code == 503
    assert get(server, "blobs/one").status_code == 200


def test_a_refusing_server_closes_without_a_word_until_it_is_mended(server: LabServer) -> None:
    server.break_with(ServerFault("refuse"))
    with pytest.raises(requests.ConnectionError):
        get(server, "blobs/one")
    server.break_with(None)
    assert get(server, "blobs/one").status_code == 200


def test_a_stalling_server_sends_nothing_more(server: LabServer) -> None:
    server.break_with(ServerFault("stall"))
    with pytest.raises(requests.Timeout):
        requests.get(f"{server.url}/blobs/one", timeout=0.3)


def test_a_resetting_server_breaks_the_connection(server: LabServer) -> None:
    server.break_with(ServerFault("reset"))
    with pytest.raises(requests.ConnectionError):
        get(server, "blobs/one")


def test_a_server_without_ranges_sends_everything(server: LabServer) -> None:
    server.break_with(ServerFault("no-range"))
    answer = get(server, "blobs/one", Range="bytes=100-199")
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_server_of_wrong_ranges_says_which_it_sent(server: LabServer) -> None:
    server.break_with(ServerFault("wrong-range"))
    answer = get(server, "blobs/one", Range="bytes=8192-8291")
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes 4096-4195/{len(CONTENT)}"
    assert answer.content == CONTENT[4096:4196]


def test_a_garbling_server_sends_as_many_bytes_and_others(server: LabServer) -> None:
    server.break_with(ServerFault("garble"))
    answer = get(server, "blobs/one", Range="bytes=0-1999")
    assert len(answer.content) == 2000
    assert answer.content != CONTENT[:2000]


def test_a_file_that_is_one_byte_longer(server: LabServer) -> None:
    server.break_with(ServerFault("longer"))
    assert get(server, "blobs/one").content == CONTENT + b"!"


def test_a_packing_server_names_the_packing(server: LabServer) -> None:
    server.break_with(ServerFault("gzip"))
    answer = get(server, "blobs/one", Range="bytes=0-999")
    assert answer.headers["Content-Encoding"] == "gzip"
    # The client unpacks by itself.
    assert answer.content == CONTENT[:1000]


def test_a_portal_answers_every_path_alike(server: LabServer) -> None:
    server.break_with(ServerFault("portal"))
    answer = get(server, "no/such/file")
    assert answer.status_code == 200
    assert "Log in" in answer.text


def test_an_endless_body_goes_on_after_the_file(server: LabServer) -> None:
    server.break_with(ServerFault("endless"))
    with requests.get(f"{server.url}/blobs/one", timeout=10, stream=True) as answer:
        assert len(answer.raw.read(len(CONTENT) + 200_000)) == len(CONTENT) + 200_000


def test_a_slow_server_sends_all_the_same(server: LabServer) -> None:
    server.break_with(ServerFault("slow", rate=2_000_000))
    assert get(server, "blobs/one").content == CONTENT
    assert server.fault_hits > 1


@pytest.mark.parametrize(("error", "told"), [(ConnectionResetError("gone"), False), (ValueError("a defect"), True)])
def test_a_client_that_hangs_up_is_not_told_as_a_defect(
    error: Exception, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Http(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        try:
            raise error
        except type(error):
            server.handle_error(None, ("127.0.0.1", 1))
    assert (str(error) in capsys.readouterr().err) is told
