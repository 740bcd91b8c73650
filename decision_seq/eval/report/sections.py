"""Sections of a report: each a table in words and numbers with its figures; pages are made of them.

A section that has nothing to say is None, and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from decision_seq.eval.report import figures
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.data import Data
from decision_seq.eval.report.runs import datasets, inspected, reported
from decision_seq.eval.report.tables import FAR, Cost, PairedScores


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it shows for those who do not see it."""

    draw: Callable[[], str]  # as SVG
    alt: str

    @cached_property
    def svg(self) -> str:
        """The drawing: a page and a file of it are the same."""
        return self.draw()


@dataclass(frozen=True)
class Table:
    """Cells in words; the first `text` columns are left-aligned."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    text: int = 1
    marked: frozenset[int] = frozenset()  # rows that stand out

    def folded(self) -> tuple[str, Table]:
        """What all rows have in common, in words, and the table without those columns: a phone has
        no room for a column that says the same in every row. The last of the text columns, what a
        row is about, stays, and so does a single row."""
        same = [
            i
            for i in range(self.text - 1)
            if len(self.rows) > 1 and len({row[i] for row in self.rows}) == 1
        ]
        words = "; ".join(f"{self.columns[i]}: {self.rows[0][i]}" for i in same)
        keep = [i for i in range(len(self.columns)) if i not in same]
        rows = [[row[i] for i in keep] for row in self.rows]
        columns = tuple(self.columns[i] for i in keep)
        return words, Table(columns, rows, self.text - len(same), self.marked)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    caption: str = ""  # of all figures together
    table: Table | None = None
    note: str = ""


def sections(data: Data) -> list[Section]:
    """All sections that have something to say, in reading order."""
    makers = (scores, success, comparison, together, targets, learning, checkpoints, spending,
              contexts, cost, lookback)  # fmt: skip
    return [section for maker in makers if (section := maker(data)) is not None]


def scores(data: Data) -> Section | None:
    """The score table."""
    if not data.scores:
        return None
    rows = []
    for s in data.scores:
        spread = f" ± {s.spread:.1f}" if len(s.seeds) > 1 else ""
        unit = " (return)" if s.unit == "return" else ""
        seeds = ", ".join(f"{mean:z.1f} (seed {seed})" for seed, mean in s.seeds)
        rows.append(
            [s.dataset, s.env, s.checkpoint, s.target, s.context, s.agent,
             f"{s.mean:z.1f}{spread}{bracket(s.interval)}{unit}", seeds, f"{s.mean_return:z.0f}",
             str(s.episodes)]
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
        + " Bold: the highest mean for that dataset, target and context. It may still be chance: "
        "the next section says how sure it is." * bool(data.comparisons),
        tuple(
            Figure(
                partial(figures.seed_scores, task, data.style),
                f"Score of every training seed on {task.name} ({task.checkpoint}), a row an agent: "
                + "; ".join(f"{a} {np.mean(task.of(a)):z.1f}" for a in sorted(task.scores)),
            )
            for task in data.tasks
        ),
        "Each dot is a training seed, the bar their mean, and the line its 95 % interval, where "
        f"there are seeds enough. {data.chosen_by}",
        Table(columns, rows, 6, frozenset(i for i, s in enumerate(data.scores) if s.best)),
        note,
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
    """How much better each task's leader is than the others."""
    rows = []
    for c in data.comparisons:
        lead = "no common scale"
        if c.difference:
            lead = f"{c.difference.value:z.1f}{bracket(c.difference.interval)}"
        probability = f"{c.improvement.value:.2f}{bracket(c.improvement.interval, 2)}"
        sure = {True: "better", False: "can be chance", None: "too few seeds to say"}[c.sure]
        rows.append(
            [c.task, c.checkpoint, c.better, c.worse, lead, probability, str(c.seeds), sure]
        )
    if not rows:
        return None
    columns = ("task", "checkpoint", "agent", "against", "paired difference",
               "probability of improvement", "common seeds", "verdict")  # fmt: skip
    return Section(
        "Which is better, and how sure",
        "The agent with the highest mean on each task against every other.",
        table=Table(columns, rows, 4),
        note="Differences are between runs of the same training seed in the same environment "
        "seeds. Probability of improvement: how likely a seed of the one scores higher than a seed "
        "of the other. In brackets 95 % intervals, of one comparison each: of twenty comparisons "
        "between equals, one is expected to mislead.",
    )


