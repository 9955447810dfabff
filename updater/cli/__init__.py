"""The command `acl-updater`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see docs/exit-codes.md)."""
    from updater.cli.arguments import parser
    from updater.errors import ExitCode, UpdaterError

    args = parser().parse_args(argv)
    from updater.cli.output import show_error, start_logging

    start_logging(args.verbose)
    try:
        from updater.cli.dispatch import dispatch

        return dispatch(args)
    except UpdaterError as error:
        return show_error(error, as_json=args.json)
    except KeyboardInterrupt:
        print("acl-updater: interrupted. The running release is untouched; the same command resumes.", file=sys.stderr)
        if argv is None:
            # A second Ctrl-C may have cut the clean-up short: no thread that waits for a mirror may hold the exit.
            sys.stdout.flush()
            os._exit(ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
