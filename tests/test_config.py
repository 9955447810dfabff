"""The node's configuration."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.config import Config, parse_config
from updater.errors import InvalidDocument


def test_an_empty_configuration_has_sane_defaults() -> None:
    assert parse_config([]) == Config()
    assert parse_config([("empty.yaml", b""), ("comment.yaml", b"# nothing\n")]) == Config()


def test_the_configuration_that_the_docs_show_is_one() -> None:
    text = (Path(__file__).parents[1] / "docs/operations.md").read_text()
    (shown,) = (block for block in text.split("```yaml\n")[1:] if block.startswith("mirrors:"))
    config = parse_config([("operations.md", shown.split("```")[0].encode())])
    assert len(config.mirrors) == 3
    assert config.network.headers == {"Authorization": "Bearer …"}
    assert config.network.rate_limit == 2_000_000


def test_the_operator_overrides_single_settings_of_the_vendor() -> None:
    vendor = ("vendor.yaml", b"channel: beta\nhealth: {hold_s: 90, deadline_s: 900}\n")
    operator = ("operator.yaml", b"health: {hold_s: 30}\nmirrors: ['https://one.example/acl']\n")
    config = parse_config([vendor, operator])
    assert (config.channel, config.health.hold_s, config.health.deadline_s) == ("beta", 30, 900)
    assert config.mirrors == ["https://one.example/acl"]


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("helth: {}", "", "'helth' is not known here"),
        ("health: {hold_s: -5}", "health.hold_s", ">= 0"),
        ("health: {hold_s: 600}", "health.hold_s", "can never do so"),
        ("health: {deadline_s: soon}", "health.deadline_s", "expected `float`"),
        ("mirrors: ['ftp://one.example/']", "mirrors[0]", "matching regex"),
        ("channel: UPPER", "channel", "matching regex"),
        ("reboot: maybe", "reboot", "invalid enum value"),
        ("[1, 2]", "", "expected `object`"),
        ("a: b: c", "line 1", "not YAML"),
        ("x: !!python/object/apply:os.system ['true']", "line 1", "could not determine a constructor"),
    ],
)
def test_an_error_names_the_file_that_has_it(text: str, key: str, why: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_config([("vendor.yaml", b"channel: beta\n"), ("operator.yaml", text.encode())])
    assert caught.value.source == "operator.yaml"
    assert caught.value.key == key
    assert why in caught.value.why


@given(st.binary(max_size=200))
def test_garbage_is_parsed_or_refused_with_our_own_error(raw: bytes) -> None:
    with contextlib.suppress(InvalidDocument):
        assert isinstance(parse_config([("garbage.yaml", raw)]), Config)
