"""Sections of a report: each a table in words and numbers with its figures; pages are made of them.
Those about scores are in score_sections.py.

A section that has nothing to say is None, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from decision_seq.config import in_words
from decision_seq.eval.report import figures
from decision_seq.eval.report.data import Data
from decision_seq.eval.report.parts import Figure, Section, Table
from decision_seq.eval.report.runs import datasets, inspected, reported
from decision_seq.eval.report.score_sections import (
    against,
    comparison,
    film,
    glance,
    scores,
    shown,
    side_by_side,
    success,
    together,
)
from decision_seq.eval.report.scores import number
from decision_seq.eval.report.tables import FAR, Cost, PairedScores


def sections(data: Data) -> list[Section]:
    """All sections that have something to say, in reading order."""
    makers = (glance, side_by_side, scores, film, success, comparison, against, together,
              targets, learning, checkpoints, spending, tried, contexts, cost,
              lookback)  # fmt: skip
    return [section for maker in makers if (section := maker(data)) is not None]


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
         *both(v), difference(v)]
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
         *(f"{score:z.{s.digits}f}" for score in (s.scores[0], s.scores[-1])),
         str(s.episodes * s.candidates)]
        for s in data.selections
    ]  # fmt: skip
    columns = ("dataset", "checkpoints at steps", "agent", "candidates", "episodes to judge one",
               "score of a random one", "score of the chosen", "rollouts spent")  # fmt: skip
    return Section(
        "What choosing by rollouts is worth",
        "A policy chosen by rollouts in the environment costs rollouts, which offline learning is "
        "meant to save. Candidates are all kept checkpoints at all targets asked for, or a sweep's "
        "trials; the score of the chosen one comes from other rollouts than those that chose it.",
        drawn,
        "Expected score of the one that looks best among as many random candidates as the rollouts "
        "pay for, after Unifloral (arXiv:2504.11453).",
        Table(columns, rows, 3),
    )


def tried(data: Data) -> Section | None:
    """Trials of a sweep."""
    if not data.trials:
        return None
    keys = list(dict.fromkeys(key for trial in data.trials for key in trial.parameters))
    rows = [
        [t.agent, *(in_words(t.parameters.get(key)) for key in keys), f"{t.judged:.5g}",
         str(t.episodes)]
        for t in data.trials
    ]  # fmt: skip
    objective = " or ".join(sorted({t.objective.replace("_", " ") for t in data.trials}))
    return Section(
        "What the sweep tried",
        "Settings by trial, the best first. Its lead over the next may be chance, and what judged "
        "it flatters it: its score above is from other rollouts.",
        table=Table(("trial", *keys, objective, "episodes to judge it"), rows),
    )


def contexts(data: Data) -> Section | None:
    """Window against stream."""
    if not data.contexts:
        return None
    rows = [
        [v.dataset, v.env, v.target, v.checkpoint, v.agent, str(v.seeds), *both(v),
         difference(v), f"{v.milliseconds[0]:.2f}", f"{v.milliseconds[1]:.2f}"]
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


def difference(line: PairedScores) -> str:
    """The paired difference with its interval."""
    return f"{'+' * (line.difference.value > 0)}{number(line.difference, line.digits)}"


def both(line: PairedScores) -> tuple[str, str]:
    """The two scores."""
    return f"{line.base:z.{line.digits}f}", f"{line.other:z.{line.digits}f}"


def _cost_row(c: Cost, where: Sequence[str]) -> list[str]:
    place = f" [{where.index(c.hardware) + 1}]" if len(where) > 1 else ""
    return [
        c.checkpoint, c.agent + place, c.dataset, str(c.context_length), c.context,
        "?" if c.lanes is None else str(c.lanes), str(c.runs), shown(c.parameters),
        shown(c.training_seconds), shown(c.training_memory_mib),
        shown(c.milliseconds_per_step, 2), shown(c.rollout_memory_mib),
    ]  # fmt: skip
