"""Manifests are signed, and still parsed as hostile input."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import MANIFEST, changed
from updater.errors import InvalidDocument
from updater.manifest import Channel, Manifest, Withdrawn, parse_manifest, tree_length_bytes
from updater.run import find_tool
from updater.schema import MAX_DOCUMENT_BYTES, decode_json


def parsed(document: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(document).encode(), "manifests/2.0.0.json")


def test_a_manifest_tells_its_release() -> None:
    manifest = parsed(MANIFEST)
    assert manifest.version == "2.0.0"
    assert manifest.root.root_hash == "ab" * 32
    assert [addon.name for addon in manifest.addons] == ["fips.addon.efi"]


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("format", 2, "invalid enum value"),
        ("version", "../../etc/passwd", "matching regex"),
        ("version", "2.0.0\n", "matching regex"),
        ("image_id", "A B", "matching regex"),
        ("architecture", "vax", "invalid enum value"),
        ("layouts", [], "length >= 1"),
        ("built", "yesterday", "matching regex"),
        ("security_epoch", -1, ">= 0"),
        ("security_epoch", 1.5, "expected `int`"),
        ("root.length_bytes", 4097, "not a multiple of 4096"),
        ("root.length_bytes", 1 << 62, "<= "),
        ("root.length_bytes", 4096 * 500, "does not fit 500 data blocks"),
        ("root.tree_length_bytes", 0, ">= 1"),
        ("root.root_hash", "AB" * 32, "matching regex"),
        ("root.salt", "abc", "matching regex"),
        ("root.uuid", "x", "matching regex"),
        ("uki.sha256", "ef" * 31, "matching regex"),
        ("uki.length_bytes", 1 << 40, "<= "),
        ("addons", [{"name": "../x.addon.efi", "length_bytes": 1, "sha256": "12" * 32}], "matching regex"),
        ("addons", [{"name": "a.addon.efi", "length_bytes": 1, "sha256": "12" * 32}] * 2, "same name"),
        ("addons", [{"name": "a.addon.efi", "length_bytes": 1, "sha256": "12" * 32, "slot": "b"}], "only one slot"),
        ("addons", [{"name": "a.addon.efi", "length_bytes": 1, "sha256": "12" * 32, "slot": "c"}], "invalid enum"),
        ("surprise", 1, "is not known here"),
    ],
)
def test_a_hostile_value_is_refused_with_key_and_mend(path: str, value: Any, why: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parsed(changed(MANIFEST, path, value) if path != "surprise" else {**MANIFEST, path: value})
    assert why in caught.value.why
    assert caught.value.source == "manifests/2.0.0.json"
    assert caught.value.mend
    if path != "surprise":
        assert caught.value.key.startswith(path.split(".")[0])


@pytest.mark.parametrize("key", ["version", "root", "uki", "built"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(InvalidDocument, match=f"'{key}' is missing"):
        parsed({name: value for name, value in MANIFEST.items() if name != key})


def test_an_oversized_document_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidDocument, match="more than a document may have"):
        parse_manifest(b" " * (MAX_DOCUMENT_BYTES + 1), "x")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidDocument):
        parse_manifest(b"[" * 100_000, "x")


@given(st.binary(max_size=400))
def test_garbage_is_refused_with_our_own_error(raw: bytes) -> None:
    for kind in (Manifest, Channel, Withdrawn):
        with pytest.raises(InvalidDocument):
            decode_json(raw, kind, "garbage")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(sorted(MANIFEST)), values)
def test_any_value_in_any_key_is_parsed_or_refused(key: str, value: Any) -> None:
    try:
        manifest = parsed({**MANIFEST, key: value})
    except InvalidDocument:
        return
    assert isinstance(manifest, Manifest)


@settings(deadline=None, max_examples=8)
@given(blocks=st.integers(1, 40_000))
def test_the_tree_is_as_long_as_veritysetup_makes_it(tmp_path_factory: pytest.TempPathFactory, blocks: int) -> None:
    folder: Path = tmp_path_factory.mktemp("tree")
    data, tree = folder / "data", folder / "tree"
    with data.open("wb") as file:
        file.truncate(blocks * 4096)
    tree.touch()
    subprocess.run([find_tool("veritysetup"), "format", data, tree], check=True, capture_output=True)
    assert tree.stat().st_size - 4096 == tree_length_bytes(blocks)
