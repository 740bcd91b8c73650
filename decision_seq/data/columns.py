"""What single columns of numbers hold: which never change, and what float32 does not keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from decision_seq.data.findings import Finding
from decision_seq.spaces.table import VECTOR, from_json
from decision_seq.spans import spans

LEAST_DEVIATION = 1e-6  # below it a column counts as constant, and nothing is divided by it
ROUNDING = 2.0**-22  # of a value: four times what rounding to float32 deviates by at most
EXACT = tuple(np.dtype(t) for t in ("b1", "i1", "u1", "i2", "u2", "f2", "f4"))  # within float32
SAMPLE = 100_000  # rows of a column that are looked at
NOTICEABLE = 0.01  # of a column's deviation, as an error of rounding
NOISE = 2.0**-26  # of a value: what float64 numbers deviate by for no reason
SHOWN = 3  # columns that a finding names


def magnitude(values: np.ndarray) -> np.ndarray:
    """[S] largest absolute value of each column of [N, S]."""
    low, high = values.min(axis=0), values.max(axis=0)
    return np.maximum(np.abs(high.astype(np.float64)), np.abs(low.astype(np.float64)))


def least_deviation(magnitude: np.ndarray) -> np.ndarray:
    """Standard deviation up to which a column of float32 numbers of this size is constant: what
    rounding alone may have made of a number that never changes."""
    return np.maximum(LEAST_DEVIATION, ROUNDING * magnitude)


def constant_columns(observations: np.ndarray) -> list[int]:
    """Columns of [N, S] that never change, or by no more than rounding; none of images."""
    if observations.ndim != 2:
        return []
    with np.errstate(invalid="ignore"):  # infinity is another finding
        deviation = observations.std(axis=0, dtype=np.float64)
    return np.flatnonzero(deviation <= least_deviation(magnitude(observations))).tolist()


def constant(episodes: Any) -> Finding | None:
    """The constant columns of the observations of episodes or a store, named; of categories, most
    of which are never seen, nothing is said."""
    observations = numbers_in(episodes.observations)
    columns = constant_columns(observations)
    if table := episodes.info.get("observation_space"):
        scaled = from_json(table, "observation_space").scaled
        columns = [column for column in columns if scaled[column]]
    if not columns:
        return None
    verbs = "is constant, or changes" if len(columns) == 1 else "are constant, or change"
    return Finding(
        "note",
        "constant",
        len(columns),
        f"{len(columns)} of {observations.shape[1]} observation columns {verbs} by no more than "
        f"rounding: {spans(columns)}",
        "their mean is subtracted and they are not scaled; nothing is learned from them",
    )


def numbers_in(observations: np.ndarray) -> np.ndarray:
    """The vectors [N, S] in records, [N, 0] where these hold images alone; others as they are."""
    if not observations.dtype.names:
        return observations
    if VECTOR not in observations.dtype.names:
        return np.zeros((len(observations), 0), np.float32)
    return observations[VECTOR]


def to_float32(array: np.ndarray) -> np.ndarray:
    """The same numbers as float32, uncopied if they are; what is beyond its range is infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def rounded(columns: Mapping[str, np.ndarray]) -> Finding | None:
    """Columns [N] whose numbers differ by less than float32 can tell apart, by their names: large
    numbers that are close together, such as times since 1970."""
    found = {name: text for name, column in columns.items() if (text := _lost(column))}
    if not found:
        return None
    names = list(found)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return Finding(
        "warning",
        "rounded",
        len(names),
        f"{', '.join(names[:SHOWN])}{more}: rounding to float32 takes differences away "
        f"({found[names[0]]})",
        "subtract an offset, or change the unit, before the data are stored, or leave it out",
    )


def _lost(column: np.ndarray) -> str:
    """How much of the differences in [N] is lost in float32, or "" where it does not matter."""
    if column.dtype in EXACT:
        return ""
    some = column[:: max(1, len(column) // SAMPLE)].astype(np.longdouble)  # holds any int64
    some = some[np.abs(some) <= np.finfo(np.float32).max]  # nor NaN: they are another finding
    largest = np.abs(some).max(initial=0)
    top = some[np.abs(some) >= largest / 2]  # where the steps between float32 numbers are longest
    deviation = top.std() if len(top) else 0
    noise = NOISE * largest if column.dtype.kind == "f" else 0
    error = np.abs(top - to_float32(top)).max(initial=0)
    if deviation <= noise or error <= NOTICEABLE * deviation:
        return ""
    return (
        f"numbers up to {float(largest):.3g} deviate by {float(deviation):.2g} and are rounded by "
        f"up to {float(error):.2g}"
    )
