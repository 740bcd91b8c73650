"""What a report says beside scores: checkpoints, contexts, costs, lookback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import Run, checkpoints
from decision_seq.eval.report.scores import Task, score_digits, unit_of, value
from decision_seq.eval.rows import Row, target_label

CostKey = tuple[str, str, str, int, str, int | None]  # the first fields of `Cost`
ON_THE_WAY = ("interval", "candidate")  # checkpoints that are scored, but not the run's result
FAR = 30  # tokens back, of which the report gives the influence


@dataclass(frozen=True)
class PairedScores:
    """An agent's mean scores in two evaluations that share training and environment seeds: of two
    checkpoints, or in two contexts."""

    dataset: str
    env: str
    target: str
    context: str  # "" where contexts are compared
    agent: str
    first: str  # what `base` is of: last, or window
    second: str  # what `other` is of: best or validation, or stream
    checkpoint: str  # that `base` is of, in words
    other_checkpoint: str  # that `other` is of
    candidates: str  # from how many checkpoints `second` was chosen; "" for contexts
    seeds: int
    base: float
    other: float
    difference: stats.Estimate  # other - base, on common training and environment seeds
    unit: str
    digits: int  # decimals of the scores
    milliseconds: tuple[float, float]  # a step, of both; medians over episodes


@dataclass(frozen=True)
class Cost:
    """What training and acting cost. Medians over runs: one that shared its machine takes many
    times as long."""

    agent: str
    dataset: str
    hardware: str
    context_length: int
    context: str
    lanes: int | None
    checkpoint: str  # that acted, in words
    runs: int
    parameters: int | None
    training_seconds: float | None
    training_memory_mib: float | None
    milliseconds_per_step: float  # of all lanes, agent and environments
    rollout_memory_mib: float | None


@dataclass(frozen=True)
class Lookback:
    """How far back the influence on an agent's action reaches, as `inspect` measured it."""

    dataset: str
    agent: str
    seed: int
    checkpoint: str
    context_length: int  # steps of the windows looked at
    half_life: dict[str, int] | None  # in tokens and steps; None where the past has no influence
    far: float | None  # influence FAR tokens back over that of the token acted at; None: not seen


@dataclass(frozen=True)
class Validation:
    """Loss on held-out episodes of the reported checkpoint: over all, or those of one source."""

    dataset: str
    source: str  # "" for all
    agent: str
    seeds: int
    mean: float
    spread: float  # standard deviation over training seeds


@dataclass(frozen=True)
class Selection:
    """Expected score when checkpoints and targets are chosen by rollouts, by how many are spent."""

    dataset: str
    agent: str
    candidates: int
    checkpoints: str  # among them, in words
    episodes: int  # that judge a candidate
    scores: list[float]  # after 1, 2, ... candidates; mean over seeds
    unit: str
    digits: int  # decimals of the scores


def last_or_best(runs: Sequence[Run]) -> list[PairedScores]:
    """Scores of chosen checkpoints next to the last one's, where both were evaluated."""
    lines = []
    for kind in ("validation", "best"):
        pairs = [(run, run.rows, newest(run.others, kind)) for run in runs]
        lines += _paired_scores(pairs, "last", kind, lambda row: row["context"])
    return lines


def newest(rows: Sequence[Row], kind: str) -> list[Row]:
    """Of the rows of one kind of checkpoint, those of its latest evaluation in each environment and
    context and at each target: an earlier one was of another checkpoint, and is no part of a
    mean."""
    own = [row for row in rows if row["checkpoint"] == kind]
    step = {_kind(row): row["step"] for row in own}  # the last in the file
    return [row for row in own if row["step"] == step[_kind(row)]]


def window_or_stream(runs: Sequence[Run]) -> list[PairedScores]:
    """Scores in the two contexts, where both were evaluated."""

    def of(run: Run, context: str) -> list[Row]:
        return [row for row in run.rows if row["context"] == context]

    pairs = [(run, of(run, "window"), of(run, "stream")) for run in runs]
    return _paired_scores(pairs, "window", "stream", lambda row: "")


