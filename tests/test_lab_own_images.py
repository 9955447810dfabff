"""Your own images in the lab: a disk for `boot`, releases for scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.lab.cli import main
from integration.lab.emulator import Emulator
from integration.lab.own_stock import read_manifest, stock_for
from integration.lab.scenario import load_scenario, parse_scenario
from integration.lab.terms import Misuse
from tests.releases import make_release
from updater.errors import ExitCode, InvalidDocument


def test_ones_own_disk_with_secure_boot_needs_a_store_with_ones_own_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = Path("/nowhere")
    monkeypatch.setattr("integration.lab.booting.find_emulator", lambda: Emulator(("qemu",), nowhere, nowhere))
    (tmp_path / "node.raw").touch()
    words = ["boot", "--disk", str(tmp_path / "node.raw"), "--secure-boot", "--out", str(tmp_path / "boot")]
    assert main(words) == ExitCode.USAGE
    assert "no firmware knows the keys" in capsys.readouterr().err
    assert main([*words, "--variables", str(tmp_path / "none.fd")]) == ExitCode.USAGE
    assert "no store of EFI variables" in capsys.readouterr().err


SCENARIO = """
name: mine
summary: My own releases.
own: {releases: {1: out/1.0.0, 2: out/1.1.0}, disk: node.raw}
steps:
  - offline: {run: update --to 1.1.0}
  - expect: {loader: [b+3-0.conf, a.conf]}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a scenario's file with two releases and a disk beside it; the lab has no tool tree, and a new cache."""
    nowhere = Path("/nowhere")
    monkeypatch.setattr("integration.lab.own_stock.find_emulator", lambda: Emulator(("qemu",), nowhere, nowhere))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for version in ("1.0.0", "1.1.0"):
        make_release(version).write(tmp_path / f"out/{version}")
    (tmp_path / "node.raw").write_bytes(b"disk")
    path = tmp_path / "mine.yaml"
    path.write_text(SCENARIO)
    return path


def test_a_scenario_starts_from_ones_own_disk_and_releases(mine: Path) -> None:
    scenario = load_scenario(mine)
    stock = stock_for(scenario)
    assert stock.disk == mine.parent / "node.raw"
    assert {number: known.version for number, known in stock.releases.items()} == {1: "1.0.0", 2: "1.1.0"}
    assert stock.release(2).root_hash == make_release("1.1.0").manifest.root.root_hash
    assert list(stock.repository.glob("targets/manifests/*.1.1.0.json"))
    assert (stock.trust / "1.root.json").is_file()
    # The second time nothing is published anew.
    assert stock_for(scenario).keys == stock.keys


def test_what_is_missing_or_for_another_layout_is_named(mine: Path) -> None:
    (mine.parent / "node.raw").unlink()
    with pytest.raises(Misuse, match=r"no disk image .*node.raw"):
        stock_for(load_scenario(mine))
    mine.write_text(SCENARIO.replace("out/1.1.0", "out/9.9.9"))
    with pytest.raises(Misuse, match=r"no release in .*out/9.9.9"):
        stock_for(load_scenario(mine))
    mine.write_text(SCENARIO.replace("own:", "layout: flatcar\nown:"))
    with pytest.raises(Misuse, match="is for dps-root, the scenario for flatcar"):
        stock_for(load_scenario(mine))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("1: out/1.0.0, ", ""), "no release 1"),
        (("own:", "secure_boot: true\nown:"), "no key of yours"),
    ],
)
def test_own_images_that_cannot_be_a_node_are_refused_by_their_key(change: tuple[str, str], why: str) -> None:
    with pytest.raises(InvalidDocument, match=why) as caught:
        parse_scenario(SCENARIO.replace(*change).encode(), "mine.yaml")
    assert "own" in caught.value.key


def test_a_folder_without_a_release_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no release in"):
        read_manifest(tmp_path)
