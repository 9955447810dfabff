"""A/B updates for immutable container hosts."""

__version__ = "0.1.0"
