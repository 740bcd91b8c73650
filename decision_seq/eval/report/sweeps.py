"""What a sweep tried: its trials, and what choosing among them by rollouts is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import Run
from decision_seq.eval.report.scores import Task, unit_of, value
from decision_seq.eval.report.tables import Selection, of_task


@dataclass(frozen=True)
class Tried:
    """A trial of a sweep."""

    agent: str  # what the report calls it
    parameters: dict[str, Any]  # by config key
    objective: str  # what it was judged by
    judged: float  # by what the objective says
    episodes: int  # rolled out to judge it


def trials(runs: Sequence[Run]) -> list[Tried]:
    """A line a trial, the best first."""
    lines = []
    for run in runs:
        if run.trial is None:
            continue
        objective, rows = run.trial["objective"], _judging(run)
        if objective == "rollouts":
            judged = float(np.mean([value(row, unit_of(rows)) for row in rows]))
        else:
            judged = run.validation["validation_loss"]
        episodes = len(rows) if objective == "rollouts" else 0
        lines.append(Tried(run.agent, run.trial["parameters"], objective, judged, episodes))
    return sorted(lines, key=lambda t: -t.judged if t.objective == "rollouts" else t.judged)


def selections(runs: Sequence[Run], tasks: Sequence[Task]) -> list[Selection]:
    """Of sweeps that rollouts judged: the expected score of the trial that looks best, by the
    rollouts spent on judging."""
    lines = []
    for task in tasks:
        judged, truths, steps = [], [], set()
        for run in runs:
            rows = [row for row in _judging(run) if of_task(run, row, task, same_target=False)]
            others = [row for row in run.rows if of_task(run, row, task, same_target=False)]
            if rows and others:
                judged.append([value(row, task.unit) for row in rows])
                truths.append(float(np.mean([value(row, task.unit) for row in others])))
                steps.add(run.reported_step)
        if len(judged) < 2:
            continue
        fewest = min(map(len, judged))
        rollouts, name = np.array([own[:fewest] for own in judged]), f"best of {len(judged)} trials"
        words = ", ".join(map(str, sorted(steps)))
        lines += [
            Selection(
                task.dataset, name, len(judged), words, episodes,
                stats.selection_curve(rollouts, np.array(truths), episodes).tolist(), task.unit,
                task.digits,
            )
            for episodes in sorted({1, fewest})
        ]  # fmt: skip
    return lines


def _judging(run: Run) -> list[dict[str, Any]]:
    """Rows of the rollouts that judged a trial."""
    if run.trial is None or run.trial["objective"] != "rollouts":
        return []
    step = run.reported_step
    return [r for r in run.others if r["checkpoint"] == "selection" and r["step"] == step]
