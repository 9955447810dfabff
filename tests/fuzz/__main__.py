"""Fuzzes parsers under coverage: `python -m tests.fuzz manifest gpt --seconds 600` (extra `fuzz`).

Inputs that reach new code are kept in `tests/fuzz/corpus`, and the fast tests parse all of them again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.parsers import PARSERS, survives

CORPUS = Path(__file__).with_name("corpus")


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz each named parser in a process of its own; return 1 when one of them crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parsers", nargs="*", help=f"of {', '.join(PARSERS)} (default: all)", metavar="PARSER")
    parser.add_argument("--seconds", type=int, default=600, help="for each parser (default: %(default)s)")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    names = arguments.parsers or list(PARSERS)
    for unknown in set(names) - set(PARSERS):
        parser.error(f"no parser {unknown!r}: choose of {', '.join(PARSERS)}")
    if arguments.in_process:
        return _fuzz(names[0], arguments.seconds)
    crashed = []
    for name in names:
        print(f"fuzzing {name} for {arguments.seconds} s", flush=True)
        words = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(arguments.seconds), "--in-process"]
        if subprocess.run(words, check=False).returncode:
            crashed.append(name)
    print(f"crashed: {', '.join(crashed)}" if crashed else "nothing crashed")
    return 1 if crashed else 0


def _fuzz(name: str, seconds: int) -> int:
    try:
        import atheris
    except ImportError:
        print("the fuzzer is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    under_attack = PARSERS[name]
    home = CORPUS / name
    home.mkdir(parents=True, exist_ok=True)
    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as seeds:
        for number, seed in enumerate(under_attack.seeds()):
            (Path(seeds) / f"seed-{number}").write_bytes(seed)
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds}",
                f"-max_len={under_attack.longest_bytes}",
                "-timeout=20",
                "-rss_limit_mb=1024",
                "-reduce_inputs=1",
                "-print_final_stats=1",
                f"-artifact_prefix={home}/crash-",
                str(home),
                seeds,
            ],
            lambda data: survives(under_attack, data),
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
