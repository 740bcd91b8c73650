"""Comparisons of agents on common seeds, and what they say in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decision_seq.errors import UserError
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import Run
from decision_seq.eval.report.scores import Score, Task, aggregate, bracket, number, pooled_tasks


@dataclass(frozen=True)
class Comparison:
    """How much better one agent is than another."""

    task: str  # name of the task, or "all"
    checkpoint: str  # that the scores are of, in words
    better: str
    worse: str
    difference: stats.Estimate | None  # on common seeds; None where units have no common scale
    improvement: stats.Estimate  # probability that a seed of the one scores higher
    seeds: int  # common training seeds, of the task that has fewest
    digits: int  # decimals of the difference

    @property
    def sure(self) -> bool | None:
        """Whether the difference's interval lies above zero; None where there is none."""
        if self.difference is None or self.difference.interval is None:
            return None
        return self.difference.interval.low > 0

    @property
    def verdict(self) -> str:
        """In a word, of `better`, which may be the worse one where a baseline is compared with."""
        if self.sure is None:
            return "too few seeds"
        assert self.difference is not None and self.difference.interval is not None
        below = self.difference.interval.high < 0
        return "better" if self.sure else "worse" if below else "tie"


def compare(tasks: Sequence[Task], better: str, worse: str, name: str) -> Comparison:
    """Two agents on the tasks that both have; what is paired shares training seed and environment
    seed."""
    x: dict[tuple[str, int], float] = {}
    y: dict[tuple[str, int], float] = {}
    for task in tasks:
        first, second = task.scores[better], task.scores[worse]
        for seed in first.keys() & second.keys():
            if common := sorted(first[seed].keys() & second[seed].keys()):
                x[task.name, seed] = float(np.mean([first[seed][i] for i in common]))
                y[task.name, seed] = float(np.mean([second[seed][i] for i in common]))
    paired = Counter(task for task, _ in x)
    one_scale = len(tasks) == 1 or all(task.unit == "normalized" for task in tasks)
    return Comparison(
        task=name,
        checkpoint="; ".join(dict.fromkeys(task.checkpoint for task in tasks)),
        better=better,
        worse=worse,
        difference=stats.paired_difference(x, y) if x and one_scale else None,
        improvement=stats.probability_of_improvement(
            {t.name: t.of(better) for t in tasks}, {t.name: t.of(worse) for t in tasks}
        ),
        seeds=min((paired[task.name] for task in tasks), default=0),
        digits=max(task.digits for task in tasks),
    )


def comparisons(tasks: Sequence[Task]) -> list[Comparison]:
    """The leader of each task against every other agent, and that of all tasks together."""
    lines = []
    for task in tasks:
        leader, *others = _ranked({a: float(np.mean(task.of(a))) for a in task.scores}, [task])
        lines += [compare([task], leader, other, task.name) for other in others]
    pooled = pooled_tasks(tasks)
    if len(pooled) > 1:
        totals = aggregate(pooled)
        found = {a: totals[a]["interquartile mean"].value for a in totals}
        leader, *others = _ranked(found, pooled)
        lines += [compare(pooled, leader, other, "all") for other in others]
    return lines


def against(tasks: Sequence[Task], agent: str | None) -> list[Comparison]:
    """Every other agent against `agent`: of each task that it has, and of all tasks together.

    Raises:
        UserError: no task has the agent.
    """
    if agent is None:
        return []
    names = sorted({name for task in tasks for name in task.scores})
    if agent not in names:
        raise UserError(f"against: no rollouts are of '{agent}'; there are {', '.join(names)}")
    pooled = pooled_tasks(tasks)
    together = [("all", pooled)] if len(pooled) > 1 else []
    return [
        compare(own, other, agent, name)
        for name, own in [*((task.name, [task]) for task in tasks), *together]
        if agent in own[0].scores
        for other in sorted(own[0].scores)
        if other != agent
    ]


