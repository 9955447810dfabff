"""The development server speaks HTTP as static servers do."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.trust_site import served

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def connection(quick_path: Path) -> Iterator[http.client.HTTPConnection]:
    base = quick_path / "repo"
    (base / "metadata").mkdir(parents=True)
    (base / "file").write_bytes(CONTENT)
    (base / "empty").write_bytes(b"")
    (base / "metadata" / "timestamp.json").write_bytes(b"{}")
    (quick_path / "secret").write_bytes(b"secret")
    (base / "link").symlink_to(quick_path / "secret")
    with served(base) as url:
        made = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        yield made
        made.close()


def ask(
    connection: http.client.HTTPConnection, path: str, byte_range: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path, headers={"Range": byte_range} if byte_range else {})
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


@pytest.mark.parametrize(
    ("byte_range", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=10000-", 10_000, 10_239), ("bytes=-5", 10_235, 10_239)],
)
def test_ranges_are_served(connection: http.client.HTTPConnection, byte_range: str, first: int, last: int) -> None:
    status, headers, body = ask(connection, "/file", byte_range)
    assert status == 206
    assert headers["Content-Range"] == f"bytes {first}-{last}/10240"
    assert headers["Content-Length"] == str(last - first + 1)
    assert body == CONTENT[first : last + 1]


@pytest.mark.parametrize("byte_range", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_past_the_end_is_416(connection: http.client.HTTPConnection, byte_range: str) -> None:
    status, headers, body = ask(connection, "/file", byte_range)
    assert (status, headers["Content-Range"], body) == (416, "bytes */10240", b"")


@pytest.mark.parametrize("byte_range", ["bytes=5-3", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "bytes=a-b"])
def test_a_range_that_makes_no_sense_is_ignored(connection: http.client.HTTPConnection, byte_range: str) -> None:
    status, _, body = ask(connection, "/file", byte_range)
    assert (status, body) == (200, CONTENT)


def test_a_range_that_ends_late_is_cut(connection: http.client.HTTPConnection) -> None:
    status, headers, body = ask(connection, "/file", "bytes=10000-99999")
    assert (status, headers["Content-Range"]) == (206, "bytes 10000-10239/10240")
    assert body == CONTENT[10_000:]


def test_whole_and_empty_files_and_heads(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/file")[::2] == (200, CONTENT)
    assert ask(connection, "/empty")[::2] == (200, b"")
    assert ask(connection, "/empty", "bytes=0-")[0] == 416
    status, headers, body = ask(connection, "/file", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "10240", b"")
    assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    "path", ["/none", "/", "/metadata", "/../secret", "/%2e%2e/secret", "/a/../../secret", "/link", "/file%00"]
)
def test_what_is_not_a_file_of_the_folder_is_404(connection: http.client.HTTPConnection, path: str) -> None:
    status, headers, body = ask(connection, path)
    assert (status, body) == (404, b"")
    assert headers["Cache-Control"] == "no-store"


def test_other_methods_are_refused(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/file", method="PUT")[0] == 501


def test_only_the_timestamp_must_not_be_cached(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/metadata/timestamp.json")[1]["Cache-Control"] == "no-cache"
    assert "immutable" in ask(connection, "/file")[1]["Cache-Control"]
