"""`python -m integration.images`: fetch and build, once, what every machine of the lab boots from."""

from __future__ import annotations

import logging
import sys
import time

from integration.images.reference import prepare
from updater.errors import ExitCode, UpdaterError


def main() -> int:
    """Prepare the tool tree and the reference image's base; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    began = time.monotonic()
    try:
        prepare()
    except UpdaterError as error:
        print(f"setup-lab: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("setup-lab: interrupted; run it again, it goes on from what is cached", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    print(f"The lab's images are ready ({time.monotonic() - began:.0f} s).", file=sys.stderr)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main())