def together(data: Data) -> Section | None:
    """Statistics and performance profile of all tasks."""
    if not data.aggregates:
        return None
    names = list(next(iter(data.aggregates.values())))
    rows = [
        [agent, *(f"{found[name].value:z.1f}{bracket(found[name].interval)}" for name in names)]
        for agent, found in data.aggregates.items()
    ]
    of = data.pooled_checkpoint
    alt = f"Share of seeds above each score ({of}): " + ", ".join(data.aggregates)
    return Section(
        "All seeds of all tasks together",
        "Tasks: " + "; ".join(task.name for task in data.pooled) + f". Checkpoint: {of}.",
        (Figure(partial(figures.profiles, data.pooled, data.thresholds, of, data.style), alt),),
        "Performance profile: the share of training seeds that score above each threshold, every "
        "task counting alike. A line above another everywhere is better whatever the measure.",
        Table(("agent", *names), rows),
        "The interquartile mean is that of the middle half of all seeds. "
        + "The optimality gap is how far scores fall short of 100 on average; lower is better. "
        * ("optimality gap" in names)
        + "95 % intervals in brackets, from seeds resampled within their task, where each has "
        f"{stats.FEWEST} or more.",
    )


def targets(data: Data) -> Section | None:
    """Target against achieved return."""
    if not data.scores:
        return None
    drawn = tuple(
        Figure(
            partial(figures.target_return, data.runs, name, data.style),
            f"Achieved against target return on {name} ({reported(data.runs, name)}), an agent a "
            "line, with the returns in the data as a histogram",
        )
        for name in datasets(data.runs)
    )
    return Section(
        "Does it follow the target?",
        figures=drawn,
        caption="Achieved return against the target asked for. Each dot is a training seed, the "
        "line goes through their means. Dashed: exactly what was asked. Grey bars: returns of the "
        "episodes in the data. A level line is an agent that takes no target, or does not heed it.",
    )


def learning(data: Data) -> Section:
    """Loss and, where there are several checkpoints, score by step."""
    drawn = [
        Figure(
            partial(figures.losses, data.runs, name, data.style),
            f"Training and validation loss on {name} against the gradient step, by agent",
        )
        for name in datasets(data.runs)
    ]
    drawn += [
        Figure(
            partial(figures.scores_by_step, task, curves, data.style),
            f"Score on {task} against the gradient step, by agent",
        )
        for task, curves in data.score_by_step.items()
    ]
    caption = "Loss on training windows (line) and on held-out episodes (dots), while training."
    if data.score_by_step:
        caption += (
            " Score by step: rollouts on the way or of kept checkpoints, each of the weights at "
            "its step. Choosing by them costs rollouts and overstates what is chosen."
        )
    rows = [
        [v.dataset, v.source or "all held-out episodes", v.agent, str(v.seeds),
         f"{v.mean:.4g}" + (f" ± {v.spread:.2g}" if v.seeds > 1 else "")]
        for v in data.validations
    ]  # fmt: skip
    columns = ("dataset", "of", "agent", "seeds", "validation loss")
    table = Table(columns, rows, 3) if rows else None
    note = "± is the standard deviation over training seeds." if rows else ""
    if any(v.source for v in data.validations):
        note += " The mean over a mixture hides what is lost on the better part of it."
    return Section("Learning curves", figures=tuple(drawn), caption=caption, table=table, note=note)


def checkpoints(data: Data) -> Section | None:
    """Last against chosen checkpoints."""
    if not data.choices:
        return None
    rows = [
        [v.dataset, v.env, v.target, v.context, v.checkpoint, v.other_checkpoint, v.agent,
         v.candidates, str(v.seeds),
         f"{v.base:z.1f}", f"{v.other:z.1f}", difference(v)]
        for v in data.choices
    ]  # fmt: skip
    columns = ("dataset", "environment", "target", "context", "last is", "chosen is", "agent",
               "candidates", "seeds", "last", "chosen", "difference")  # fmt: skip
    return Section(
        "Last or best checkpoint",
        "The scores above are those of the last checkpoint. Here is what choosing one changes, on "
        "the same environment seeds. `best` was chosen by rollouts of its own, `validation` has "
        "the lowest validation loss and cost none.",
        table=Table(columns, rows, 7),
    )


def spending(data: Data) -> Section | None:
    """Score by online evaluations."""
    if not data.selections:
        return None
    candidates = {
        name: "; ".join(dict.fromkeys(s.checkpoints for s in data.selections if s.dataset == name))
        for name in sorted({s.dataset for s in data.selections})
    }
    drawn = tuple(
        Figure(
            partial(
                figures.evaluations_spent,
                [s for s in data.selections if s.dataset == name],
                data.style,
            ),
            f"Expected score on {name} of the policy chosen by rollouts, against rollouts spent; "
            f"checkpoints at steps {candidates[name]}",
        )
        for name in candidates
    )
    rows = [
        [s.dataset, s.checkpoints, s.agent, str(s.candidates), str(s.episodes),
         f"{s.scores[0]:z.1f}", f"{s.scores[-1]:z.1f}", str(s.episodes * s.candidates)]
        for s in data.selections
    ]  # fmt: skip
    columns = ("dataset", "checkpoints at steps", "agent", "candidates", "episodes to judge one",
               "score of a random one", "score of the chosen", "rollouts spent")  # fmt: skip
    return Section(
        "What choosing by rollouts is worth",
        "A policy chosen by rollouts in the environment costs rollouts, which offline learning is "
        "meant to save. Candidates are all kept checkpoints at all targets asked for; the score of "
        "the chosen one comes from other rollouts than those that chose it.",
        drawn,
        "Expected score of the one that looks best among as many random candidates as the rollouts "
        "pay for, after Unifloral (arXiv:2504.11453).",
        Table(columns, rows, 3),
    )


