"""Mixers compared, from rows of `compare-memory` and `compare-mixers-mujoco`.

    bash benchmarks/mixers.sh runs/mixers                    # makes the rows: hours
    python -m benchmarks.mixers runs/mixers/* --out mixers.svg

Prints a table, a row an agent and a column a task: the mean over training seeds and its 95 %
interval, with * where the difference from the column's highest is an interval that holds zero. The
figure is the score against how many steps back the answer lies: a dot is a training seed, 0 is
chance and 1 who makes no mistake.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from decision_seq.errors import UserError
from decision_seq.eval.drawing import COLOURS, panels, to_svg
from decision_seq.eval.report.archive import load_runs
from decision_seq.eval.report.comparisons import comparisons
from decision_seq.eval.report.runs import Run, find_runs
from decision_seq.eval.report.scores import Score, choose_tasks, number, score_table
from decision_seq.eval.report.standings import Standing, standings
from decision_seq.eval.report.tables import costs
from decision_seq.files import write_text

COLUMNS = 5  # of panels
TASKS = {  # columns of the table; steps back, at most; the return of who remembers nothing
    "popgym-RepeatPreviousEasy-v0": ("RepeatPrevious, 3 back", 3, -0.5),
    "decision-seq/TMaze9-v0": ("T-Maze 9", 8, 0.5),
    "decision-seq/Memory8-v0": ("memory-8", 8, 0.5),
    "decision-seq/TMaze30-v0": ("T-Maze 30", 29, 0.5),
    "decision-seq/Memory32-v0": ("memory-32", 32, 0.5),
    "popgym-RepeatFirstEasy-v0": ("RepeatFirst, to 51 back", 51, -0.5),
    "popgym-NoisyPositionOnlyCartPoleMedium-v0": ("noisy cart and pole", None, None),
    "Hopper-v5": ("Hopper", None, None),
    "Walker2d-v5": ("Walker2d", None, None),
}
COSTS = "decision-seq/TMaze30-v0"  # whose parameters and seconds of training are shown


def table(runs: Sequence[Run], scores: Sequence[Score]) -> str:
    """Markdown; agents in the order of their rows, tasks in that of TASKS."""
    by_task: dict[str, dict[str, Standing]] = defaultdict(dict)
    spent = costs(runs)
    for task in choose_tasks(runs, scores):  # each by itself: none is pooled with another
        for line in standings([task], [task], {}, comparisons([task]), spent):
            by_task[task.env][line.agent] = line
    columns = [env for env in TASKS if env in by_task]
    lines = [["agent", *(TASKS[env][0] for env in columns), "parameters", "s to train"]]
    lines.append(["---"] * len(lines[0]))
    for agent in dict.fromkeys(run.agent for run in runs):
        cells = [_score(by_task[env].get(agent)) for env in columns]
        lines.append([agent, *cells, *_price(by_task[COSTS].get(agent))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score(line: Standing | None) -> str:
    if line is None:
        return ""
    star = " *" if line.verdict in ("best", "tie") else ""
    return number(line.score, min(line.digits, 2)) + star


def _price(line: Standing | None) -> tuple[str, str]:
    if line is None or line.training_seconds is None:
        return "", ""
    return f"{line.parameters:,}", f"{line.training_seconds:.0f}"


def figure(scores: Sequence[Score]) -> str:
    """SVG: a panel an agent, a line through the means."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        _, lag, chance = TASKS.get(score.env, ("", None, None))
        if lag is not None and chance is not None and score.context == "stream":
            found[score.agent][lag] += [(x - chance) / (1 - chance) for _, x in score.seeds]
    drawn, axes = panels(list(found), COLUMNS)
    for ax, agent in axes:
        lags = sorted(found[agent])
        for lag in lags:
            seeds = found[agent][lag]
            ax.plot([lag] * len(seeds), seeds, "o", color=COLOURS[0], alpha=0.5)
        ax.plot(lags, [np.mean(found[agent][lag]) for lag in lags], color=COLOURS[0])
        ax.set_xscale("log")
        ax.set_xticks([3, 10, 30], ["3", "10", "30"])
        ax.minorticks_off()
        ax.set_ylim(-0.35, 1.1)
        ax.set_xlabel("steps back")
    return to_svg(drawn, [ax for ax, _ in axes])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or files of runs")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        runs = load_runs(find_runs(arguments.runs))
    except UserError as error:
        parser.exit(2, f"benchmarks.mixers: {error}\n")
    scores = score_table(runs)
    print(table(runs, scores))
    write_text(arguments.out, figure(scores))


if __name__ == "__main__":
    main()