def _paired_scores(
    pairs: Iterable[tuple[Run, list[Row], list[Row]]],
    first: str,
    second: str,
    context: Callable[[Row], str],
) -> list[PairedScores]:
    """A line for each dataset, environment, target, context and agent that has both."""
    groups: dict[tuple[str, str, str, str, str], list[tuple[Run, Row, Row]]] = {}
    for run, base, other in pairs:
        found = {(r["env"], target_label(r), context(r), r["env_seed"]): r for r in base}
        for row in other:
            kind = (row["env"], target_label(row), context(row))
            if mate := found.get((*kind, row["env_seed"])):
                key = (run.dataset["name"], *kind, run.agent)
                groups.setdefault(key, []).append((run, mate, row))
    lines = []
    for key, matched in sorted(groups.items()):
        unit = unit_of([row for _, *pair in matched for row in pair])
        x: dict[tuple[str, int], list[float]] = {}
        y: dict[tuple[str, int], list[float]] = {}
        for _, mate, row in matched:
            x.setdefault(("", row["train_seed"]), []).append(value(row, unit))
            y.setdefault(("", row["train_seed"]), []).append(value(mate, unit))
        others, bases = ({k: float(np.mean(v)) for k, v in side.items()} for side in (x, y))
        counts = sorted({str(row["candidates"] or "?") for _, _, row in matched})
        lines.append(
            PairedScores(
                *key,
                first,
                second,
                checkpoint=checkpoints((run, mate) for run, mate, _ in matched),
                other_checkpoint=checkpoints((run, row) for run, _, row in matched),
                candidates=", ".join(counts) if first == "last" else "",
                seeds=len(x),
                base=float(np.mean(list(bases.values()))),
                other=float(np.mean(list(others.values()))),
                difference=stats.paired_difference(others, bases),
                unit=unit,
                digits=score_digits([run for run, _, _ in pairs], key[0], unit),
                milliseconds=(
                    float(np.median([mate["milliseconds_per_step"] for _, mate, _ in matched])),
                    float(np.median([row["milliseconds_per_step"] for _, _, row in matched])),
                ),
            )
        )
    return lines


def costs(runs: Sequence[Run]) -> list[Cost]:
    """A line for each agent, dataset, hardware, context length, context and number of lanes."""
    groups: dict[CostKey, list[tuple[Run, list[Row]]]] = {}
    for run in runs:
        kinds: dict[tuple[str, int, str, int | None], list[Row]] = {}
        for row in run.rows:
            kind = (hardware_of(row), row["context_length"], row["context"], row["lanes"])
            kinds.setdefault(kind, []).append(row)
        for kind, rows in kinds.items():
            groups.setdefault((run.agent, run.dataset["name"], *kind), []).append((run, rows))
    lines = []
    for key, members in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        rows = [row for _, own in members for row in own]
        lines.append(
            Cost(
                *key,
                checkpoint=checkpoints((run, row) for run, own in members for row in own),
                runs=len(members),
                parameters=next((r["parameters"] for r in rows if r["parameters"]), None),
                training_seconds=_median([run.training_seconds for run, _ in members]),
                training_memory_mib=_median([run.training_memory_mib for run, _ in members]),
                milliseconds_per_step=float(
                    np.median([np.mean([r["milliseconds_per_step"] for r in own])
                               for _, own in members])
                ),
                rollout_memory_mib=_median([r["peak_memory_mib"] for r in rows]),
            )
        )  # fmt: skip
    return lines


def score_by_step(runs: Sequence[Run], tasks: Sequence[Task]) -> dict[str, Any]:
    """task -> agent -> [(step, mean score over seeds)], of runs evaluated at several steps: in the
    task's context, or in the one in which they were."""
    curves: dict[str, Any] = {}
    every = {run.folder: [*run.others, *run.rows] for run in runs}
    for task in tasks:
        on_the_way = {
            row["context"]
            for run in runs
            for row in every[run.folder]
            if row["checkpoint"] in ON_THE_WAY and run.dataset["name"] == task.dataset
        }
        context = task.context if task.context in on_the_way else min(on_the_way, default="")
        name = task.name if context == task.context else f"{task.name} ({context})"
        own = replace(task, context=context)
        for run in runs:
            rows = [r for r in every[run.folder] if of_task(run, r, own)]
            rows = [r for r in rows if r["checkpoint"] in ("last", *ON_THE_WAY)]
            if len({row["step"] for row in rows}) > 1:
                steps = curves.setdefault(name, {}).setdefault(run.agent, {})
                for row in rows:
                    steps.setdefault(row["step"], {}).setdefault(row["train_seed"], []).append(
                        value(row, task.unit)
                    )
    return {
        task: {
            agent: [
                (step, float(np.mean([np.mean(values) for values in by_seed.values()])))
                for step, by_seed in sorted(steps.items())
            ]
            for agent, steps in by_agent.items()
        }
        for task, by_agent in curves.items()
    }


