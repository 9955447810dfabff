"""`acl-updater --disk FILE --efi-vars STORE`: updates of a disk image whose machine boots by its firmware alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.disk_image import make_disk
from tests.releases import Publisher, make_release
from tests.test_efivars import empty_store
from updater.boot.load_option import order_bytes
from updater.cli import main
from updater.config import Config
from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID
from updater.errors import ExitCode
from updater.layouts import load_layout
from updater.node.image import ImageNode
from updater.slots import Slot

LAYOUT = "dps-root-efi"
ONE, TWO = (make_release(version, layouts=(LAYOUT,)) for version in ("1.0.0", "2.0.0"))


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, TWO)
    made.promote("2.0.0")
    return made


class TypedWithStore:
    """The command line on one disk image and its machine's variables."""

    def __init__(self, folder: Path, publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
        self.disk = make_disk(ONE, folder / "disk.raw", layout_name=LAYOUT)
        self.store = empty_store(folder / "vars.fd")
        self._config = folder / "config.yaml"
        self._config.write_text(
            f"layout: {LAYOUT}\nmirrors: [{publisher.mirror}]\ntrusted_roots: {publisher.mirror / 'metadata'}\n"
        )
        self._capsys = capsys
        with ImageNode(self.disk, load_layout(LAYOUT), Config(), efi_vars=self.store) as node:
            node.boot.settle(Slot.A)

    @property
    def efi(self) -> FileEfiVariables:
        return FileEfiVariables(self.store)

    def __call__(self, *words: str, store: bool = True) -> tuple[int, str, str]:
        """Type a command; return (exit code, what it printed, what it said to stderr)."""
        self._capsys.readouterr()
        given = ["--efi-vars", str(self.store)] if store else []
        code = main(["--disk", str(self.disk), *given, "--config", str(self._config), *words])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def entries(self) -> list[tuple[str, str | None, int | None]]:
        """Return the options as (name, slot, tries left) in the firmware's order."""
        document: dict[str, Any] = json.loads(self("status", "--json")[1])
        return [(entry["name"], entry["slot"], entry["tries_left"]) for entry in document["boot"]["entries"]]


@pytest.fixture
def typed(publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> TypedWithStore:
    return TypedWithStore(tmp_path, publisher, capsys)


def test_a_release_is_staged_and_armed_in_disk_and_store(typed: TypedWithStore) -> None:
    assert typed.entries() == [("Boot0000", "a", None)]
    code, out, err = typed("update")
    assert (code, err) == (ExitCode.DONE, err)
    assert "release 2.0.0 in slot b is armed" in out
    assert typed.entries() == [("Boot0001", "b", 1), ("Boot0000", "a", None)]
    assert typed.efi.read("BootNext", GLOBAL_GUID) == order_bytes((1,))
    assert typed("cancel")[0] == ExitCode.DONE
    assert typed.entries() == [("Boot0000", "a", None)]
    assert typed.efi.read("BootNext", GLOBAL_GUID) is None


def test_a_store_of_another_machine_says_that_nothing_of_ours_would_boot(typed: TypedWithStore, tmp_path: Path) -> None:
    shutil.copyfile(empty_store(tmp_path / "other.fd"), typed.store)
    code, _, err = typed("status")
    assert code == ExitCode.ENVIRONMENT
    assert "would boot nothing of ours" in err


def test_without_the_store_the_option_to_give_is_named(typed: TypedWithStore) -> None:
    code, _, err = typed("update", store=False)
    assert code == ExitCode.ENVIRONMENT
    assert "--efi-vars" in err
