"""Every number of a report, and its forms for programs: JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from decision_seq.eval.report import comparisons, figures, sweeps
from decision_seq.eval.report import protocol as report_protocol
from decision_seq.eval.report import scores as report_scores
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report import tables as report_tables
from decision_seq.eval.report.film import films
from decision_seq.eval.report.runs import Run, agents, outdated
from decision_seq.eval.report.scores import Task
from decision_seq.eval.report.standings import price, standings
from decision_seq.eval.report.successes import successes

THRESHOLDS = 101  # points of a performance profile


@dataclass
class Data:
    """What the rows of `runs` say, each number made once and when it is asked for."""

    runs: Sequence[Run]
    failed: Mapping[str, str]  # by name, why other runs of the comparison failed
    baseline: str | None = None  # the agent that every other is compared with, beside the leader

    def __post_init__(self) -> None:
        self.agents = agents(self.runs)
        self.style = figures.style_of(self.agents)
        self.scores = report_scores.score_table(self.runs)
        self.tasks = report_scores.choose_tasks(self.runs, self.scores)
        self.pooled = report_scores.pooled_tasks(self.tasks)
        self.aggregates = report_scores.aggregate(self.pooled)
        self.comparisons = comparisons.comparisons(self.tasks)
        self.against = comparisons.against(self.tasks, self.baseline)
        self.successes = successes(self.runs)
        self.choices = report_tables.last_or_best(self.runs)
        self.contexts = report_tables.window_or_stream(self.runs)
        self.costs = report_tables.costs(self.runs)
        self.standings = standings(
            self.tasks, self.pooled, self.aggregates, self.comparisons, self.costs
        )
        self.summary = comparisons.summary(self.scores, self.runs, self.tasks, self.comparisons)
        self.summary += [*price(self.standings), *outdated(self.runs)]
        self.films = films(self.runs)
        self.score_by_step = report_tables.score_by_step(self.runs, self.tasks)
        self.selections = report_tables.selections(self.runs, self.tasks)
        self.selections += sweeps.selections(self.runs, self.tasks)
        self.trials = sweeps.trials(self.runs)
        self.validations = report_tables.validations(self.runs)
        self.looks_back = report_tables.looks_back(self.runs)
        self.protocol = report_protocol.protocol(self.runs)
        self.commands = report_protocol.commands(self.runs)

    @property
    def title(self) -> str:
        """What is compared."""
        return f"decision-seq: {', '.join(self.agents)}"

    @property
    def pooled_checkpoint(self) -> str:
        """What the statistics over all tasks are of."""
        return "; ".join(dict.fromkeys(task.checkpoint for task in self.pooled))

    @property
    def chosen_by(self) -> str:
        """Which of several targets and contexts agents are compared on."""
        parts = [f"{t.name}: target {t.target}, {t.context}" for t in self.tasks]
        return (
            "Agents are compared at the highest target that most of them were asked for: "
            + "; ".join(parts) + "."
        )  # fmt: skip

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Of the performance profile."""
        scores = [score for t in self.pooled for agent in t.scores for score in t.of(agent)]
        return np.linspace(*figures.limits(scores), THRESHOLDS)

    def profile(self, tasks: Sequence[Task], agent: str) -> list[float]:
        """Share of the agent's seeds above each threshold."""
        own = {task.name: task.of(agent) for task in tasks}
        return stats.performance_profile(own, self.thresholds).tolist()


def to_json(data: Data) -> dict[str, Any]:
    """Every number, as plain data."""
    plain: dict[str, Any] = {"title": data.title, "summary": data.summary}
    for name in ("standings", "scores", "successes", "comparisons", "against", "choices",
                 "contexts", "costs", "selections", "trials", "validations"):  # fmt: skip
        plain[name] = [asdict(line) for line in getattr(data, name)]
    plain["looks_back"] = [asdict(line) for line in data.looks_back]
    plain["aggregates"] = {
        agent: {name: asdict(estimate) for name, estimate in found.items()}
        for agent, found in data.aggregates.items()
    }
    if data.pooled:
        shares = {agent: data.profile(data.pooled, agent) for agent in data.aggregates}
        plain["profile"] = {"thresholds": data.thresholds.tolist(), "shares": shares}
    plain["compared_on"] = [
        {"dataset": t.dataset, "env": t.env, "target": t.target, "context": t.context,
         "checkpoint": t.checkpoint, "unit": t.unit} for t in data.tasks
    ]  # fmt: skip
    plain["score_by_step"] = data.score_by_step
    plain["learning_curves"] = [
        {"agent": run.agent, "dataset": run.dataset["name"], "seed": run.config.seed}
        | {name: _curve(run, name) for name in ("loss", "validation_loss")}
        for run in data.runs
    ]
    plain |= {"protocol": dict(data.protocol), "commands": data.commands}
    return plain | {"failed": dict(data.failed)}


