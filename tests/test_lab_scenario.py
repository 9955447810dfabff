"""Scenario documents: what is refused, and that every shipped one is sound."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.lab.scenario import find_scenarios, load_scenario, parse_scenario
from integration.lab.terms import Condition
from updater.errors import InvalidDocument

HEAD = "name: good\nsummary: A scenario.\nsteps:\n"


def refusal(text: str) -> InvalidDocument:
    with pytest.raises(InvalidDocument) as caught:
        parse_scenario(text.encode(), "good.yaml")
    return caught.value


@pytest.mark.parametrize("path", find_scenarios(), ids=lambda path: path.stem)
def test_every_shipped_scenario_is_sound_and_expects_something(path: Path) -> None:
    scenario = load_scenario(path)
    assert any(step.expect is not None for step in scenario.steps)


def test_a_condition_with_two_keys_is_refused_by_place() -> None:
    error = refusal(HEAD + "- boot: {until: {committed: 2, boots: 1}}\n")
    assert "steps[0].boot.until" in error.key
    assert "committed, boots" in error.why


def test_a_step_without_a_key_is_refused() -> None:
    assert "steps[0]" in refusal(HEAD + "- note: nothing\n").key


def test_a_misspelt_key_is_named() -> None:
    error = refusal(HEAD + "- boot: {until: {comitted: 2}}\n")
    assert "comitted" in error.why
    assert error.mend


def test_an_error_names_its_line_as_editors_jump_to_it() -> None:
    error = refusal(HEAD + "- power: cut\n- expect:\n    slot: a\n    quarantined: [2]\n")
    assert error.source == "good.yaml:7"


def test_an_unknown_outcome_is_refused() -> None:
    assert "outcome" in refusal(HEAD + "- expect: {boots: [{outcome: exploded}]}\n").key


def test_a_broken_pattern_is_refused() -> None:
    assert "not a regular expression" in refusal(HEAD + "- expect: {says: '('}\n").why


def test_tampering_needs_one_object_and_one_change() -> None:
    assert "one change" in refusal(HEAD + "- tamper: {slot: b}\n").why
    assert "one change" in refusal(HEAD + "- tamper: {slot: b, block: 1, copy_of: a}\n").why
    assert "one change" in refusal(HEAD + "- tamper: {file: EFI/acl/b.efi}\n").why
    assert "one object" in refusal(HEAD + "- tamper: {slot: b, block: 1, file: EFI/acl/b.efi}\n").why


def test_a_scenario_knows_which_releases_it_needs() -> None:
    steps = "- fault: {release: 2, name: panic}\n- update_to: 4\n- expect: {quarantine: [], boots: [{release: 3}]}\n"
    scenario = parse_scenario((HEAD + steps).encode(), "good.yaml")
    assert scenario.releases == {1, 2, 3, 4}


def test_a_scenario_bears_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(HEAD + "- power: cut\n")
    with pytest.raises(InvalidDocument, match=r"name: other"):
        load_scenario(path)


def test_a_condition_reads_as_words() -> None:
    assert str(Condition(committed=2)) == "committed 2"


@given(st.binary(max_size=400))
def test_garbage_is_refused_and_never_crashes(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_scenario(raw, "garbage.yaml")
