"""`acl-updater --disk FILE`: whole updates of a disk image, without root, by the command line that people type."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.disk_image import make_disk
from tests.releases import Publisher, make_release
from updater.cli import main
from updater.config import Config
from updater.errors import ExitCode
from updater.files import Below
from updater.layouts import load_layout
from updater.node.image import ImageNode
from updater.run import find_tool

ONE, TWO, THREE = make_release("1.0.0"), make_release("2.0.0"), make_release("3.0.0")


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, TWO, THREE)
    made.promote("2.0.0")
    return made


@pytest.fixture(scope="module")
def factory_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(ONE, tmp_path_factory.mktemp("factory") / "disk.raw")


class Typed:
    """The command line on one disk image."""

    def __init__(self, disk: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.disk = disk
        self._config = config
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Type a command; return (exit code, what it printed, what it said to stderr)."""
        self._capsys.readouterr()
        code = main(["--disk", str(self.disk), "--config", str(self._config), *words])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def data(self, *words: str) -> dict[str, Any]:
        """Type a command with --json; return the document."""
        _, out, _ = self(*words, "--json")
        document: dict[str, Any] = json.loads(out)
        return document

    def order(self) -> list[str]:
        """Return the loader's entries in its order."""
        return [entry["name"] for entry in self.data("status")["boot"]["entries"]]