COLUMNS = ("table", "dataset", "env", "target", "context", "checkpoint", "agent", "against",
           "train_seed", "statistic", "unit", "value", "low", "high", "n")  # fmt: skip

COSTS = {
    "context_length": "steps",
    "lanes": "",
    "parameters": "",
    "training_seconds": "s",
    "training_memory_mib": "MiB",
    "milliseconds_per_step": "ms",
    "rollout_memory_mib": "MiB",
}


def to_csv(data: Data) -> str:
    """One number a line, with what it is of; `n` is the number of seeds, episodes or candidates
    behind it."""
    lines: list[dict[str, Any]] = []

    def add(table: str, statistic: str, value: Any, **of: Any) -> None:
        interval = of.pop("interval", None)
        if isinstance(value, stats.Estimate):
            value, interval = value.value, value.interval
        ends = {} if interval is None else {"low": interval.low, "high": interval.high}
        if value is not None:
            row = {"table": table, "statistic": statistic, "value": value}
            lines.append(row | ends | {k: "" if v is None else v for k, v in of.items()})

    for s in data.scores:
        keys = ("dataset", "env", "target", "context", "checkpoint", "agent")
        of = {k: getattr(s, k) for k in keys}
        unit, count = s.unit, len(s.seeds)
        for seed, mean in s.seeds:
            add("scores", "mean over episodes", mean, **of, unit=unit, train_seed=seed,
                n=s.episodes // count)  # fmt: skip
        add("scores", "mean over seeds", s.mean, **of, unit=unit, interval=s.interval, n=count)
        add("scores", "standard deviation over seeds", s.spread, **of, unit=unit, n=count)
        add("scores", "mean return", s.mean_return, **of, unit="return", n=s.episodes)
    for agent, found in data.aggregates.items():
        of = {"agent": agent, "unit": data.pooled[0].unit, "checkpoint": data.pooled_checkpoint}
        for name, estimate in found.items():
            add("aggregates", name, estimate, **of)
    for table, compared in (("comparisons", data.comparisons), ("against", data.against)):
        for c in compared:
            task = next((t for t in data.tasks if t.name == c.task), None)
            of = {"agent": c.better, "against": c.worse, "n": c.seeds, "dataset": "all",
                  "checkpoint": c.checkpoint}  # fmt: skip
            if task:
                of |= {k: getattr(task, k) for k in ("dataset", "env", "target", "context")}
            unit = task.unit if task else "normalized"
            add(table, "paired difference", c.difference, **of, unit=unit)
            add(table, "probability of improvement", c.improvement, **of, unit="probability")
    for table, versus in (("checkpoints", data.choices), ("contexts", data.contexts)):
        for v in versus:
            of = {k: getattr(v, k) for k in ("dataset", "env", "target", "agent", "unit")}
            of |= {"context": v.context, "n": v.seeds}
            both = {"checkpoint": v.other_checkpoint, "against": v.first}
            add(table, v.first, v.base, **of, checkpoint=v.checkpoint)
            add(table, v.second, v.other, **of, **both)
            add(table, "paired difference", v.difference, **of, **both)
    for cost in data.costs:
        of = {"agent": cost.agent, "dataset": cost.dataset, "context": cost.context,
              "checkpoint": cost.checkpoint}  # fmt: skip
        for name, unit in COSTS.items():
            add("costs", name, getattr(cost, name), **of, unit=unit, n=cost.runs)
    for loss in data.validations:
        of = {"dataset": loss.dataset, "agent": loss.agent, "n": loss.seeds, "unit": "loss"}
        statistic = f"mean on {loss.source}" if loss.source else "mean"
        add("validation losses", statistic, loss.mean, **of)
    for trial in data.trials:
        add("trials", trial.objective, trial.judged, agent=trial.agent, n=trial.episodes)
    for chosen in data.selections:
        for i, score in enumerate(chosen.scores, 1):
            add("choosing", f"score after {i * chosen.episodes} rollouts", score, n=i,
                dataset=chosen.dataset, agent=chosen.agent, unit=chosen.unit,
                checkpoint=f"candidates, steps {chosen.checkpoints}")  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _curve(run: Run, name: str) -> dict[str, list[float]]:
    steps, values = run.curve(name)
    return {"step": steps, "value": values}