def summary(
    scores: Sequence[Score], runs: Sequence[Run], tasks: Sequence[Task], lines: Sequence[Comparison]
) -> list[str]:
    """What the tables say, in plain words, with how much to trust it."""
    said: dict[tuple[str, str], list[str]] = {}  # dataset and words -> environments
    for task in tasks:
        leader = _ranked({a: float(np.mean(task.of(a))) for a in task.scores}, [task])[0]
        target = task.target if any(
            s.agent == leader and s.target == task.target for s in scores
        ) else task.unasked  # fmt: skip
        (line,) = [s for s in scores if (s.dataset, s.env, s.target, s.context, s.agent)
                   == (task.dataset, task.env, target, task.context, leader)]  # fmt: skip
        places = line.return_digits
        goal = "" if line.mean_target is None else f" when asked for {line.mean_target:.{places}f}"
        data = next(r.dataset for r in runs if r.dataset["name"] == task.dataset)
        interval = f", 95 % interval{bracket(line.interval, line.digits)}" if line.interval else ""
        reached = f"return {line.mean:z.{line.digits}f}{goal}{interval}"
        if line.unit == "normalized":
            score = f"{line.mean:z.1f}{interval}"
            reached = f"return {line.mean_return:z.{places}f}{goal} (normalized: {score})"
        words = (
            f"the highest mean is {leader}'s: {reached}; the data's mean return is "
            f"{data['return_mean']:.{places}f}. "
            + verdict([c for c in lines if c.task == task.name])
        )
        said.setdefault((task.dataset, words), []).append(task.env)
    alone = {name for name, count in Counter(t.dataset for t in tasks).items() if count == 1}
    sentences = [
        f"On {dataset}{'' if dataset in alone else ' in ' + ', '.join(envs)}, {words}"
        for (dataset, words), envs in said.items()
    ]
    if overall := [c for c in lines if c.task == "all"]:
        sentences.insert(
            0,
            f"Over all {len(pooled_tasks(tasks))} tasks with normalized scores, "
            f"{overall[0].better} has the highest interquartile mean. {verdict(overall)}",
        )
    if unrolled := ", ".join(dict.fromkeys(run.agent for run in runs if not run.rows)):
        sentences.append(f"Without an environment, and so without rollouts: {unrolled}.")
    few = {s.agent: len(s.seeds) for s in scores if len(s.seeds) < stats.FEWEST}
    if few:
        counts = " to ".join(map(str, sorted({min(few.values()), max(few.values())})))
        everyone = few.keys() == {s.agent for s in scores}
        whose = "these numbers" if everyone else f"the numbers of {', '.join(few)}"
        sentences.append(
            f"With {counts} training seed{'s' if counts != '1' else ''} {whose} can be "
            f"chance: no interval is given below {stats.FEWEST} seeds, and none should be imagined."
        )
    return [sentence.strip() for sentence in sentences]


def verdict(lines: Sequence[Comparison]) -> str:
    """How sure it is that the leader is better than its nearest rival: of all others, the one whose
    lead over is least sure."""
    if not lines:
        return ""
    unsure = [c for c in lines if not c.sure]
    if not unsure:
        rival = min(lines, key=lambda c: c.difference.value if c.difference else 0)
        assert rival.difference is not None
        others = "all others" if len(lines) > 1 else rival.worse
        return (
            f"It is better than {others} on the same seeds, with 95 % confidence in each "
            f"comparison: by {lead(rival)} over {rival.worse}."
        )
    sentences = []
    if beaten := ", ".join(c.worse for c in lines if c.sure):
        sentences.append(f"It is better than {beaten} with 95 % confidence in each comparison.")
    equal = [c for c in unsure if c.difference and c.difference.interval == stats.Interval(0, 0)]
    if equal:
        names = ", ".join(c.worse for c in equal)
        sentences.append(f"On the same seeds it scores exactly what {names} scores.")
    if ties := [c for c in unsure if c.sure is False and c not in equal]:
        nearest = min(ties, key=lambda c: c.difference.value if c.difference else 0)
        sentences.append(
            f"Its lead over {', '.join(c.worse for c in ties)} can be chance: {lead(nearest)} over "
            f"{nearest.worse} on the same seeds, an interval that holds zero."
        )
    if few := [c for c in unsure if c.sure is None]:
        sentences.append(
            f"Whether it is better than {', '.join(c.worse for c in few)} cannot be said: too few "
            f"seeds ({min(c.seeds for c in few)} in common)."
        )
    return " ".join(sentences)


def lead(line: Comparison) -> str:
    """The paired difference with its interval, in words."""
    if line.difference is None:
        return "no common scale"
    return number(line.difference, line.digits)


def _ranked(means: dict[str, float], tasks: Sequence[Task]) -> list[str]:
    """The highest first; of equals that with more seeds, of which more can be said."""
    seeds = {agent: min(len(task.scores[agent]) for task in tasks) for agent in means}
    return sorted(means, key=lambda agent: (-means[agent], -seeds[agent], agent))