def contexts(data: Data) -> Section | None:
    """Window against stream."""
    if not data.contexts:
        return None
    rows = [
        [v.dataset, v.env, v.target, v.checkpoint, v.agent, str(v.seeds), f"{v.base:z.1f}",
         f"{v.other:z.1f}", difference(v), f"{v.milliseconds[0]:.2f}", f"{v.milliseconds[1]:.2f}"]
        for v in data.contexts
    ]  # fmt: skip
    columns = ("dataset", "environment", "target", "checkpoint", "agent", "seeds", "window",
               "stream", "difference", "ms a step, window", "ms a step, stream")  # fmt: skip
    return Section(
        "Window or stream",
        "`window` recomputes the last K steps at every step, as the papers do; `stream` carries "
        "the state over the whole episode at constant cost. They agree for K steps.",
        table=Table(columns, rows, 5),
    )


def cost(data: Data) -> Section | None:
    """Parameters, time and memory."""
    if not data.costs:
        return None
    drawn, of = [], "; ".join(dict.fromkeys(c.checkpoint for c in data.costs))
    if len({(c.context_length, c.lanes) for c in data.costs}) > 1:
        for field, label in (
            ("milliseconds_per_step", "rollout, ms a step"),
            ("rollout_memory_mib", "rollout, peak memory in MiB"),
        ):
            if any(getattr(c, field) is not None for c in data.costs):
                draw = partial(figures.cost_curves, data.costs, field, label, data.style)
                alt = f"{label} against context length ({of}), by agent and lanes"
                drawn.append(Figure(draw, alt))
    columns = ("checkpoint that acted", "agent", "dataset", "K", "context", "lanes", "runs",
               "parameters", "training, s", "training, MiB", "rollout, ms a step",
               "rollout, MiB")  # fmt: skip
    where = sorted({c.hardware for c in data.costs})
    return Section(
        "What it costs",
        figures=tuple(drawn),
        caption="Against the context length K.",
        table=Table(columns, [_cost_row(c, where) for c in data.costs], 3),
        note="Milliseconds are of one step of all lanes together, agent and environments. Memory "
        "is the most that the process held, libraries included; on a GPU what was allocated there. "
        "Measured on " + "; ".join(f"[{i + 1}] {name}" if len(where) > 1 else name
                                   for i, name in enumerate(where)) + ".",
    )  # fmt: skip


def lookback(data: Data) -> Section | None:
    """What `inspect` saw."""
    if not data.looks_back:
        return None
    seen = [run for run in data.runs if run.inspection]
    drawn = tuple(
        Figure(
            partial(figures.influence, seen, name, data.style),
            f"Influence of the past on the action on {name} ({inspected(seen, name)}) against "
            "steps back, by agent",
        )
        for name in datasets(seen)
    )
    rows = []
    for line in data.looks_back:
        half = line.half_life
        reach = f"{half['tokens']} tokens ({half['steps']} steps)" if half else "no influence"
        far = "not measured" if line.far is None else f"{line.far:.2g}"
        rows.append([line.dataset, line.checkpoint, line.agent, str(line.seed),
                     str(line.context_length), reach, far])  # fmt: skip
    columns = ("dataset", "checkpoint", "agent", "seed", "steps seen",
               "half of the past's influence within", f"influence {FAR} tokens back")  # fmt: skip
    return Section(
        "What it looks back at",
        figures=drawn,
        caption="Norm of the derivative of the action by the tokens of each earlier step, relative "
        "to those of the step acted in; a line a run. Runs that `decision-seq inspect` has seen.",
        table=Table(columns, rows, 3),
        note="The last column is relative to the token at which the action is read.",
    )


def bracket(interval: stats.Interval | None, digits: int = 1) -> str:
    """An interval after a number, or nothing."""
    if interval is None:
        return ""
    return f" [{interval.low:z.{digits}f}, {interval.high:z.{digits}f}]"


def difference(line: PairedScores) -> str:
    """The paired difference with its interval."""
    return f"{line.difference.value:+z.1f}{bracket(line.difference.interval)}"


def _cost_row(c: Cost, where: Sequence[str]) -> list[str]:
    def shown(value: float | None, digits: int = 0) -> str:
        return "not in the rows" if value is None else f"{value:.{digits}f}"

    place = f" [{where.index(c.hardware) + 1}]" if len(where) > 1 else ""
    return [
        c.checkpoint, c.agent + place, c.dataset, str(c.context_length), c.context,
        "?" if c.lanes is None else str(c.lanes), str(c.runs), shown(c.parameters),
        shown(c.training_seconds), shown(c.training_memory_mib),
        shown(c.milliseconds_per_step, 2), shown(c.rollout_memory_mib),
    ]  # fmt: skip
