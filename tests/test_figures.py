"""Axes of the report's figures show what is drawn on them."""

from __future__ import annotations

import warnings

import pytest

from decision_seq.eval.drawing import panels, to_svg
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


def test_a_legend_of_many_agents_leaves_room_for_the_axes() -> None:
    figure, axes = panels(["score"])
    ((ax, _),) = axes
    for n in range(42):
        ax.plot([0, 1], [0, n], label=f"agent {n}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed to zero"
        assert "agent 41" in to_svg(figure, [ax])
    assert ax.get_position().height * figure.get_figheight() > 1  # inches
