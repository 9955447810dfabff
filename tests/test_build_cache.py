"""The cache of built things: made once, complete or absent."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from integration.images.cache import cached, recipe_key
from integration.images.debian import Mirror, sources
from integration.images.tooltree import major_version


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_product_is_made_once_for_a_recipe_and_anew_for_another() -> None:
    made: list[Path] = []

    def make(folder: Path, final: Path) -> None:
        made.append(final)
        (folder / "product").write_text("x")

    first = cached("kind", {"a": 1}, make)
    again = cached("kind", {"a": 1}, make)
    other = cached("kind", {"a": 2}, make)

    assert first == again != other
    assert made == [first, other]
    assert (first / "product").read_text() == "x"


def test_a_product_whose_making_failed_is_made_anew() -> None:
    def fail(folder: Path, final: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        cached("kind", {}, fail)
    folder = cached("kind", {}, lambda folder, _: (folder / "whole").touch())

    assert sorted(path.name for path in folder.iterdir()) == ["recipe.json", "whole"]


def test_a_recipes_key_does_not_depend_on_the_order_of_its_fields() -> None:
    assert recipe_key({"a": 1, "b": 2}) == recipe_key({"b": 2, "a": 1})


def _make_in_process(log: Path) -> None:
    def make(folder: Path, final: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")

    cached("kind", {"shared": True}, make)


def test_two_processes_that_want_the_same_product_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_make_in_process, args=(log,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert log.read_text() == "made\n"


def test_sources_of_a_stable_suite_have_updates_and_security() -> None:
    mirror = Mirror("http://mirror.example/debian/", "http://mirror.example/debian-security/")

    text = sources(mirror, "trixie", Path("/keyring.gpg"))

    assert "Suites: trixie trixie-updates" in text
    assert "Suites: trixie-security" in text
    assert text.count("Signed-By: /keyring.gpg") == 2
    assert "security" not in sources(mirror, "sid", Path("/keyring.gpg"))


@pytest.mark.parametrize(
    ("version", "major"), [("262-1", 262), ("1:258~rc2-1", 258), ("257.13-1~deb13u1", 257), ("x", 0)]
)
def test_a_loaders_version_is_its_first_number(version: str, major: int) -> None:
    assert major_version(version) == major
