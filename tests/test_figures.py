"""Axes of the report's figures show what is drawn on them."""

from __future__ import annotations

import pytest

from decision_seq.eval.report.figures import limits


@pytest.mark.parametrize(
    "values", [[10.0, 3600.0], [-1500.0, -200.0], [-50.0, 50.0], [0.0], [-3.0], [1e-9]]
)
def test_an_axis_holds_all_returns_and_zero(values: list[float]) -> None:
    low, high = limits(values)
    assert low < high and low <= 0 <= high
    assert all(low < value < high or value == low == 0 for value in values)


def test_returns_above_zero_begin_at_zero() -> None:
    assert limits([100.0, 200.0]) == (0, 210)
