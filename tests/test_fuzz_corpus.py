"""What the fuzzer has found, and the inputs that it starts from, given to every parser again."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.parsers import PARSERS, survives


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_raises_nothing_but_errors_that_help(name: str) -> None:
    parser = PARSERS[name]
    inputs = [*parser.seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
    for data in inputs:
        survives(parser, data)
        for cut in (len(data) // 2, len(data) - 1):
            survives(parser, data[: max(0, cut)])
            survives(parser, data[:cut] + b"\xff" + data[cut + 1 :])


@pytest.mark.parametrize("name", PARSERS)
def test_each_seed_is_accepted_so_that_mutations_start_deep(name: str) -> None:
    seeds = PARSERS[name].seeds()
    assert seeds
    for seed in seeds:
        PARSERS[name].parse(seed)
