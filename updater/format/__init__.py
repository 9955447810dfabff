"""The release format: what a repository holds beside images, and how a node reads it (docs/release-format.md)."""
