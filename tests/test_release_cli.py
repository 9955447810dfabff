"""The command `acl-release`, as a release engineer types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.releases import make_release
from updater.format.compression import pack
from updater.manifest import BLOCK_BYTES, parse_manifest
from updater.release.cli import main
from updater.release.frames import IMAGE

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(quick_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that types a command in an empty folder; it returns exit code, output and errors."""
    monkeypatch.chdir(quick_path)
    for name in ("ACL_RELEASE_REPO", "ACL_RELEASE_KEYS", "ACL_RELEASE_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)

    def typed(*words: str) -> tuple[int, str, str]:
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return typed


def good(outcome: tuple[int, str, str]) -> str:
    assert outcome[0] == 0, outcome[2]
    return outcome[1]


def started(run: Run) -> None:
    """Make keys, a repository and two published releases."""
    good(run("keys", "init"))
    good(run("repo", "init"))
    for version in ("1.0.0", "1.1.0"):
        make_release(version, blocks=130).write(Path("out") / version)
    good(run("publish", "out/1.0.0", "out/1.1.0"))


def test_a_release_goes_from_keys_to_a_channel(run: Run) -> None:
    started(run)
    assert good(run("promote", "1.0.0", "--channel", "stable")) == "stable: nothing -> 1.0.0\n"
    assert good(run("promote", "1.1.0", "--channel", "stable")) == "stable: 1.0.0 -> 1.1.0\n"
    assert good(run("promote", "1.1.0", "--channel", "stable")) == "stable: offers 1.1.0 already\n"
    assert "1.0.0: was published before" in good(run("publish", "out/1.0.0"))
    assert good(run("withdraw", "1.1.0", "--why", "breaks DNS")) == (
        "1.1.0: withdrawn (breaks DNS)\nstable: 1.1.0 -> 1.0.0\n"
    )
    assert good(run("refresh")) == "renewed: snapshot, timestamp\n"
    status = good(run("status"))
    assert "channel stable: 1.0.0" in status
    assert "release 1.1.0  withdrawn: breaks DNS" in status
    assert re.search(r"root +1 .* 2 of 3", status)
    assert re.search(r": good \(2 releases, [0-9]+ files", good(run("verify")))


def test_a_delta_is_added_to_a_published_release(run: Run) -> None:
    started(run)
    told = good(run("delta", "add", "--from", "1.0.0", "--to", "1.1.0"))
    assert re.fullmatch(r"deltas from 1\.0\.0 to 1\.1\.0: published before; a node fetches 0\.[0-9] MB .*\n", told)
    told = good(run("delta", "add", "--from", "1.1.0", "--to", "1.0.0"))
    assert told.startswith("deltas from 1.1.0 to 1.0.0: published; a node fetches")
    assert "good (2 releases" in good(run("verify"))
    assert run("delta", "add", "--from", "1.0.0", "--to", "3.0.0")[0] == 4


def test_a_repository_sets_how_many_deltas_a_release_gets(run: Run) -> None:
    good(run("keys", "init"))
    good(run("repo", "init", "--deltas", "1"))
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        make_release(version, blocks=130).write(Path("out") / version)
        good(run("publish", "--level", "3", f"out/{version}"))

    def sources(version: str) -> list[str]:
        (manifest,) = Path("repo/targets/manifests").glob(f"*.{version}.json")
        found = json.loads(manifest.read_bytes())["transport"]["root"]["deltas"]
        return [delta["source_version"] for delta in found]

    assert sources("1.1.0") == ["1.0.0"]
    assert sources("1.2.0") == ["1.1.0"]
    settings = Path("repo/acl-release.json")
    settings.write_text(settings.read_text().replace('"deltas":1', '"deltas":3').replace('"deltas": 1', '"deltas": 3'))
    for version, words in (("1.3.0", ()), ("1.4.0", ("--deltas", "2"))):
        make_release(version, blocks=130).write(Path("out") / version)
        good(run("publish", "--level", "3", *words, f"out/{version}"))
    assert sources("1.3.0") == ["1.2.0", "1.1.0", "1.0.0"]
    assert sources("1.4.0") == ["1.3.0", "1.2.0"]


def test_json_reports_carry_the_same(run: Run) -> None:
    started(run)

    def asked(*words: str) -> Any:
        return json.loads(good(run("--json", *words)))

    assert asked("promote", "1.0.0", "--channel", "stable") == {
        "channels": [{"after": "1.0.0", "before": None, "channel": "stable"}]
    }
    status = asked("status")
    assert status["channels"] == {"stable": "1.0.0"}
    assert [role["role"] for role in status["roles"]] == [
        "root",
        "targets",
        "channels",
        "releases",
        "snapshot",
        "timestamp",
    ]
    assert asked("verify")["good"] is True
    assert asked("publish", "out/1.0.0")["published"][0]["new"] is False
    assert json.loads(good(run("verify", "--json")))["releases"] == ["1.0.0", "1.1.0"]


def test_refusals_have_an_exit_code_a_reason_and_a_mend(run: Run) -> None:
    started(run)
    code, out, err = run("promote", "9.9.9", "--channel", "stable")
    assert (code, out) == (4, "")
    assert "9.9.9 is not published" in err
    assert "what to do: publish it first" in err
    code, out, _ = run("--json", "promote", "1.0.0", "--channel", "A/b")
    assert code == 5
    assert json.loads(out)["reason"] == "invalid-document"
    assert run("keys", "init")[0] == 4
    assert run("repo", "init")[0] == 4
    assert run("--repo", "nowhere", "status")[0] == 4


def test_verify_fails_with_the_code_of_distrust(run: Run) -> None:
    started(run)
    image = next(Path("repo/images").glob("*/data"))
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    code, out, _ = run("verify")
    assert code == 6
    assert "1 wrong" in out or "2 wrong" in out


def test_time_can_be_set_for_tests(run: Run) -> None:
    started(run)
    code, out, _ = run("--now", "2040-01-01T00:00:00Z", "verify")
    assert code == 6
    assert "not renewed, or is frozen" in out
    assert run("--now", "soon", "verify")[0] == 5


def test_lifetimes_and_keys_are_chosen_at_the_start(run: Run) -> None:
    good(run("keys", "init", "--scheme", "ecdsa", "--root-keys", "1"))
    good(run("repo", "init", "--expires", "timestamp=1h", "--expires", "channels=5d"))
    status = json.loads(good(run("status", "--json")))
    keys = {role["role"]: role["keys"] for role in status["roles"]}
    assert keys["root"] == "1 of 1"
    assert "ecdsa" in Path("repo/metadata/1.root.json").read_text()
    assert run("repo", "init", "--expires", "mirror=1d")[0] == 5


def test_keys_can_be_encrypted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("keys", "init", "--passphrase")[0] == 4
    monkeypatch.setenv("ACL_RELEASE_PASSPHRASE", "open sesame")
    good(run("keys", "init", "--passphrase"))
    good(run("repo", "init"))
    monkeypatch.setenv("ACL_RELEASE_PASSPHRASE", "wrong")
    code, _, err = run("refresh")
    assert code == 4
    assert "does not open" in err


def test_rotation_and_epoch_reset(run: Run) -> None:
    started(run)
    assert "timestamp: " in good(run("rotate-key", "timestamp"))
    assert "root-2: " in good(run("rotate-key", "root-2"))
    assert "root version 5 sets the floor" in good(run("reset-epoch", "3"))
    assert run("reset-epoch", "-1")[0] in (2, 5)
    good(run("refresh", "--role", "channels", "--role", "releases"))
    good(run("verify"))


def test_help_teaches_without_loading_cryptography() -> None:
    code = (
        "import sys\nfrom updater.release.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'tuf', 'requests', 'cryptography', 'securesystemslib', 'urllib3', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("keys init", "publish", "promote", "withdraw", "refresh", "verify", "serve"):
        assert f"acl-release {verb}" in done.stdout


def test_serve_prints_its_url_and_serves(run: Run, quick_path: Path) -> None:
    started(run)
    with subprocess.Popen(
        [sys.executable, "-m", "updater.release.cli", "serve", "--port", "0"],
        cwd=quick_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{url}/metadata/timestamp.json", timeout=10) as response:
                assert response.read() == Path("repo/metadata/timestamp.json").read_bytes()
            assert ": good" in good(run("verify", "--url", url))
        finally:
            server.terminate()


def test_serving_what_is_no_repository_is_refused(run: Run) -> None:
    assert run("serve")[0] == 4


def test_a_lower_level_makes_other_frames_and_a_wrong_one_is_refused(run: Run) -> None:
    good(run("keys", "init"))
    good(run("repo", "init"))
    image = b"".join(b"%d and " % at for at in range(80_000))[: 120 * BLOCK_BYTES]
    release = make_release("1.0.0", image=image)
    release.write(Path("out/1.0.0"))
    good(run("publish", "--level", "1", "--deltas", "0", "out/1.0.0"))
    (path,) = Path().glob("*/targets/manifests/*1.0.0.json")
    transport = parse_manifest(path.read_bytes(), "manifest").transport
    assert transport is not None
    assert transport.root.frames is not None
    assert transport.root.frames.file.length_bytes > len(pack(image, 19, window_log=IMAGE.window_log))
    for level in ("0", "23", "-1", "fast"):
        with pytest.raises(SystemExit):
            run("publish", "--level", level, "out/1.0.0")
