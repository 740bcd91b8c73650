"""Measurements: `python -m benchmarks`. A package of this name in site-packages would hide it
if it were none."""
