"""Measurements side by side; run one with `python -m benchmarks.NAME`."""
