"""Where in a YAML file the key of an error stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from updater.errors import InvalidDocument

if TYPE_CHECKING:
    from yaml import Node


def placed(error: InvalidDocument, raw: bytes, source: str) -> InvalidDocument:
    """Return an error whose source is `file:line`, as editors jump to; unchanged where its key has no place."""
    line = line_of(raw, error.key, error.why)
    return error if line is None else InvalidDocument(f"{source}:{line}", error.key, error.why, error.mend)


def line_of(raw: bytes, key: str, why: str = "") -> int | None:
    """Return the line, from 1, of a dotted key such as `inject.armed[0].tamper`; of its nearest known parent else.

    A reason that names an unknown key of that mapping leads to that key's own line.
    """
    import yaml

    at_line = re.fullmatch(r"line (\d+)", key)
    if at_line:
        return int(at_line.group(1))
    try:
        node = yaml.compose(raw.decode("utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None
    if node is None:
        return None
    line = int(node.start_mark.line) + 1
    unknown = re.match(r"the key '([^']+)'", why)
    words = re.findall(r"[^.\[\]]+", key)
    for word in [*words, *([unknown.group(1)] if unknown else [])]:
        found = _below(node, word)
        if found is None:
            break
        node, line = found
    return line


def _below(node: Node, word: str) -> tuple[Node, int] | None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == word:
                return value, int(key.start_mark.line) + 1
    if isinstance(node, yaml.SequenceNode) and word.isdigit() and int(word) < len(node.value):
        item = node.value[int(word)]
        return item, int(item.start_mark.line) + 1
    return None
