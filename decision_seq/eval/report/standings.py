"""Who is better, by how much, how sure and at what cost: a line an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.comparisons import Comparison
from decision_seq.eval.report.scores import Task
from decision_seq.eval.report.tables import Cost

Aggregates = Mapping[str, Mapping[str, stats.Estimate]]  # agent -> statistic -> its estimate


@dataclass(frozen=True)
class Standing:
    """An agent beside the leader."""

    task: str  # name of the task, or "all"
    statistic: str  # what `score` is: the mean over seeds, or the interquartile mean over all tasks
    unit: str
    digits: int  # decimals of score and difference
    agent: str
    score: stats.Estimate
    behind: stats.Estimate | None  # the leader's less this one's, on common seeds
    improvement: stats.Estimate | None  # probability that a seed of the leader scores higher
    verdict: str
    parameters: int | None
    training_seconds: float | None  # of a run
    milliseconds_per_step: float | None  # of all lanes of a rollout


def standings(
    tasks: Sequence[Task],
    pooled: Sequence[Task],
    aggregates: Aggregates,
    comparisons: Sequence[Comparison],
    costs: Sequence[Cost],
) -> list[Standing]:
    """Of tasks with a common scale together, of every other task; the leader of each first."""
    lines, together = [], {task.name for task in pooled} if len(pooled) > 1 else set()
    if together:
        name = "interquartile mean"
        found = {agent: by_name[name] for agent, by_name in aggregates.items()}
        lines += _block("all", name, pooled, found, comparisons, costs)
    for task in tasks:
        if task.name in together:
            continue
        found = {agent: stats.estimate({"": task.of(agent)}, stats.mean) for agent in task.scores}
        lines += _block(task.name, "mean", [task], found, comparisons, costs)
    return lines


def price(lines: Sequence[Standing]) -> list[str]:
    """In a sentence, what runs of the first and the second of the first task cost; none where rows
    do not tell."""
    words = [
        (s.agent, f"{s.training_seconds:.0f} s", f"{s.milliseconds_per_step:.2g} ms")
        for s in lines
        if s.task == lines[0].task
        and s.training_seconds is not None
        and s.milliseconds_per_step is not None
    ]
    if not words or words[0][0] != lines[0].agent:
        return []
    (agent, training, step), *others = words
    beside = "".join(f", one of {a} {t} and {s}" for a, t, s in others[:1])
    return [f"A run of {agent} took {training} to train and {step} a rollout step{beside}."]


def _block(
    name: str,
    statistic: str,
    tasks: Sequence[Task],
    found: Mapping[str, stats.Estimate],
    comparisons: Sequence[Comparison],
    costs: Sequence[Cost],
) -> list[Standing]:
    own = {c.worse: c for c in comparisons if c.task == name}
    lines = []
    for agent in sorted(found, key=lambda a: (a in own, -found[a].value, a)):  # the leader first
        line = own.get(agent)
        spent = [
            c for c in costs
            if c.agent == agent and any((c.dataset, c.context) == (t.dataset, t.context)
                                        for t in tasks)
        ]  # fmt: skip
        lines.append(
            Standing(
                name, statistic, tasks[0].unit, tasks[0].digits, agent, found[agent],
                behind=line.difference if line else None,
                improvement=line.improvement if line else None,
                verdict=_verdict([line] if line else [*own.values()], leads=line is None),
                parameters=next((c.parameters for c in spent if c.parameters), None),
                training_seconds=_mean([c.training_seconds for c in spent]),
                milliseconds_per_step=_mean([c.milliseconds_per_step for c in spent]),
            )
        )  # fmt: skip
    return lines


def _verdict(lines: Sequence[Comparison], leads: bool) -> str:
    """In a word; for the leader against all others."""
    sure = [line.sure for line in lines]
    if not lines:
        return ""
    if None in sure:
        return "too few seeds"
    return ("best" if leads else "worse") if all(sure) else "tie"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
