"""The fetcher on local folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.fetch import Fetcher


def test_a_folder_and_its_file_url_are_mirrors(tmp_path: Path) -> None:
    folder = tmp_path / "a stick"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "x").write_bytes(bytes(range(256)) * 4096)
    for address in (str(folder), folder.as_uri()):
        source = Fetcher([address])
        assert source.read("blobs/x", 1 << 20) == bytes(range(256)) * 4096
        assert b"".join(source.stream("blobs/x", 300, 1000)) == (bytes(range(256)) * 8)[300:1300]
        assert source.counters.requests == 0


def test_paths_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "repo").mkdir()
    for path in ("../secret", "a/../../secret", "/etc/hostname", "./x", "a//b"):
        with pytest.raises(ValueError, match="not a clean relative path"):
            Fetcher([str(tmp_path / "repo")]).read(path, 100)


def test_missing_and_short_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    source = Fetcher([str(tmp_path)], sleep=lambda seconds: None)
    with pytest.raises(NetworkFailure) as caught:
        source.read("y", 10)
    assert caught.value.reason == "not-found"
    with pytest.raises(NetworkFailure) as caught:
        source.read("x/y", 10)
    assert caught.value.reason == "not-found"
    with pytest.raises(NetworkFailure) as caught:
        list(source.stream("x", 3, 10))
    assert caught.value.reason == "file-too-short"
    with pytest.raises(Untrusted):
        source.read("x", 4)


def test_the_next_mirror_has_what_the_first_lacks(tmp_path: Path) -> None:
    for name, file in (("one", "a"), ("two", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(name.encode())
    source = Fetcher([str(tmp_path / "one"), str(tmp_path / "two")])
    assert source.read("b", 10) == b"two"
    assert [alone.mirrors for alone in source.per_mirror()] == [[str(tmp_path / "one")], [str(tmp_path / "two")]]


@pytest.mark.parametrize("address", ["", "repo", "ftp://host/x", "http://", "file://host/x", "javascript:x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        Fetcher([address])
    assert caught.value.reason == "mirror-invalid"


def test_no_mirror_is_refused() -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        Fetcher([])
    assert caught.value.reason == "no-mirror"


def test_importing_trust_and_fetching_loads_no_heavy_library() -> None:
    code = (
        "import sys, updater.fetch, updater.trust, updater.release.keys, updater.release.repository\n"
        "heavy = {'tuf', 'requests', 'cryptography', 'securesystemslib', 'urllib3', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
