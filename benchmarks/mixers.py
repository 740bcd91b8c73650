"""Mixers compared, from rows of `compare-memory` and `compare-mixers-mujoco`: a table, agents by
tasks, and a figure, score against how many steps back the answer lies.

    python -m benchmarks.mixers docs/results/mixers-*.jsonl --figure docs/pictures/mixers.svg

The figure has 0 for chance and 1 for who makes no mistake.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decision_seq.eval.drawing import panels, to_svg
from decision_seq.eval.report.archive import load_runs
from decision_seq.eval.report.figures import style_of
from decision_seq.eval.report.scores import Score, bracket, score_table
from decision_seq.files import write_text

COLUMNS = 5  # of panels


@dataclass(frozen=True)
class Task:
    """What is asked, and how well who remembers nothing does."""

    name: str
    lag: int | None = None  # steps back, at most; None where nothing has to be remembered
    chance: float = 0.0


TASKS = {
    "decision-seq/TMaze9-v0": Task("t-maze-9", 8, 0.5),
    "decision-seq/TMaze30-v0": Task("t-maze-30", 29, 0.5),
    "decision-seq/Memory8-v0": Task("memory-8", 8, 0.5),
    "decision-seq/Memory32-v0": Task("memory-32", 32, 0.5),
    "popgym-RepeatPreviousEasy-v0": Task("RepeatPrevious, easy", 3, -0.5),
    "popgym-RepeatFirstEasy-v0": Task("RepeatFirst, easy", 51, -0.5),
    "Hopper-v5": Task("Hopper"),
    "Walker2d-v5": Task("Walker2d"),
}


def table(scores: Sequence[Score]) -> str:
    """Markdown: a row an agent, a column a task; bold where no agent's mean is higher."""
    tasks = [task for task in TASKS if any(score.env == task for score in scores)]
    found = {(score.agent, score.env): score for score in scores}
    lines = [["agent", *(TASKS[task].name for task in tasks)], ["---"] * (1 + len(tasks))]
    for agent in dict.fromkeys(score.agent for score in scores):
        cells = [cell(found.get((agent, task))) for task in tasks]
        lines.append([agent, *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def cell(score: Score | None) -> str:
    """Mean and interval over seeds."""
    if score is None:
        return ""
    text = f"{score.mean:.{score.digits}f} {bracket(score.interval, score.digits)}".strip()
    if score.interval is None:
        text += f" ({len(score.seeds)} of 5 seeds)"
    return f"**{text}**" if score.best else text


def figure(scores: Sequence[Score]) -> str:
    """SVG: a panel an agent; a dot a seed, a line through the means of tasks of one lag."""
    agents = list(dict.fromkeys(score.agent for score in scores))
    style = style_of(agents)
    drawn, axes = panels(agents, COLUMNS)
    for ax, agent in axes:
        means: dict[int, list[float]] = {}
        for score in scores:
            task = TASKS[score.env]
            if score.agent != agent or task.lag is None:
                continue
            seeds = [(mean - task.chance) / (1 - task.chance) for _, mean in score.seeds]
            ax.plot([task.lag] * len(seeds), seeds, "o", color=style[agent][0], alpha=0.5)
            means.setdefault(task.lag, []).extend(seeds)
        lags = sorted(means)
        ax.plot(lags, [np.mean(means[lag]) for lag in lags], color=style[agent][0])
        ax.set_xscale("log")
        ax.set_xticks([3, 10, 30], ["3", "10", "30"])
        ax.set_ylim(-0.35, 1.1)
        ax.set_xlabel("steps back")
    return to_svg(drawn, [ax for ax, _ in axes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or files of runs")
    parser.add_argument("--figure", type=Path, help="an SVG to write")
    arguments = parser.parse_args()
    scores = score_table(load_runs(arguments.runs))
    print(table(scores))
    if arguments.figure:
        write_text(arguments.figure, figure(scores))


if __name__ == "__main__":
    main()
