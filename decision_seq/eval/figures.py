"""Figures of the report as inline SVG, readable on light and dark backgrounds."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from decision_seq.eval.results import asked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from decision_seq.eval.report import Run

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # dates and foreign addresses
INK = "#808890"  # has contrast on white and on near-black
COLOURS = ("#3b82f6", "#e8730c", "#16a34a", "#a855f7", "#dc2626", "#0891b2", "#ca8a04", "#db2777")


def learning_curves(runs: list[Run]) -> str:
    """Training loss (thin) and validation loss (dots) against the step, a colour an agent."""
    figure, axes = panels(sorted({run.dataset["name"] for run in runs}))
    for ax, dataset in axes:
        for colour, agent, group in _by_agent(runs, dataset):
            for i, run in enumerate(group):
                label = agent if i == 0 else None
                ax.plot(*run.curve("loss"), color=colour, linewidth=1, label=label)
                ax.plot(*run.curve("validation_loss"), "o", color=colour, markersize=3)
        ax.set_xlabel("gradient step")
        ax.set_yscale("log")
    axes[0][0].set_ylabel("loss (line: training, dots: validation)")
    return to_svg(figure, [ax for ax, _ in axes])


def target_return(runs: list[Run]) -> str:
    """Achieved against asked return, with the data's own returns as a histogram behind.

    Where runs were evaluated in both contexts, those of the papers (window) are drawn.
    """
    context = max(row["context"] for run in runs for row in run.rows)
    runs = [replace(run, rows=[r for r in run.rows if r["context"] == context]) for run in runs]
    runs = [run for run in runs if run.rows]
    figure, axes = panels(sorted({run.dataset["name"] for run in runs}))
    for ax, dataset in axes:
        group = [run for run in runs if run.dataset["name"] == dataset]
        returns = np.asarray(group[0].dataset["returns"])
        achieved = [row["episode_return"] for run in group for row in run.rows]
        targets = [row["target"] for run in group for row in run.rows if row["target"] is not None]
        low, top = limits([*achieved, *targets, *returns])
        counts, edges = np.histogram(returns, bins=30)
        widths = counts / counts.max() * 0.25 * (top - low)
        ax.barh(edges[:-1], widths, np.diff(edges), left=low, align="edge", color=INK, alpha=0.25)
        ax.plot([low, top], [low, top], "--", color=INK, linewidth=1)
        for colour, agent, members in _by_agent(runs, dataset):
            _achieved(ax, members, agent, colour)
        ax.set_xlim(low, top)
        ax.set_ylim(low, top)
        ax.set_xlabel("target return")
    axes[0][0].set_ylabel(f"achieved return ({context})")
    return to_svg(figure, [ax for ax, _ in axes])


def influence(runs: list[Run]) -> str:
    """Influence of the past on the action, as a share of that of the step acted in, by steps back;
    a line a run."""
    figure, axes = panels(sorted({run.dataset["name"] for run in runs}))
    for ax, dataset in axes:
        for colour, agent, group in _by_agent(runs, dataset):
            for i, run in enumerate(group):
                assert run.inspection is not None
                rows = run.inspection["influence"]["by_step"]
                steps = [row["steps"] for row in rows]
                means = np.array([row["mean"] for row in rows])
                label = agent if i == 0 else None
                ax.plot(steps, means / (means[0] or 1), ".-", color=colour, label=label)
        ax.set_yscale("log", nonpositive="mask")
        ax.locator_params(axis="x", integer=True)
        ax.set_xlabel("steps back")
    axes[0][0].set_ylabel("influence on the action (now: 1)")
    return to_svg(figure, [ax for ax, _ in axes])


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows `values` and zero, with a margin where they are not zero."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin * (low < 0), high + margin * (high > 0 or low == high)


def _achieved(ax: Axes, runs: list[Run], agent: str, colour: str) -> None:
    """Mean of every seed as a dot, mean over seeds as a line (level if no target is asked)."""
    untargeted = [r["episode_return"] for run in runs for r in run.rows if r["target"] is None]
    if untargeted:
        ax.axhline(float(np.mean(untargeted)), color=colour, label=agent)
        return
    dots: dict[str, list[tuple[float, float]]] = {}  # (mean target, mean return) of every run
    for run in runs:
        for target in {asked(row) for row in run.rows}:
            pairs = [(r["target"], r["episode_return"]) for r in run.rows if asked(r) == target]
            dots.setdefault(target, []).append(tuple(np.mean(pairs, axis=0)))
    means = sorted(tuple(np.mean(group, axis=0)) for group in dots.values())
    ax.plot(*zip(*means, strict=True), color=colour, label=agent)
    for target in sorted(dots):
        ax.plot(*zip(*dots[target], strict=True), "o", color=colour)


def _by_agent(runs: list[Run], dataset: str) -> list[tuple[str, str, list[Run]]]:
    """(colour, agent, its runs on the dataset); an agent has the same colour in every figure."""
    agents = sorted({run.agent for run in runs})
    groups = [
        (
            COLOURS[i % len(COLOURS)],
            agent,
            [r for r in runs if (r.agent, r.dataset["name"]) == (agent, dataset)],
        )
        for i, agent in enumerate(agents)
    ]
    return [group for group in groups if group[2]]


def panels(
    titles: Sequence[str], columns: int | None = None
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """A figure with a panel a title, all in one row or `columns` a row. "" leaves a gap."""
    from matplotlib.figure import Figure

    columns = columns or len(titles)
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(4.2 * columns + 0.8, 3.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    axes = []
    for ax, title in zip(grid, [*titles, *[""] * (rows * columns - len(titles))], strict=True):
        if not title:
            ax.set_axis_off()
            continue
        ax.set_title(title, color=INK, fontsize=10, parse_math=False)
        ax.tick_params(which="both", colors=INK, labelsize=8)
        for spine in ax.spines.values():
            spine.set_color(INK)
        ax.spines[["top", "right"]].set_visible(False)
        axes.append((ax, title))
    return figure, axes


def to_svg(figure: Figure, axes: Sequence[Axes]) -> str:
    """The figure as SVG, its labels and legends in the one ink."""
    import matplotlib

    for ax in axes:
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        if ax.get_legend_handles_labels()[0]:
            legend = ax.legend(frameon=False, labelcolor=INK, fontsize=8)
            for entry in legend.get_texts():
                entry.set_parse_math(False)  # a name is no formula
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "decision-seq", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
