"""Scores of a report: the table, and what agents are compared on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from decision_seq.digits import decimals
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import Run, checkpoints
from decision_seq.eval.rows import Row, cut_off, target_label, target_name

BySeed = dict[int, dict[int, float]]  # training seed -> environment seed -> score


@dataclass(frozen=True)
class Score:
    """A line of the score table."""

    dataset: str
    env: str
    target: str  # as `target_label` names it
    mean_target: float | None
    context: str
    checkpoint: str  # that its rows are of, in words
    agent: str
    seeds: list[tuple[int, float]]  # (training seed, mean over its episodes)
    mean: float
    spread: float  # standard deviation over seeds
    interval: stats.Interval | None  # 95 %, over seeds; None where they are too few
    mean_return: float
    episodes: int
    best: bool  # highest mean for its dataset, target and context
    unit: str  # "normalized" or "return"
    digits: int  # decimals of the score
    return_digits: int


@dataclass(frozen=True)
class Task:
    """What agents are compared on: for each dataset and environment one target and context, chosen
    by what was asked for and never by what was achieved."""

    dataset: str
    env: str
    target: str  # the highest that most agents were asked for; "none" if none takes a target
    unasked: str  # as rows beside it are labelled whose agent takes none
    context: str  # that in which most agents were evaluated; the papers', window, if as many
    checkpoint: str  # that the scores are of, in words
    unit: str
    digits: int  # decimals of the scores
    scores: dict[str, BySeed]  # by agent

    @property
    def name(self) -> str:
        """Unique among tasks."""
        return f"{self.dataset}, {self.env}"

    def of(self, agent: str) -> list[float]:
        """One score a training seed."""
        return [float(np.mean(list(by.values()))) for by in self.scores[agent].values()]


def digits_of(runs: Sequence[Run], dataset: str) -> int:
    """Decimals that tell returns on the dataset apart, its own and those of rollouts: where a task
    pays 0 or 1 there are more of them than where it pays thousands."""
    own = [run for run in runs if run.dataset["name"] == dataset]
    rolled = [row["episode_return"] for run in own for row in (*run.rows, *run.others)]
    return decimals([*(r for run in own for r in run.dataset["returns"]), *rolled], least=0)


def score_digits(runs: Sequence[Run], dataset: str, unit: str) -> int:
    """Decimals of a score on the dataset."""
    return 1 if unit == "normalized" else max(1, digits_of(runs, dataset))


def score_table(runs: Sequence[Run]) -> list[Score]:
    """One line for each dataset, target, context and agent; every training seed is shown."""
    groups: dict[tuple[Any, ...], list[tuple[Run, Row]]] = {}
    for run in runs:
        for row in run.rows:
            key = (run.dataset["name"], row["env"], target_label(row), row["context"], run.agent)
            groups.setdefault(key, []).append((run, row))
    lines = []
    for (dataset, env, target, context, agent), pairs in groups.items():
        rows = [row for _, row in pairs]
        by_seed: dict[int, list[Row]] = {}
        for row in rows:
            by_seed.setdefault(row["train_seed"], []).append(row)
        unit = unit_of(rows)
        seeds = [
            (s, float(np.mean([value(r, unit) for r in g]))) for s, g in sorted(by_seed.items())
        ]
        means = [mean for _, mean in seeds]
        targets = [row["target"] for row in rows]
        lines.append(
            Score(
                dataset=dataset,
                env=env,
                target=target,
                mean_target=None if None in targets else float(np.mean(targets)),
                context=context,
                checkpoint=checkpoints(pairs),
                agent=agent,
                seeds=seeds,
                mean=float(np.mean(means)),
                spread=float(np.std(means)),
                interval=stats.estimate({dataset: means}, stats.mean).interval,
                mean_return=float(np.mean([row["episode_return"] for row in rows])),
                episodes=len(rows),
                best=False,
                unit=unit,
                digits=score_digits(runs, dataset, unit),
                return_digits=digits_of(runs, dataset),
            )
        )
    lines.sort(
        key=lambda s: (s.dataset, _counted(s.env), s.context, -(s.mean_target or 0), s.agent)
    )
    return [_marked(line, lines) for line in lines]


def unit_of(rows: Sequence[Row]) -> str:
    """ "normalized" where every row has such a score by one reference, else "return"."""
    scored = all(r["normalized_score"] is not None for r in rows)
    references = {tuple(r["reference_returns"]) for r in rows if r["reference_returns"]}
    return "normalized" if scored and len(references) <= 1 else "return"


def value(row: Row, unit: str) -> float:
    """The row's score in `unit`."""
    return row["normalized_score" if unit == "normalized" else "episode_return"]


