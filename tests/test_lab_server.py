"""The tests' web server: ranges, counts and faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from integration.lab.server import LabServer, ServerFault

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
