"""How often goals were reached, for environments that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import Run
from decision_seq.eval.rows import target_label


@dataclass(frozen=True)
class Success:
    """An agent's success rate, of every training seed and their mean."""

    dataset: str
    env: str
    target: str
    context: str
    agent: str
    seeds: tuple[tuple[int, float], ...]  # (training seed, share of its episodes)
    mean: float
    interval: stats.Interval | None  # 95 %, over seeds; None where they are too few
    episodes: int


def successes(runs: Sequence[Run]) -> list[Success]:
    """A line for each agent and evaluation whose rows tell success."""
    told: dict[tuple[str, str, str, str, str], dict[int, list[bool]]] = {}
    for run in runs:
        for row in run.rows:
            if row["success"] is not None:
                target, context = target_label(row), row["context"]
                key = (run.dataset["name"], row["env"], target, context, run.agent)
                told.setdefault(key, {}).setdefault(run.config.seed, []).append(row["success"])
    lines = []
    for key, by_seed in sorted(told.items()):
        seeds = tuple((seed, float(np.mean(values))) for seed, values in by_seed.items())
        found = stats.estimate({key[0]: [mean for _, mean in seeds]}, stats.mean)
        episodes = sum(map(len, by_seed.values()))
        lines.append(Success(*key, seeds, found.value, found.interval, episodes))
    return lines
