"""Health checks as documents, and the two folders that they come from."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rollback.checks import Command, SystemdUnit, parse_health_file
from rollback.health_files import Origin, Source, load_checks, merge
from updater.errors import InvalidDocument

VENDOR_CHECKS = Path(__file__).parent.parent / "rollback" / "health.d"


def document(*checks: dict[str, Any], **more: Any) -> bytes:
    return yaml.safe_dump({"format": 1, "checks": list(checks), **more}).encode()


def tcp(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "tcp", "port": 80, **more}


def vendor(name: str, raw: bytes) -> Source:
    return Source(Origin.VENDOR, f"/usr/lib/acl-updater/health.d/{name}", raw)


def operator(name: str, raw: bytes) -> Source:
    return Source(Origin.OPERATOR, f"/etc/acl-updater/health.d/{name}", raw)


def names(sources: list[Source]) -> list[str]:
    return [item.check.name for item in merge(sources).placed]


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        (b"", "", "expected `object`"),
        (b"format: 2", "format", "invalid enum value 2"),
        (b"format: 1\nchecks: [{kind: tcp, port: 1}]", "checks[0]", "'name' is missing"),
        (b"format: 1\nchecks: [{name: a, port: 1}]", "checks[0]", "'kind' is missing"),
        (b"format: 1\nchecks: [{name: a, kind: ping}]", "checks[0].kind", "'ping'"),
        (b"format: 1\nchecks: [{name: a, kind: tcp, prt: 1}]", "checks[0]", "'prt' is not known"),
        (b"format: 1\nchecks: [{name: A b, kind: tcp, port: 1}]", "checks[0].name", "lower-case"),
        (b"format: 1\nchecks: [{name: a, kind: tcp, port: 70000}]", "checks[0].port", "1 to 65535"),
        (b"format: 1\nchecks: [{name: a, kind: tcp, port: 1, timeout_s: 0}]", "checks[0].timeout_s", "0.1 to 300"),
        (b"format: 1\nchecks: [{name: a, kind: tcp, port: 1, timeout_s: .inf}]", "checks[0].timeout_s", "0.1 to 300"),
        (b"format: 1\nchecks: [{name: a, kind: command, argv: []}]", "checks[0].argv", "1 to 64 words"),
        (b"format: 1\nchecks: [{name: a, kind: command, argv: ['']}]", "argv", "first word is empty"),
        (b"format: 1\nchecks: [{name: a, kind: systemd-unit, unit: containerd}]", "checks[0].unit", "full name"),
        (b"format: 1\nchecks: [{name: a, kind: file, path: etc}]", "checks[0].path", "absolute path"),
        (b"format: 1\nchecks: [{name: a, kind: http, url: 'ftp://x/'}]", "checks[0].url", "http"),
        (
            b"format: 1\nchecks: [{name: a, kind: http, url: 'https://x/', unix_socket: /run/x}]",
            "url",
            "plain HTTP",
        ),
        (document(tcp("a"), tcp("a")), "checks", "'a' stands twice"),
        (b"format: 1\nchecks: &x [*x]", "", "aliases"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_its_key_the_reason_and_a_mend(raw: bytes, key: str, words: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_health_file(raw, "/etc/acl-updater/health.d/x.yaml")
    assert caught.value.source == "/etc/acl-updater/health.d/x.yaml"
    assert caught.value.key == key
    assert words in str(caught.value)
    assert caught.value.mend


@given(st.binary(max_size=200) | st.text(alphabet=string.printable, max_size=200).map(str.encode))
def test_garbage_is_refused_or_read_and_never_crashes_the_parser(raw: bytes) -> None:
    """A file may be as short as `format: 1`, which is no garbage."""
    try:
        read = parse_health_file(raw, "x.yaml")
    except InvalidDocument as error:
        assert error.source == "x.yaml"  # noqa: PT017
    else:
        assert read.format == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from(["tcp", "command", "http", "file", "mount", "verity", "systemd-unit", "systemd-system"]),
    st.text(max_size=10),
)
def test_a_check_with_a_garbage_field_is_refused_or_read_and_never_crashes(value: Any, kind: str, key: str) -> None:
    raw = yaml.safe_dump({"format": 1, "checks": [{"name": "a", "kind": kind, key: value}]}).encode()
    try:
        read = parse_health_file(raw, "x.yaml")
    except InvalidDocument:
        return
    assert [check.kind for check in read.checks] == [kind]


def test_checks_come_in_the_order_of_folder_then_file_then_place() -> None:
    assert names(
        [operator("00.yaml", document(tcp("late"))), vendor("20.yaml", document(tcp("c"))),
         vendor("10.yaml", document(tcp("b"), tcp("a")))]
    ) == ["b", "a", "c", "late"]  # fmt: skip


def test_an_operators_file_takes_the_place_of_the_vendors_file_of_the_same_name() -> None:
    merged = merge([vendor("a.yaml", document(tcp("one"), tcp("two"))), operator("a.yaml", document(tcp("mine")))])
    assert [item.check.name for item in merged.placed] == ["mine"]
    assert merged.masked == ("/usr/lib/acl-updater/health.d/a.yaml",)
    assert merged.problems == ()


def test_enabled_false_masks_a_whole_file_or_one_check() -> None:
    masked = merge([vendor("a.yaml", document(tcp("one"))), operator("a.yaml", b"format: 1\nenabled: false\n")])
    assert masked.placed == ()
    assert masked.problems == ()
    partly = merge([vendor("a.yaml", document(tcp("one", enabled=False), tcp("two")))])
    assert [item.check.name for item in partly.placed] == ["two"]
    assert [item.check.name for item in partly.disabled] == ["one"]


@pytest.mark.parametrize("raw", [b"", b"format: 1\nchecks: [", b"\0" * 4096, b"format: 1\nchecks: [{name: one}]"])
def test_an_operators_file_that_a_power_cut_or_a_typo_spoiled_leaves_the_vendors_in_force(raw: bytes) -> None:
    merged = merge([vendor("a.yaml", document(tcp("one"))), operator("a.yaml", raw)])
    assert [item.check.name for item in merged.placed] == ["one"]
    assert [problem.name for problem in merged.problems] == ["operator-file/a.yaml"]
    assert merged.operator_problem() is not None


def test_an_operators_override_that_clashes_with_another_file_leaves_the_vendors_in_force() -> None:
    merged = merge(
        [
            vendor("a.yaml", document(tcp("one"))),
            vendor("b.yaml", document(tcp("two"))),
            operator("a.yaml", document(tcp("two"))),
        ]
    )
    assert sorted(item.check.name for item in merged.placed) == ["one", "two"]
    problem = merged.operator_problem()
    assert problem is not None
    assert "already defined by /usr/lib/acl-updater/health.d/b.yaml" in str(problem)


def test_an_invalid_vendor_file_is_the_images_fault() -> None:
    merged = merge([vendor("a.yaml", b"format: 9"), vendor("b.yaml", document(tcp("two")))])
    assert [(problem.origin, problem.name) for problem in merged.problems] == [(Origin.VENDOR, "vendor-file/a.yaml")]
    assert merged.operator_problem() is None


def test_an_image_without_any_check_has_a_problem_even_when_the_operator_brings_some() -> None:
    merged = merge([operator("a.yaml", document(tcp("one")))])
    assert [problem.origin for problem in merged.problems] == [Origin.VENDOR]


def test_an_operator_may_switch_off_everything_the_vendor_brings() -> None:
    assert merge([vendor("a.yaml", document(tcp("one"))), operator("a.yaml", b"{format: 1}")]).problems == ()


def test_folders_that_are_absent_hold_nothing_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.yaml").write_bytes(document(tcp("one")))
    (tmp_path / "v" / "a.yaml~").write_bytes(b"garbage")
    merged = load_checks(tmp_path / "v", tmp_path / "absent")
    assert [item.check.name for item in merged.placed] == ["one"]
    assert merged.problems == ()


def test_a_file_that_is_no_file_is_a_problem_and_never_hangs_the_reader(tmp_path: Path) -> None:
    import os

    vendor_folder, operator_folder = tmp_path / "v", tmp_path / "o"
    vendor_folder.mkdir()
    operator_folder.mkdir()
    (vendor_folder / "a.yaml").write_bytes(document(tcp("one")))
    os.mkfifo(operator_folder / "fifo.yaml")
    (operator_folder / "null.yaml").symlink_to("/dev/null")
    (operator_folder / "gone.yaml").symlink_to(tmp_path / "nowhere")
    (operator_folder / "huge.yaml").write_bytes(b"#" * (1 << 19))
    merged = load_checks(vendor_folder, operator_folder)
    assert [item.check.name for item in merged.placed] == ["one"]
    assert sorted(problem.name for problem in merged.problems) == [
        "operator-file/fifo.yaml",
        "operator-file/gone.yaml",
        "operator-file/huge.yaml",
        "operator-file/null.yaml",
    ]


def test_checks_for_trials_only_are_left_out_elsewhere() -> None:
    merged = merge([vendor("a.yaml", document(tcp("one"), tcp("two", when="trial")))])
    assert [check.name for check in merged.of("trial")] == ["one", "two"]
    assert [check.name for check in merged.of("always")] == ["one"]


def test_the_checks_that_come_with_the_updater_are_valid_and_guard_the_container_runtime() -> None:
    merged = load_checks(VENDOR_CHECKS, VENDOR_CHECKS / "absent")
    assert merged.problems == ()
    checks = {item.check.name: item.check for item in merged.placed}
    assert {"system-state", "containerd", "containerd-answers", "state-mount", "verity-root"} <= set(checks)
    unit, talk = checks["containerd"], checks["containerd-answers"]
    assert isinstance(unit, SystemdUnit)
    assert isinstance(talk, Command)
    assert unit.required
    assert talk.required
    assert "kubelet-healthz" in {item.check.name for item in merged.disabled}
