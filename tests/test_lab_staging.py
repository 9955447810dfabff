"""Faults on a staging node: refused unless allowed, once, and gone before they strike."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from integration.lab import staging
from integration.lab.catalogue import FaultFile, chosen_faults, find_faults, load_fault
from integration.lab.cli import main
from updater.errors import ExitCode, InvalidDocument, Refused

HASH = "ab" * 32


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the root of a node that allows every fault."""
    (tmp_path / "etc/acl-updater").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text(f"console=ttyS0 roothash={HASH} quiet\n")
    allow(tmp_path, "format: 1\nallow: true\n")
    return tmp_path


def allow(root: Path, text: str) -> None:
    (root / staging.PERMISSION).write_text(text)


def fault(name: str) -> FaultFile:
    return chosen_faults([name])[0]


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "allows no faults"),
        ("format: 1\nallow: false\n", "forbids"),
        ("format: 1\nallow: true\nfaults: [container-*]\n", "does not allow"),
        ("format: 1\nallow: true\nuntil: 2026-11-19T00:00:00Z\n", "allowed faults until"),
    ],
)
def test_a_node_that_does_not_allow_a_fault_gets_none(node: Path, text: str | None, words: str) -> None:
    if text is None:
        (node / staging.PERMISSION).unlink()
    else:
        allow(node, text)
    with pytest.raises(Refused, match=words) as caught:
        staging.permitted(node, "hang-userspace", now=datetime(2026, 11, 20, tzinfo=UTC))
    assert caught.value.mend


def test_an_unreadable_permission_is_none(node: Path) -> None:
    allow(node, "format: 1\nallow: perhaps\n")
    with pytest.raises(InvalidDocument):
        staging.permitted(node, "hang-userspace")


def test_a_fault_is_armed_for_another_release_only(node: Path) -> None:
    staging.arm(staging.plan(fault("userspace-cgroup-oom"), node, "trial"), node)
    assert staging.armed(node) == "userspace-cgroup-oom"
    unit = (node / "etc/systemd/system" / staging.UNIT).read_text()
    assert f"ConditionKernelCommandLine=!roothash={HASH}\n" in unit


def test_what_fires_removes_itself_before_it_strikes(node: Path) -> None:
    for name in ("userspace-cgroup-oom", "hang-userspace"):
        text = staging.plan(fault(name), node, "trial").files["var/lib/acl-lab/fire"]
        assert text.index("rm -f") < text.index("sync") < text.index("acl-lab: fault")
        strikes = "inject-early /run" if "inject-early /run" in text else "systemd-run"
        assert text.index("sync") < text.index(strikes)
        assert subprocess.run(["sh", "-n"], input=text.encode(), check=False).returncode == 0


def test_the_shot_leaves_nothing_on_the_disk(node: Path) -> None:
    before = everything(node)
    staging.arm(staging.plan(fault("hang-userspace"), node, "trial"), node)
    script = (node / "var/lib/acl-lab/fire").read_text()
    # The same commands, on this folder: all that comes after the flush would strike.
    removing = [line for line in script.splitlines() if line.startswith("rm ")]
    subprocess.run(["sh", "-c", "\n".join(removing).replace(" /", f" {node}/")], check=True)
    assert everything(node) == before
    assert staging.armed(node) is None


def test_only_one_fault_waits_at_a_time(node: Path) -> None:
    staging.arm(staging.plan(fault("hang-userspace"), node, "trial"), node)
    with pytest.raises(Refused, match="hang-userspace is armed already"):
        staging.arm(staging.plan(fault("userspace-cgroup-oom"), node, "trial"), node)
    assert staging.armed(node) == "hang-userspace"


def test_an_armed_fault_can_be_taken_away(node: Path) -> None:
    before = everything(node)
    staging.arm(staging.plan(fault("hang-userspace"), node, "trial"), node)
    assert staging.remove(node)
    assert everything(node) == before
    assert not staging.remove(node)


@pytest.mark.parametrize("name", ["verity-data-flipped", "initrd-emergency", "server-errors", "power-cut-trial"])
def test_what_only_the_lab_can_do_is_refused(node: Path, name: str) -> None:
    with pytest.raises(Refused, match="cannot be injected"):
        staging.plan(fault(name), node, "trial")


def test_many_faults_can_be_had_on_a_real_node(node: Path) -> None:
    possible = 0
    for path in find_faults():
        try:
            staging.plan(load_fault(path), node, "trial")
        except Refused:
            continue
        possible += 1
    assert possible >= 20


def test_a_machine_without_a_root_hash_is_no_node(node: Path) -> None:
    (node / "proc/cmdline").write_text("root=/dev/sda1\n")
    with pytest.raises(Refused, match="root hash"):
        staging.plan(fault("hang-userspace"), node, "trial")


def test_the_command_says_what_it_would_do_and_does_nothing(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(node)
    assert main(["inject", "hang-userspace", "--dry-run", "--root", str(node)]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "would strike once, in the first boot of another release" in said
    assert "cgroup.freeze" in said
    assert everything(node) == before


def test_the_command_arms_tells_and_removes(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(node), "--json"]
    assert main(["inject", "hang-userspace", *root]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["armed"] is True
    assert main(["inject", *root]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"armed": "hang-userspace"}
    assert main(["inject", "--remove", *root]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"removed": "hang-userspace"}


def test_the_command_refuses_where_nobody_allowed_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inject", "hang-userspace", "--root", str(tmp_path)]) == ExitCode.REFUSED
    assert "lab.yaml" in capsys.readouterr().err
    assert everything(tmp_path) == set()
