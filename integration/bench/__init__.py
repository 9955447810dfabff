"""Benchmarks of the data path against the updaters and delta tools that there are, in one run on one machine."""
