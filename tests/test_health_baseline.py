"""The baseline: what was broken before the update."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rollback.baseline import capture, failing_names, pstore_names, sentence
from rollback.health_files import CheckSet, load_checks
from rollback.probes import Prober
from rollback.rounds import Rounds, problem_results
from rollback.verdict import blame
from updater.errors import InvalidDocument


def checks_in(folder: Path, checks: list[dict[str, Any]], operator: bytes | None = None) -> CheckSet:
    vendor_folder, operator_folder = folder / "vendor", folder / "operator"
    vendor_folder.mkdir(exist_ok=True)
    operator_folder.mkdir(exist_ok=True)
    (vendor_folder / "a.yaml").write_text(yaml.safe_dump({"format": 1, "checks": checks}))
    if operator is not None:
        (operator_folder / "o.yaml").write_bytes(operator)
    return load_checks(vendor_folder, operator_folder)


def exists(name: str, path: Path, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "file", "path": str(path), **more}


def test_what_fails_in_every_round_is_in_the_baseline(tmp_path: Path) -> None:
    checks = checks_in(tmp_path, [exists("here", tmp_path), exists("gone", tmp_path / "x")])
    baseline = capture(checks, Prober(), pause=lambda: None)
    assert failing_names(baseline) == {"gone"}
    assert "gone" in sentence(baseline)


def test_a_failure_that_passes_does_not_excuse_the_new_release(tmp_path: Path) -> None:
    checks = checks_in(tmp_path, [exists("late", tmp_path / "late"), exists("gone", tmp_path / "x")])
    baseline = capture(checks, Prober(), pause=(tmp_path / "late").touch)
    assert failing_names(baseline) == {"gone"}


def test_a_healthy_node_is_not_asked_twice(tmp_path: Path) -> None:
    def never() -> None:
        raise AssertionError("nothing failed")

    baseline = capture(checks_in(tmp_path, [exists("here", tmp_path)]), Prober(), pause=never)
    assert failing_names(baseline) == frozenset()
    assert sentence(baseline) == "every required check passes on the running release"


def test_checks_that_only_inform_and_operators_problems_are_not_in_the_baseline(tmp_path: Path) -> None:
    checks = checks_in(tmp_path, [exists("gone", tmp_path / "x", required=False)])
    assert failing_names(capture(checks, Prober(), pause=lambda: None)) == frozenset()


def test_nothing_is_captured_while_an_operators_file_cannot_be_read(tmp_path: Path) -> None:
    checks = checks_in(tmp_path, [exists("here", tmp_path)], operator=b"checks: [")
    with pytest.raises(InvalidDocument, match=r"o\.yaml"):
        capture(checks, Prober(), pause=lambda: None)


def test_a_vendors_broken_file_blames_the_image_and_an_operators_only_informs(tmp_path: Path) -> None:
    checks = checks_in(tmp_path, [exists("here", tmp_path)], operator=b"")
    (tmp_path / "vendor" / "b.yaml").write_bytes(b"format: 7")
    results = problem_results(load_checks(tmp_path / "vendor", tmp_path / "operator"))
    assert [(result.name, result.required) for result in results] == [
        ("vendor-file/b.yaml", True),
        ("operator-file/o.yaml", False),
    ]
    assert [result.name for result in blame(results, frozenset())] == ["vendor-file/b.yaml"]
    assert [result.name for result in problem_results(checks)] == ["operator-file/o.yaml"]


def test_a_baseline_survives_its_journey_through_a_journal(tmp_path: Path) -> None:
    checks = checks_in(tmp_path, [exists("gone", tmp_path / "x")])
    baseline = capture(checks, Prober(), pause=lambda: None, pstore_names=("dmesg-2", "dmesg-1"))
    again = msgspec.json.decode(msgspec.json.encode(baseline))
    assert again == baseline
    assert failing_names(again) == {"gone"}
    assert pstore_names(again) == frozenset({"dmesg-1", "dmesg-2"})


@given(
    st.none()
    | st.dictionaries(
        st.sampled_from(["failing", "pstore", "format"]),
        st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()),
    )
)
def test_a_baseline_that_cannot_be_understood_excuses_nothing_and_never_crashes(baseline: Mapping[str, Any]) -> None:
    for name in failing_names(baseline):
        assert name in baseline["failing"]
    pstore_names(baseline)


def test_a_check_with_an_interval_of_its_own_is_spared_while_it_passes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"echo run >> {log}; [ ! -e {tmp_path}/broken ]"
    costly = {"name": "costly", "kind": "command", "argv": ["sh", "-c", script], "interval_s": 60}
    rounds = Rounds(checks_in(tmp_path, [costly]), Prober(), "always")

    def runs_after_look_at(now_s: float, *, fresh: bool = False) -> int:
        assert rounds.look(lambda: now_s, lambda: True, fresh=fresh) is not None
        return len(log.read_text().splitlines())

    assert runs_after_look_at(0) == 1
    assert runs_after_look_at(59) == 1
    assert runs_after_look_at(60) == 2
    assert runs_after_look_at(61, fresh=True) == 3
    (tmp_path / "broken").touch()
    assert runs_after_look_at(121) == 4
    # A failing check is looked at in every round, so that its recovery is seen at once.
    assert runs_after_look_at(122) == 5
    # A clock that was set back spares nothing.
    (tmp_path / "broken").unlink()
    assert runs_after_look_at(130) == 6
    assert runs_after_look_at(100) == 7
