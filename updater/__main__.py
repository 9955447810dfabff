"""`python -m updater` is `acl-updater`."""

import sys

from updater.cli import main

sys.exit(main())
