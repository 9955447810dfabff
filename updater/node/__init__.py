"""The machine that is updated: a live one, or a disk image in a file."""
