"""Whole numbers that follow one another, told by their ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in words: `0 to 4, 100 to 102`."""
    parts = successive(numbers)
    return ", ".join(f"{p.start} to {p.stop - 1}" if len(p) > 1 else f"{p.start}" for p in parts)


def successive(numbers: Iterable[int]) -> Iterator[range]:
    """Whole numbers as ranges without a gap, ascending."""
    there = set(numbers)
    for number in sorted(there):
        if number - 1 not in there:
            stop = next(n for n in count(number) if n not in there)
            yield range(number, stop)