def choose_tasks(runs: Sequence[Run], scores: Sequence[Score]) -> list[Task]:
    """What agents are compared on, one task for each dataset and environment."""
    tasks = []
    cuts = {target_label(row): cut_off(row) for run in runs for row in run.rows}
    for dataset, env in dict.fromkeys((s.dataset, s.env) for s in scores):
        own = [s for s in scores if (s.dataset, s.env) == (dataset, env)]
        contexts = Counter(context for context, _ in {(s.context, s.agent) for s in own})
        context = max(contexts, key=lambda c: (contexts[c], c))
        own = [s for s in own if s.context == context]
        named = Counter(s.target for s in own if s.mean_target is not None)
        heights = {s.target: s.mean_target or 0.0 for s in own}
        named = named or Counter(s.target for s in own)
        target = max(named, key=lambda t: (named[t], heights[t]))
        unasked = target_name(None, cut=cuts[target])
        rows = [
            (run, row)
            for run in runs
            for row in run.rows
            if (run.dataset["name"], row["env"], row["context"]) == (dataset, env, context)
            and target_label(row) in (target, unasked)
        ]
        unit = unit_of([row for _, row in rows])
        by_agent: dict[str, BySeed] = {}
        for run, row in rows:
            by_seed = by_agent.setdefault(run.agent, {})
            by_seed.setdefault(row["train_seed"], {})[row["env_seed"]] = value(row, unit)
        made = checkpoints(rows)
        digits = score_digits(runs, dataset, unit)
        tasks.append(Task(dataset, env, target, unasked, context, made, unit, digits, by_agent))
    return tasks


def pooled_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Those whose scores have a common scale, and only agents that have all of them: all tasks if
    normalized, else a single one; none otherwise."""
    if len(tasks) > 1:
        tasks = [task for task in tasks if task.unit == "normalized"]
    everywhere = [name for name in tasks[0].scores if all(name in t.scores for t in tasks)] \
        if tasks else []  # fmt: skip
    return [replace(t, scores={a: t.scores[a] for a in everywhere}) for t in tasks if everywhere]


def aggregate(tasks: Sequence[Task]) -> dict[str, dict[str, stats.Estimate]]:
    """agent -> statistic -> its estimate over all tasks and seeds, of `pooled_tasks`."""
    if not tasks:
        return {}
    statistics = dict(stats.STATISTICS)
    if tasks[0].unit != "normalized":
        del statistics["optimality gap"]  # falls short of 100, an expert's normalized score
    return {
        agent: {
            name: stats.estimate({task.name: task.of(agent) for task in tasks}, statistic)
            for name, statistic in statistics.items()
        }
        for agent in sorted(tasks[0].scores)
    }


def number(found: stats.Estimate, digits: int) -> str:
    """A statistic with its interval."""
    return f"{found.value:z.{digits}f}{bracket(found.interval, digits)}"


def bracket(interval: stats.Interval | None, digits: int) -> str:
    """An interval after a number, or nothing."""
    if interval is None:
        return ""
    return f" [{interval.low:z.{digits}f}, {interval.high:z.{digits}f}]"


def _counted(name: str) -> list[str | int]:
    """A key that sorts TMaze9 before TMaze30."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _marked(line: Score, lines: list[Score]) -> Score:
    rivals = [
        s.mean
        for s in lines
        if (s.dataset, s.env, s.target, s.context)
        == (line.dataset, line.env, line.target, line.context)
    ]
    return replace(line, best=len(rivals) > 1 and line.mean == max(rivals))
