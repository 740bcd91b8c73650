"""Figures of the report as inline SVG, readable on light and dark backgrounds: one panel each, so
that a page can put them side by side or, on a phone, below one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from decision_seq.eval.drawing import COLOURS, INK, LINES, panel, to_svg
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import inspected, reported
from decision_seq.eval.rows import target_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from decision_seq.eval.report.runs import Run
    from decision_seq.eval.report.scores import Task
    from decision_seq.eval.report.tables import Cost, Selection

Style = dict[str, tuple[str, str]]  # agent -> colour and line, the same in every figure


def style_of(agents: Sequence[str]) -> Style:
    """A colour and line for every agent."""
    count = len(COLOURS)
    return {a: (COLOURS[i % count], LINES[i // count % 4]) for i, a in enumerate(agents)}


def seed_scores(task: Task, style: Style) -> str:
    """A row an agent: a dot a training seed, a bar at the mean, its 95 % interval as a line."""
    figure, ax = panel(task.name, task.checkpoint, height=1.0 + 0.42 * len(task.scores))
    agents = sorted(task.scores, key=lambda a: float(np.mean(task.of(a))))
    for place, agent in enumerate(agents):
        colour, scores = style[agent][0], task.of(agent)
        result = stats.estimate({"": scores}, stats.mean)
        ax.plot(scores, [place - 0.22] * len(scores), "o", color=colour, markersize=4, alpha=0.6)
        ax.plot(result.value, place, "|", color=colour, markersize=16, markeredgewidth=3)
        if result.interval:
            ends = [result.interval.low, result.interval.high]
            ax.plot(ends, [place, place], color=colour, linewidth=2)
    ax.set_yticks(range(len(agents)), agents, fontsize=9, parse_math=False)
    ax.set_ylim(-0.6, len(agents) - 0.4)
    ax.set_xlabel("normalized score" if task.unit == "normalized" else "return")
    return to_svg(figure, [ax])


def search(values: Sequence[float | None], objective: str) -> str:
    """What each trial of a sweep came to, and the best so far; None are failed ones."""
    figure, ax = panel(f"{len(values)} trials")
    known = np.array([np.nan if value is None else value for value in values])
    higher = objective == "rollouts"
    best = np.fmax.accumulate(known) if higher else np.fmin.accumulate(known)
    ax.plot(known, "o", color=COLOURS[0], markersize=4, label="trial")
    ax.plot(best, color=COLOURS[1], drawstyle="steps-post", label="best so far")
    if not higher and np.nanmin(known, initial=np.inf) > 0:
        ax.set_yscale("log")
    ax.set_xlabel("trial")
    ax.set_ylabel(objective.replace("_", " "))
    return to_svg(figure, [ax])


def losses(runs: Sequence[Run], dataset: str, style: Style) -> str:
    """Training loss (line) and validation loss (dots) against the step."""
    figure, ax = panel(dataset)
    for agent, group in _by_agent(runs, dataset):
        colour, line = style[agent]
        for i, run in enumerate(group):
            label = agent if i == 0 else None
            ax.plot(*run.curve("loss"), line, color=colour, linewidth=1, label=label)
            ax.plot(*run.curve("validation_loss"), "o", color=colour, markersize=3)
    ax.set_xlabel("gradient step")
    ax.set_yscale("log")
    ax.set_ylabel("loss")
    return to_svg(figure, [ax])


def scores_by_step(name: str, curves: dict[str, list[tuple[int, float]]], style: Style) -> str:
    """Evaluated score against the step, a line an agent."""
    figure, ax = panel(name, "each of the weights at its step")
    for agent, points in sorted(curves.items()):
        colour, line = style[agent]
        ax.plot(*zip(*points, strict=True), line, marker=".", color=colour, label=agent)
    ax.set_xlabel("gradient step")
    ax.set_ylabel("score, mean over seeds")
    return to_svg(figure, [ax])


def target_return(runs: Sequence[Run], dataset: str, style: Style) -> str:
    """Achieved against target return, with the data's own returns as a histogram behind.

    Where runs were evaluated in both contexts, those of the papers (window) are drawn.
    """
    runs = [run for run in runs if run.dataset["name"] == dataset]
    context = max(row["context"] for run in runs for row in run.rows)
    rows = {id(run): [r for r in run.rows if r["context"] == context] for run in runs}
    figure, ax = panel(dataset, reported(runs, dataset))
    returns = np.asarray(runs[0].dataset["returns"])
    achieved = [row["episode_return"] for own in rows.values() for row in own]
    targets = [r["target"] for own in rows.values() for r in own if r["target"] is not None]
    low, top = limits([*achieved, *targets, *returns])
    counts, edges = np.histogram(returns, bins=30)
    widths = counts / max(counts.max(), 1) * 0.25 * (top - low)  # rows may leave returns out
    ax.barh(edges[:-1], widths, np.diff(edges), left=low, align="edge", color=INK, alpha=0.25)
    ax.plot([low, top], [low, top], "--", color=INK, linewidth=1)
    for agent, group in _by_agent(runs, dataset):
        if own := [rows[id(run)] for run in group if rows[id(run)]]:
            _achieved(ax, own, agent, *style[agent])
    ax.set_xlim(low, top)
    ax.set_ylim(low, top)
    ax.set_xlabel("target return")
    ax.set_ylabel(f"achieved return ({context})")
    return to_svg(figure, [ax])


def profiles(tasks: Sequence[Task], thresholds: np.ndarray, of: str, style: Style) -> str:
    """Share of seeds that score above a threshold, tasks counting alike, with its band; `of` what
    checkpoint."""
    figure, ax = panel("share of seeds above a score", of)
    for agent in sorted(tasks[0].scores):
        colour, line = style[agent]
        scores = {t.name: t.of(agent) for t in tasks}
        band = stats.profile_band(scores, thresholds)
        if band is not None:
            low, high = band
            ax.fill_between(
                thresholds, low, high, step="pre", color=colour, alpha=0.15, linewidth=0
            )
        shares = stats.performance_profile(scores, thresholds)
        ax.plot(thresholds, shares, line, color=colour, drawstyle="steps-pre", label=agent)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("normalized score" if tasks[0].unit == "normalized" else "return")
    ax.set_ylabel("share of seeds above it")
    return to_svg(figure, [ax])


def evaluations_spent(lines: Sequence[Selection], style: Style) -> str:
    """Expected score of the policy chosen by rollouts against their number."""
    steps = "; ".join(dict.fromkeys(line.checkpoints for line in lines))
    figure, ax = panel(lines[0].dataset, f"checkpoints at steps {steps}")
    most = max(line.episodes for line in lines)
    for line in lines:
        spent = line.episodes * np.arange(1, len(line.scores) + 1)
        label = f"{line.agent}, {line.episodes} to judge one"
        colour = style[line.agent][0] if line.agent in style else INK  # of trials together
        form = ".-" if line.episodes == most else ".:"
        ax.plot(spent, line.scores, form, color=colour, label=label)
    ax.set_xscale("log")
    ax.set_xlabel("rollouts spent on choosing")
    ax.set_ylabel("expected score of the chosen")
    return to_svg(figure, [ax])


def cost_curves(lines: Sequence[Cost], field: str, label: str, style: Style) -> str:
    """A cost against the context length: window solid, stream dotted, a line for each number of
    lanes."""
    figure, ax = panel(label, "; ".join(dict.fromkeys(line.checkpoint for line in lines)))
    kinds = sorted({(c.agent, c.context, c.lanes or 0) for c in lines})
    for agent, context, lanes in kinds:
        own = [c for c in lines if (c.agent, c.context, c.lanes or 0) == (agent, context, lanes)]
        points = sorted((c.context_length, getattr(c, field)) for c in own)
        known = [(k, amount) for k, amount in points if amount is not None]
        if known:
            name = f"{agent}, {context}, {lanes or '?'} lanes"
            form = "o-" if context == "window" else "s:"
            ax.plot(*zip(*known, strict=True), form, color=style[agent][0], label=name)
    ax.set_xlabel("context length in steps")
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0)
    return to_svg(figure, [ax])


def influence(runs: Sequence[Run], dataset: str, style: Style) -> str:
    """Influence of the past on the action, as a share of that of the step acted in, by steps back;
    a line a run."""
    figure, ax = panel(dataset, inspected(runs, dataset))
    for agent, group in _by_agent([run for run in runs if run.inspection], dataset):
        colour, line = style[agent]
        for i, run in enumerate(group):
            assert run.inspection is not None
            rows = run.inspection["influence"]["by_step"]
            steps = [row["steps"] for row in rows]
            means = np.array([row["mean"] for row in rows])
            label = agent if i == 0 else None
            ax.plot(steps, means / (means[0] or 1), line, marker=".", color=colour, label=label)
    ax.set_yscale("log", nonpositive="mask")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("steps back")
    ax.set_ylabel("influence on the action (now: 1)")
    return to_svg(figure, [ax])


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows `values` and zero, with a margin where they are not zero."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin * (low < 0), high + margin * (high > 0 or low == high)


def _achieved(ax: Axes, runs: list[list[dict]], agent: str, colour: str, line: str) -> None:
    """Mean of every seed as a dot, mean over seeds as a line (level if no target is asked)."""
    untargeted = [r["episode_return"] for rows in runs for r in rows if r["target"] is None]
    if untargeted:
        ax.axhline(float(np.mean(untargeted)), color=colour, linestyle=line, label=agent)
        return
    dots: dict[str, list[tuple[float, float]]] = {}  # (mean target, mean return) of every run
    for rows in runs:
        for target in {target_label(row) for row in rows}:
            pairs = [(r["target"], r["episode_return"]) for r in rows if target_label(r) == target]
            dots.setdefault(target, []).append(tuple(np.mean(pairs, axis=0)))
    means = sorted(tuple(np.mean(group, axis=0)) for group in dots.values())
    ax.plot(*zip(*means, strict=True), line, color=colour, label=agent)
    for target in sorted(dots):
        ax.plot(*zip(*dots[target], strict=True), "o", color=colour, markersize=5)


def _by_agent(runs: Iterable[Run], dataset: str) -> Iterator[tuple[str, list[Run]]]:
    """(agent, its runs on the dataset)"""
    own = [run for run in runs if run.dataset["name"] == dataset]
    for agent in sorted({run.agent for run in own}):
        yield agent, [run for run in own if run.agent == agent]
