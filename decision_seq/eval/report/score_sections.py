"""The sections of a report that say who is better."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from decision_seq.eval.report import figures
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.comparisons import Comparison, lead
from decision_seq.eval.report.data import Data
from decision_seq.eval.report.film import strip
from decision_seq.eval.report.parts import Figure, Section, Table
from decision_seq.eval.report.scores import bracket, number

NEAR = 0.05  # of the best: what OGBench's tables mark with it


def glance(data: Data) -> Section | None:
    """Who is better, by how much, how sure and at what cost."""
    if not data.standings:
        return None
    everything = f"all {len(data.pooled)} with normalized scores"
    common, named = task_names(data)
    rows = [
        [everything if s.task == "all" else named[s.task], s.agent, s.verdict,
         number(s.score, s.digits) + " (return)" * (s.unit == "return"),
         "" if s.behind is None else number(s.behind, s.digits),
         "" if s.improvement is None else number(s.improvement, 2),
         shown(s.training_seconds), shown(s.parameters), shown(s.milliseconds_per_step, 2)]
        for s in data.standings
    ]  # fmt: skip
    columns = ("task", "agent", "verdict", "score", "behind the first",
               "probability that the first is better", "seconds to train", "parameters",
               "ms a rollout step")  # fmt: skip
    of = "; ".join(dict.fromkeys(task.checkpoint for task in data.tasks))
    top = frozenset(i for i, s in enumerate(data.standings) if s.verdict == "best")
    return Section(
        "At a glance",
        f"Checkpoint: {of}.{common}",
        table=Table(columns, rows, 3, top),
        note="Score: the mean over training seeds, of several tasks the interquartile mean. In "
        "brackets 95 % intervals over training seeds, of one comparison each: of twenty "
        "between equals, one is expected to mislead. Behind: the difference on the same training "
        "and environment seeds. Tie: that interval holds zero, so neither is shown to be better; "
        "more seeds may tell. Probability: how likely a seed of the first scores higher than a "
        "seed of this one. Time: the median over runs.",
    )


def scores(data: Data) -> Section | None:
    """The score table."""
    if not data.scores:
        return None
    rows = []
    for s in data.scores:
        spread = f" ± {s.spread:.{s.digits}f}" if len(s.seeds) > 1 else ""
        unit = " (return)" if s.unit == "return" else ""
        seeds = ", ".join(f"{mean:z.{s.digits}f} (seed {seed})" for seed, mean in s.seeds)
        rows.append(
            [s.dataset, s.env, s.checkpoint, s.target, s.context, s.agent,
             f"{s.mean:z.{s.digits}f}{spread}{bracket(s.interval, s.digits)}{unit}", seeds,
             f"{s.mean_return:z.{s.return_digits}f}", str(s.episodes)]
        )  # fmt: skip
    note = (
        "Scores are normalized where references exist: 100 (return - random) / (expert - random), "
        "by the references named in the protocol. ± is the standard deviation over training seeds; "
        "in brackets the 95 % bootstrap interval of the mean over seeds, which is given from "
        f"{stats.FEWEST} seeds on."
    )
    if any(s.env.startswith("Walker2d-v5") for s in data.scores):
        note += " Walker2d-v5 has other foot friction than v2 to v4: these are not D4RL-v2 scores."
    columns = ("dataset", "environment", "checkpoint", "target", "context", "agent", "score",
               "each seed", "mean return", "episodes")  # fmt: skip
    return Section(
        "Scores",
        "Every training seed is shown; a seed's score is the mean over its episodes, from the last "
        "checkpoint."
        + " Bold: the highest mean for that dataset, target and context, which may be chance."
        * bool(data.comparisons),
        tuple(
            Figure(
                partial(figures.seed_scores, task, data.style),
                f"Score of every training seed on {task.name} ({task.checkpoint}), a row an agent: "
                + "; ".join(
                    f"{a} {np.mean(task.of(a)):z.{task.digits}f}" for a in sorted(task.scores)
                ),
            )
            for task in data.tasks
        ),
        "Each dot is a training seed, the bar their mean, and the line its 95 % interval, where "
        f"there are seeds enough. {data.chosen_by}",
        Table(columns, rows, 6, frozenset(i for i, s in enumerate(data.scores) if s.best)),
        note,
    )


def side_by_side(data: Data) -> Section | None:
    """A row a task and a column an agent, as papers print it."""
    if len(data.tasks) < 2:
        return None
    common, named = task_names(data)
    rows = []
    for task in data.tasks:
        means = {agent: float(np.mean(task.of(agent))) for agent in task.scores}
        best = max(means.values())
        near = best - NEAR * abs(best)
        cells = [
            f"{means[a]:z.{task.digits}f} ± {np.std(task.of(a)):.{task.digits}f}"
            + " *" * (means[a] >= near)
            if a in means
            else ""
            for a in data.agents
        ]
        rows.append([named[task.name] + " (return)" * (task.unit == "return"), *cells])
    return Section(
        "Tasks side by side",
        common.strip(),
        table=Table(("task", *data.agents), rows),
        note="Mean and standard deviation over training seeds. With a star: the highest of the row "
        f"and all within {100 * NEAR:.0f} % of it, as tables of OGBench mark them "
        "(arXiv:2410.20092). Near is not equal, and the highest may be chance: verdicts are above.",
    )


def film(data: Data) -> Section | None:
    """What the median episode looks like."""
    if not data.films:
        return None
    return Section(
        "What it looks like",
        figures=tuple(
            Figure(
                partial(strip, f),
                f"Six frames of the median episode of {f.agent} on {f.dataset} ({f.about})",
            )
            for f in data.films
        ),
        caption="The median episode of those that were filmed: six moments at even distances, up "
        "to the end of its `.gif`.",
    )


def success(data: Data) -> Section | None:
    """How often goals were reached."""
    if not data.successes:
        return None
    rows = [
        [s.dataset, s.env, s.target, s.context, s.agent, f"{100 * s.mean:.0f} %",
         ", ".join(f"{100 * mean:.0f} % (seed {seed})" for seed, mean in s.seeds), str(s.episodes)]
        for s in data.successes
    ]  # fmt: skip
    columns = ("dataset", "environment", "target", "context", "agent", "success", "each seed",
               "episodes")  # fmt: skip
    text = "The share of episodes in which the environment said at some step that it was a success."
    return Section("Is the goal reached?", text, table=Table(columns, rows, 5))


def comparison(data: Data) -> Section | None:
    """Task by task, how much better its leader is than the others."""
    if len(data.pooled) < 2:
        return None  # the first table has it
    return Section(
        "Which is better, task by task",
        "The agent with the highest mean on each task against every other.",
        table=_paired(data.comparisons),
    )


def against(data: Data) -> Section | None:
    """Every other agent less the one that was named."""
    if not data.against:
        return None
    return Section(
        f"Against {data.baseline}",
        f"Every other agent less {data.baseline}, on the same training and environment seeds.",
        table=_paired(data.against),
    )


def together(data: Data) -> Section | None:
    """Statistics and performance profile of all tasks."""
    if not data.aggregates:
        return None
    names = list(next(iter(data.aggregates.values())))
    rows = [
        [agent, *(number(found[name], data.pooled[0].digits) for name in names)]
        for agent, found in data.aggregates.items()
    ]
    of = data.pooled_checkpoint
    alt = f"Share of seeds above each score ({of}): " + ", ".join(data.aggregates)
    return Section(
        "All seeds of all tasks together",
        "Tasks: " + "; ".join(task.name for task in data.pooled) + f". Checkpoint: {of}.",
        (Figure(partial(figures.profiles, data.pooled, data.thresholds, of, data.style), alt),),
        "Performance profile: the share of training seeds that score above each threshold, every "
        "task counting alike. A line above another everywhere is better whatever the measure. "
        f"Shaded: 95 % of each share by itself, where every task has {stats.FEWEST} seeds.",
        Table(("agent", *names), rows),
        "The interquartile mean is that of the middle half of all seeds. "
        + "The optimality gap is how far scores fall short of 100 on average; lower is better. "
        * ("optimality gap" in names)
        + "95 % intervals in brackets, from seeds resampled within their task, where each has "
        f"{stats.FEWEST} or more.",
    )


def task_names(data: Data) -> tuple[str, dict[str, str]]:
    """What the names of several tasks have in common, in words, and what is left of each."""
    if len(data.tasks) > 1 and len({task.dataset for task in data.tasks}) == 1:
        return f" Dataset: {data.tasks[0].dataset}.", {t.name: t.env for t in data.tasks}
    return "", {task.name: task.name for task in data.tasks}


def shown(value: float | None, digits: int = 0) -> str:
    """A cost, where it is known."""
    return "not in the rows" if value is None else f"{value:.{digits}f}"


def _paired(lines: Sequence[Comparison]) -> Table:
    """Comparisons, a line each."""
    rows = [
        [c.task, c.checkpoint, c.better, c.worse, lead(c), number(c.improvement, 2),
         str(c.seeds), c.verdict]
        for c in lines
    ]  # fmt: skip
    columns = ("task", "checkpoint", "agent", "against", "paired difference",
               "probability of improvement", "common seeds", "verdict")  # fmt: skip
    return Table(columns, rows, 4)