@pytest.fixture
def typed(publisher: Publisher, factory_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    disk = shutil.copyfile(factory_disk, tmp_path / "disk.raw")
    config = tmp_path / "config.yaml"
    config.write_text(f"mirrors: [{publisher.mirror}]\ntrusted_roots: {publisher.mirror / 'metadata'}\n")
    return Typed(disk, config, capsys)


def test_a_release_is_staged_and_armed_on_a_disk_image(typed: Typed) -> None:
    assert typed.order() == ["a.conf"]
    code, out, _ = typed("update")
    assert code == ExitCode.DONE
    assert "release 2.0.0 in slot b is armed" in out
    assert typed.order() == ["b+3-0.conf", "a.conf"]
    status = typed.data("status")
    assert (status["situation"], status["running"]["slot"], status["running"]["release"]) == ("armed", "b", "2.0.0")
    assert status["other"] == {
        "slot": "a",
        "release": "1.0.0",
        "proven": True,
        "root_hash": ONE.manifest.root.root_hash,
    }
    assert [event["event"] for event in typed.data("history")["events"]] == ["stage-began", "staged", "armed"]


def test_independent_readers_agree_with_what_was_written(typed: Typed) -> None:
    typed("update")
    checked = subprocess.run([find_tool("sgdisk"), "-v", typed.disk], capture_output=True, text=True, check=False)
    assert "No problems found" in checked.stdout
    table = json.loads(subprocess.run([find_tool("sfdisk"), "-J", typed.disk], capture_output=True, check=True).stdout)
    partitions = {item["name"]: item for item in table["partitiontable"]["partitions"]}
    root_hash = TWO.manifest.root.root_hash
    assert partitions["root-b"]["uuid"].replace("-", "").lower() == root_hash[:32]
    assert partitions["root-b-verity"]["uuid"].replace("-", "").lower() == root_hash[-32:]
    content = typed.disk.read_bytes()
    parts = {}
    for name in ("root-b", "root-b-verity", "esp", "state"):
        parts[name] = typed.disk.with_name(name)
        start, size = partitions[name]["start"] * 512, partitions[name]["size"] * 512
        parts[name].write_bytes(content[start : start + size])
    readers: tuple[list[str | Path], ...] = (
        ["veritysetup", "verify", parts["root-b"], parts["root-b-verity"], root_hash],
        ["fsck.vfat", "-n", parts["esp"]],
        ["e2fsck", "-fn", parts["state"]],
    )
    for argv in readers:
        done = subprocess.run([find_tool(str(argv[0])), *argv[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv[0]}: {done.stdout}{done.stderr}"


def test_looking_changes_not_one_byte(typed: Typed) -> None:
    before = typed.disk.read_bytes()
    for words in (["status"], ["history"], ["quarantine", "list"]):
        code, _, _ = typed(*words)
        assert code == ExitCode.DONE
    assert typed.disk.read_bytes() == before


def test_a_plan_shows_the_sums_and_the_steps(typed: Typed) -> None:
    code, out, _ = typed("plan")
    assert code == ExitCode.DONE
    assert "slot b's image" in out
    assert "fill-slot" in out
    made = typed.data("plan")
    assert (made["release"], made["slot"], made["possible"]) == ("2.0.0", "b", True)


@pytest.mark.parametrize("words", [("commit",), ("health", "run")])
def test_what_needs_a_running_machine_refuses_a_disk_image(typed: Typed, words: tuple[str, ...]) -> None:
    code, _, err = typed(*words)
    assert code == ExitCode.REFUSED
    assert "disk image" in err


def test_an_update_is_cancelled_and_another_release_is_chosen(typed: Typed) -> None:
    typed("update")
    assert typed("cancel")[0] == ExitCode.DONE
    assert typed.order() == ["a.conf"]
    assert typed("cancel")[0] == ExitCode.NOTHING_TO_DO
    assert typed("pin", "3.0.0")[0] == ExitCode.DONE
    assert typed.data("update")["armed"] == "3.0.0"
    assert typed("unpin")[0] == ExitCode.DONE


def test_staging_and_finalizing_are_separate_steps(typed: Typed) -> None:
    assert typed("finalize")[0] == ExitCode.REFUSED
    assert typed("stage")[0] == ExitCode.DONE
    assert typed.data("status")["situation"] == "staged"
    assert typed.order() == ["a.conf"]
    assert typed("stage")[0] == ExitCode.NOTHING_TO_DO
    assert typed("finalize")[0] == ExitCode.DONE
    assert typed.order() == ["b+3-0.conf", "a.conf"]
    assert typed("stage", "--to", "3.0.0")[0] == ExitCode.REFUSED


def test_a_hold_stops_updates_until_it_ends(typed: Typed) -> None:
    assert typed("hold", "--until", "2999-01-01T00:00:00Z", "--why", "freeze")[0] == ExitCode.DONE
    code, _, err = typed("update")
    assert code == ExitCode.REFUSED
    assert "freeze" in err
    assert typed("update", "--automatic")[0] == ExitCode.DONE
    assert "on hold" in typed("explain")[1]
    assert typed("unhold")[0] == ExitCode.DONE
    assert typed("unhold")[0] == ExitCode.NOTHING_TO_DO
    assert typed("check")[0] == ExitCode.DONE


def test_another_channel_is_followed(typed: Typed, publisher: Publisher) -> None:
    publisher.promote("3.0.0", "beta")
    assert typed("channel", "beta")[0] == ExitCode.DONE
    assert typed.data("check")["available"] == "3.0.0"
    assert typed("channel", "Nonsense Name")[0] == ExitCode.FAILED


def test_explain_says_in_one_sentence_what_stands_in_the_way(typed: Typed) -> None:
    assert typed.data("explain")["reason"] == "update-available"
    typed("pin", "9.9.9")
    told = typed.data("explain")
    assert told["reason"] == "unknown-release"
    assert "9.9.9" in told["sentence"]


def test_nothing_is_done_twice(typed: Typed) -> None:
    typed("pin", "1.0.0")
    code, _, err = typed("update")
    assert code == ExitCode.NOTHING_TO_DO
    assert "runs already" in err


def test_quarantine_is_listed_and_cleared(typed: Typed) -> None:
    assert typed("quarantine", "list")[1].strip() == "nothing is quarantined"
    assert typed("quarantine", "clear", "2.0.0")[0] == ExitCode.NOTHING_TO_DO


def test_a_disk_that_a_machine_runs_from_is_refused(typed: Typed) -> None:
    """QEMU holds open-file-description locks on single bytes of its images."""
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
    with typed.disk.open("rb") as file:
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, lock)
        code, _, err = typed("update")
        assert code == ExitCode.REFUSED
        assert "in use" in err
        assert typed("status")[0] == ExitCode.DONE
    assert typed("update")[0] == ExitCode.DONE


def test_a_corrupt_journal_is_set_aside_and_the_update_goes_on(typed: Typed) -> None:
    typed("stage")
    with ImageNode(typed.disk, load_layout("dps-root"), Config()) as node:
        node.state.replace("journal.json", b'{"body": {"phase": "stag')
    assert any("journal.json" in note for note in typed.data("status")["notes"])
    assert typed("update")[0] == ExitCode.DONE
    assert typed.order() == ["b+3-0.conf", "a.conf"]
    with ImageNode(typed.disk, load_layout("dps-root"), Config()) as node:
        assert any(name.startswith("journal.json.corrupt-") for name in node.state.names())


def test_a_lost_state_folder_is_made_good_from_the_esp(typed: Typed) -> None:
    with ImageNode(typed.disk, load_layout("dps-root"), Config()) as node:
        assert isinstance(node.trust, Below)
        for name in node.state.names():
            node.state.remove(name)
    assert typed.data("status")["situation"] == "idle"
    assert typed("update")[0] == ExitCode.DONE


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", ExitCode.ENVIRONMENT), (bytes(4 << 20), ExitCode.ENVIRONMENT)],
    ids=["empty", "no table"],
)
def test_what_is_no_disk_is_refused(typed: Typed, content: bytes, code: int) -> None:
    typed.disk.write_bytes(content)
    assert typed("status")[0] == code


def test_a_missing_disk_is_named(typed: Typed) -> None:
    typed.disk.unlink()
    code, _, err = typed("status")
    assert code == ExitCode.ENVIRONMENT
    assert str(typed.disk) in err


def test_an_invalid_configuration_names_its_key(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("chanel: stable\n")
    code, _, err = typed("status")
    assert code == ExitCode.INVALID_INPUT
    assert "'chanel' is not known here" in err


def test_an_error_in_json_has_a_stable_reason(typed: Typed) -> None:
    told = typed.data("update", "--to", "9.9.9")
    assert (told["reason"], told["exit_code"]) == ("unknown-release", 4)
    assert told["mend"]


def test_a_mirror_that_is_gone_is_no_distrust(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"mirrors: [{tmp_path / 'nowhere'}]\n")
    code, _, err = typed("update")
    assert code in (ExitCode.ENVIRONMENT, ExitCode.UNTRUSTED)
    assert err
    assert typed.order() == ["a.conf"]


@pytest.mark.parametrize("words", [[], ["nonsense"], ["pin"], ["hold", "--until", "tomorrow"]])
def test_wrong_usage_is_told_apart(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == ExitCode.USAGE
    assert "usage:" in capsys.readouterr().err


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "exit codes:" in out
