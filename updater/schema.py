"""Documents from hostile bytes to frozen typed values.

A document is a frozen msgspec Struct that forbids unknown fields (state files, which must keep the fields of newer
versions, are handled in `updater.records`). Its field types carry the limits; `Annotated[T, Meta(..., extra=
{"mend": "..."})]` carries what to do about a bad value. JSON Schemas for editors come from the same types.
"""

from __future__ import annotations

import re
import typing
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from updater.errors import InvalidDocument
from updater.versions import PATTERN as VERSION_PATTERN

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 1 << 20
_GENERIC_MEND = "correct the value; the schema is in docs/schemas/"


def limited(mend: str, **limits: Any) -> Meta:
    """Return msgspec limits that also carry a mend for the error text."""
    return Meta(**limits, extra={"mend": mend})


Sha256Hex = Annotated[str, limited("write 64 lower-case hex digits", pattern=r"^[0-9a-f]{64}$(?!\n)")]
HexBytes = Annotated[str, limited("write pairs of lower-case hex digits", pattern=r"^([0-9a-f]{2}){0,256}$(?!\n)")]
Name = Annotated[
    str,
    limited(
        "use 1 to 64 lower-case letters, digits, '.', '_' or '-', beginning with a letter or digit",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$(?!\n)",
    ),
]
VersionText = Annotated[
    str, limited("write a release version such as 202606.29.0", pattern=VERSION_PATTERN, max_length=64)
]
UuidText = Annotated[
    str,
    limited(
        "write a UUID in lower case",
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)",
    ),
]
UtcText = Annotated[
    str,
    limited(
        "write a time in UTC such as 2026-11-20T05:00:00Z",
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$(?!\n)",
    ),
]
# 64 TiB: above any root image, and far enough below 2**63 that sums of lengths cannot overflow anything.
LengthBytes = Annotated[int, limited("write a number of bytes from 1 to 64 TiB", ge=1, le=1 << 46)]


def decode_json(raw: bytes, kind: type[T], source: str) -> T:
    """Parse JSON bytes into `kind`; raise InvalidDocument naming source, key, reason and mend."""
    _refuse_oversize(raw, source)
    try:
        untyped = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidDocument(source, "", f"not JSON: {error}", "write the document anew") from error
    return convert(untyped, kind, source)


def decode_yaml(raw: bytes, kind: type[T], source: str) -> T:
    """Parse YAML bytes (safe subset, no anchors bombs) into `kind`; raise InvalidDocument."""
    return convert(load_yaml(raw, source), kind, source)


def load_yaml(raw: bytes, source: str) -> Any:
    """Parse YAML bytes with the safe loader, refusing aliases and duplicate keys; raise InvalidDocument."""
    import yaml

    _refuse_oversize(raw, source)

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            # An alias lets a few hundred bytes stand for gigabytes ("billion laughs").
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"the key {key!r} stands twice")
            return super().construct_mapping(node, deep)

    # Timestamps stay text: their form is each field's to judge.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(raw.decode("utf-8"), Loader)  # noqa: S506 - a SafeLoader with less
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        key = f"line {line + 1}" if line is not None else ""
        why = getattr(error, "problem", None) or str(error)
        raise InvalidDocument(source, key, f"not YAML: {why}", "mend the syntax") from error


def convert(untyped: Any, kind: type[T], source: str) -> T:
    """Turn parsed JSON or YAML into `kind`; raise InvalidDocument naming source, key, reason and mend."""
    try:
        return msgspec.convert(untyped, kind, strict=True)
    except InvalidDocument as error:
        raise InvalidDocument(source, error.key, error.why, error.mend) from error
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        message, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        cause = error.__cause__
        if isinstance(cause, InvalidDocument):
            key = ".".join(part for part in (path, cause.key) if part)
            raise InvalidDocument(source, key, cause.why, cause.mend) from error
        raise InvalidDocument(source, path, _plain(message), _mend_for(kind, path, message)) from error


def encode_json(value: Any) -> bytes:
    """Return `value` as stable, readable JSON: sorted keys, two spaces, a final newline."""
    raw = msgspec.json.encode(value, order="sorted")
    return msgspec.json.format(raw, indent=2) + b"\n"


def json_schema(kind: type[Any]) -> bytes:
    """Return the JSON Schema (2020-12) of a document type, for editors."""
    return encode_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)})


def _refuse_oversize(raw: bytes, source: str) -> None:
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise InvalidDocument(
            source,
            "",
            f"{len(raw)} bytes are more than a document may have",
            f"keep it below {MAX_DOCUMENT_BYTES}",
        )


def _plain(message: str) -> str:
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL)
    if unknown:
        return f"the key {unknown.group(1)!r} is not known here"
    missing = re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL)
    if missing:
        return f"the key {missing.group(1)!r} is missing"
    return message[:1].lower() + message[1:]


def _mend_for(kind: Any, path: str, message: str) -> str:
    if message.startswith("Object contains unknown field"):
        return "remove it, or mend its spelling"
    if message.startswith("Object missing required field"):
        return "add it"
    for part in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        kind = _descend(kind, part)
        if kind is None:
            return _GENERIC_MEND
    return _mend_of(kind) or _GENERIC_MEND


def _mend_of(kind: Any) -> str:
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.extra and "mend" in meta.extra:
            return str(meta.extra["mend"])
    for option in typing.get_args(kind):
        found = _mend_of(option) if hasattr(option, "__metadata__") else ""
        if found:
            return found
    return ""


def _descend(kind: Any, part: str) -> Any:
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    arguments = typing.get_args(kind)
    if part.startswith("["):
        return (
            arguments[-1 if part == "[...]" and len(arguments) == 2 and arguments[1] is not ... else 0]
            if (arguments)
            else None
        )
    candidates = [kind, *arguments]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            hints = typing.get_type_hints(candidate, include_extras=True)
            for field in msgspec.structs.fields(candidate):
                if part == field.encode_name:
                    return hints.get(field.name)
    return None