def selections(runs: Sequence[Run], tasks: Sequence[Task]) -> list[Selection]:
    """What choosing among kept checkpoints and targets is worth, by the rollouts it costs: of runs
    on which `evaluate --checkpoint best` was used."""
    lines = []
    for task in tasks:
        curves: dict[tuple[str, int, str, int], list[np.ndarray]] = {}
        for run in runs:
            if len(found := _candidates(run, task)) < 2:
                continue
            steps = ", ".join(map(str, sorted({step for step, _ in found})))
            fewest = min(len(chosen) for chosen, _ in found.values())
            rollouts = np.array([chosen[:fewest] for chosen, _ in found.values()])
            truths = np.array([np.mean(own) for _, own in found.values()])
            for episodes in sorted({1, fewest}):
                key = (run.agent, len(found), steps, episodes)
                curve = stats.selection_curve(rollouts, truths, episodes)
                curves.setdefault(key, []).append(curve)
        lines += [
            Selection(task.dataset, *key, np.mean(group, axis=0).tolist(), task.unit, task.digits)
            for key, group in sorted(curves.items())
        ]
    return lines


def _candidates(run: Run, task: Task) -> dict[tuple[int, str], tuple[list[float], list[float]]]:
    """Of every checkpoint and target: scores of the rollouts that choose, and of the others."""
    found: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    for row in run.others:
        if row["checkpoint"] in ("selection", "candidate") and of_task(run, row, task, False):
            pair = found.setdefault((row["step"], target_label(row)), ([], []))
            pair[row["checkpoint"] == "candidate"].append(value(row, task.unit))
    return {key: pair for key, pair in sorted(found.items()) if all(pair)}


def _kind(row: Row) -> tuple[str, str, str]:
    return row["env"], row["context"], target_label(row)


def of_task(run: Run, row: Row, task: Task, same_target: bool = True) -> bool:
    """Whether the row of a run is of the task; at its target, or at any."""
    return (
        (run.dataset["name"], row["env"], row["context"]) == (task.dataset, task.env, task.context)
        and (not same_target or target_label(row) in (task.target, task.unasked))
        and (task.unit == "return" or row["normalized_score"] is not None)
    )


def validations(runs: Sequence[Run]) -> list[Validation]:
    """Every agent's validation loss on its dataset and, of a mixture, on each source; none of runs
    that held nothing out."""
    losses: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for name, loss in run.validation.items():
            source = name.removeprefix("validation_loss").removeprefix("/")
            losses.setdefault((run.dataset["name"], source, run.agent), []).append(loss)
    return [
        Validation(*key, len(found), float(np.mean(found)), float(np.std(found)))
        for key, found in sorted(losses.items())
    ]


def looks_back(runs: Sequence[Run]) -> list[Lookback]:
    """Influence of the past on the action of each run that was inspected."""
    lines = []
    for run in runs:
        if (inspection := run.inspection) is None:
            continue
        by_lag = [row["mean"] for row in inspection["influence"]["by_lag"]]
        lines.append(
            Lookback(
                dataset=run.dataset["name"],
                agent=run.agent,
                seed=run.config.seed,
                checkpoint=run.checkpoint(inspection),
                context_length=inspection["context_length"],
                half_life=inspection["influence"]["half_life"],
                far=by_lag[FAR] / by_lag[0] if len(by_lag) > FAR and by_lag[0] else None,
            )
        )
    return lines


def hardware_of(row: Row) -> str:
    """The row's hardware in words."""
    if not (found := row["hardware"]):
        return "not in the rows, which are of an older version"
    parts = [f"{found['cores']} x {found['cpu']}", f"torch threads: {found['threads']}"]
    return ", ".join([*parts, found["gpu"]] if found["gpu"] else [*parts, "no GPU"])


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None
