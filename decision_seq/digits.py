"""How many decimals a number deserves."""

from __future__ import annotations

import math
from collections.abc import Iterable


def decimals(values: Iterable[float], least: int = 1) -> int:
    """Decimals that give the largest of `values` three digits: 1 for numbers in the tens, 2 from 1
    to 10, 3 below 1; never fewer than `least`."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return max(least, 2 - math.floor(math.log10(largest))) if largest else least
