"""`python -m integration.lab`: the command `acl-lab` where it is not installed, such as on a node."""

from __future__ import annotations

import sys

from integration.lab.cli import main

sys.exit(main())
