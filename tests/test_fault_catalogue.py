"""The catalogue of faults: every file is sound, every stage is there, and each becomes a scenario that can be run."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.lab.catalogue import (
    STAGES,
    chosen_faults,
    compose,
    find_faults,
    given_to_guest,
    load_fault,
    parse_fault,
)
from integration.lab.scenario import Scenario, parse_scenario
from rollback.checks import parse_health_file
from updater.errors import InvalidDocument, UpdaterError
from updater.schema import encode_json

FILES = find_faults()
HOOKS = Path(__file__).parent.parent / "integration" / "images" / "lab"
HEAD = "name: good\nstage: loader\nwhy: Because.\n"
FULL = HEAD + "inject: {hook: panic}\nexpect: {ends: back}\n"


def refusal(text: str) -> InvalidDocument:
    with pytest.raises(InvalidDocument) as caught:
        parse_fault(text.encode(), "good.yaml")
    return caught.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_fault_is_sound_and_becomes_a_scenario(path: Path) -> None:
    fault = load_fault(path)
    scenario = compose(fault)
    again = parse_scenario(encode_json(scenario), path.name)
    assert again == scenario
    assert any(step.expect is not None for step in scenario.steps)
    assert fault.why.endswith(".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_script_of_a_fault_is_shell(path: Path) -> None:
    for text in load_fault(path).inject.scripts.values():
        done = subprocess.run(["sh", "-n"], input=text.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


def test_there_are_sixty_faults_and_more_and_each_stage_has_some() -> None:
    counts: Counter[str] = Counter(load_fault(path).stage for path in FILES)
    assert sum(counts.values()) >= 60
    assert all(counts[stage] >= 2 for stage in STAGES), counts


def test_every_hook_that_a_fault_names_is_in_the_image() -> None:
    there = {path.name.removesuffix(".early") for path in HOOKS.glob("*/usr/lib/acl-lab/faults/*")}
    wanted = {hook for path in FILES if (hook := load_fault(path).inject.hook) is not None}
    assert wanted <= there


def test_no_two_faults_say_the_same() -> None:
    whys = Counter(load_fault(path).why for path in FILES)
    assert [why for why, count in whys.items() if count > 1] == []


def test_the_standard_scenario_ends_with_the_next_update() -> None:
    scenario = compose(parse_fault(FULL.encode(), "good.yaml"))
    assert [step.kind for step in scenario.steps] == ["offline", "fault", "boot", "expect", "update_to", "expect"]
    assert scenario.releases == {1, 2, 3}
    # What the fault did not say is what a healthy node shows.
    expected = scenario.steps[3].expect
    assert expected is not None
    assert (expected.slot, expected.release, expected.unchanged) == ("a", 1, ["a"])


def test_a_short_scenario_arms_the_next_update_and_boots_no_more() -> None:
    scenario = compose(parse_fault(FULL.encode(), "good.yaml"), short=True)
    assert [step.kind for step in scenario.steps[4:]] == ["power", "offline", "expect"]


def test_a_fault_that_ends_before_the_reboot_needs_no_boot() -> None:
    text = HEAD + "inject: {before: [{serve: {kind: refuse}}]}\nexpect: {ends: refused, exit: 7}\n"
    fault = parse_fault(text.encode(), "good.yaml")
    assert not fault.needs_boots
    kinds = {step.kind for step in compose(fault).steps}
    assert kinds == {"serve", "offline", "expect"}


def test_scripts_reach_the_guest_as_credentials() -> None:
    text = HEAD + "inject: {script: exit 1, initrd_early: ls}\nexpect: {ends: back}\n"
    scenario = compose(parse_fault(text.encode(), "good.yaml"))
    given_fault = next(step.fault for step in scenario.steps if step.fault is not None)
    assert given_fault.credentials == {"acl.lab.root.good": "exit 1", "acl.lab.initrd-early.good": "ls"}


def test_checks_of_a_fault_are_laid_over_the_operators_in_that_release_alone(tmp_path: Path) -> None:
    text = HEAD + "inject: {checks: [{name: api, kind: tcp, port: 6443}]}\nexpect: {ends: back}\n"
    early = parse_fault(text.encode(), "good.yaml").inject.scripts["early"]
    script = early.replace("/run/acl-lab", str(tmp_path / "run"))
    subprocess.run(["sh", "-eu", "-c", script, "sh", str(tmp_path / "units")], check=True)
    [check] = parse_health_file((tmp_path / "run" / "checks.yaml").read_bytes(), "checks.yaml").checks
    assert (check.name, check.kind) == ("api", "tcp")
    drop_in = (tmp_path / "units" / "acl-updater-health.service.d" / "80-acl-lab.conf").read_text()
    assert drop_in.startswith("[Service]\nExecStartPre=")
    assert "mount -t tmpfs" in drop_in


def test_a_misspelt_key_is_named_with_its_line() -> None:
    error = refusal(HEAD + "inject:\n  hook: panic\nexpect:\n  ends: back\n  quarantined: [2]\n")
    assert error.source == "good.yaml:8"
    assert "quarantined" in error.why


def test_a_wrong_value_deep_inside_is_found_by_its_line() -> None:
    error = refusal(
        HEAD + "inject:\n  armed:\n    - power: cut\n    - tamper:\n        file: EFI/acl/b.efi\nexpect: {ends: back}\n"
    )
    assert error.source == "good.yaml:8"
    assert "one change" in error.why
    assert "truncate_bytes" in error.mend


def test_an_unknown_stage_is_refused_with_what_is_allowed() -> None:
    error = refusal(FULL.replace("stage: loader", "stage: moon"))
    assert error.source == "good.yaml:2"


@pytest.mark.parametrize(
    ("inject", "words"),
    [
        ("{}", "nothing is injected"),
        ("{hook: panic, script: exit 1}", "scripts, too"),
        ("{story: [{power: cut}], armed: [{power: cut}]}", "outside it"),
    ],
)
def test_an_injection_that_cannot_be_is_refused(inject: str, words: str) -> None:
    assert words in refusal(HEAD + f"inject: {inject}\nexpect: {{ends: back}}\n").why


def test_a_refusal_needs_its_exit_code_and_nothing_else_has_one() -> None:
    assert "exit code" in refusal(HEAD + "inject: {update: check}\nexpect: {ends: refused}\n").why
    story = "inject: {story: [{offline: {run: check}}]}\n"
    for text in (
        "inject: {hook: panic}\nexpect: {ends: back, exit: 7}\n",
        story + "expect: {ends: refused, exit: 7}\n",
    ):
        assert "no command is refused here" in refusal(HEAD + text).why
    parse_fault((HEAD + story + "expect: {ends: refused}\n").encode(), "good.yaml")


def test_a_fault_bears_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(FULL)
    with pytest.raises(InvalidDocument, match="name: other"):
        load_fault(path)


def test_faults_are_chosen_by_name_glob_stage_and_file(tmp_path: Path) -> None:
    own = tmp_path / "good.yaml"
    own.write_text(FULL)
    assert [fault.name for fault in chosen_faults([str(own)])] == ["good"]
    assert {fault.stage for fault in chosen_faults([], stages=["verity"])} == {"verity"}
    assert all(fault.name.startswith("verity-") for fault in chosen_faults(["verity-*"]))
    with pytest.raises(UpdaterError, match="acl-lab faults"):
        chosen_faults(["no-such-fault"])


def test_a_scenario_of_a_fault_is_a_document_like_any_other() -> None:
    scenario = compose(load_fault(FILES[0]))
    assert msgspec.convert(msgspec.to_builtins(scenario), Scenario) == scenario


@given(st.binary(max_size=400))
def test_garbage_is_refused_and_never_crashes(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_fault(raw, "garbage.yaml")


def test_the_table_of_failure_modes_has_every_fault() -> None:
    table = (Path(__file__).parent.parent / "docs" / "failure-modes.md").read_text()
    assert [path.stem for path in FILES if f"| `{path.stem}` |" not in table] == []


def test_a_guest_is_given_hooks_and_faults_of_the_catalogue_by_name() -> None:
    given_now = given_to_guest(["1:panic", "2:userspace-clock-jump", "2:hang-userspace"], lambda n: f"{n}.0.0")
    assert given_now.kernel_parameters == (
        "acl.lab.fault=1.0.0:panic",
        "acl.lab.fault=2.0.0:userspace-clock-jump",
        "acl.lab.fault=2.0.0:hang",
    )
    assert list(given_now.credentials) == ["acl.lab.root.userspace-clock-jump"]


@pytest.mark.parametrize("word", ["panic", ":panic", "1:", "1:server-gzip"])
def test_a_guest_is_given_nothing_else(word: str) -> None:
    with pytest.raises(UpdaterError):
        given_to_guest([word], str)
