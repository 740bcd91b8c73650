"""What a report says beside scores: checkpoints, contexts, costs, lookback, protocol, commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decision_seq.envs.registry import NAMES
from decision_seq.eval.compare.ledger import read_ledger
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.runs import Run
from decision_seq.eval.report.scores import Task, unit_of, value
from decision_seq.eval.rows import Row, target_label

CostKey = tuple[str, str, str, int, str, int | None]  # the first fields of `Cost`
FAR = 30  # tokens back, of which the report gives the influence


@dataclass(frozen=True)
class Versus:
    """Two evaluations of the same agents next to each other: another checkpoint or context."""

    dataset: str
    env: str
    target: str
    context: str  # "" where contexts are compared
    agent: str
    first: str  # what `base` is of: last, or window
    second: str  # what `other` is of: best or validation, or stream
    candidates: str  # from how many checkpoints `second` was chosen; "" for contexts
    seeds: int
    base: float
    other: float
    difference: stats.Estimate  # other - base, on common training and environment seeds
    unit: str
    milliseconds: tuple[float, float]  # a step, of both


@dataclass(frozen=True)
class Cost:
    """What training and acting cost; means over runs."""

    agent: str
    dataset: str
    hardware: str
    context_length: int
    context: str
    lanes: int | None
    runs: int
    parameters: int | None
    training_seconds: float | None
    training_memory_mib: float | None
    milliseconds_per_step: float  # of all lanes, agent and environments
    rollout_memory_mib: float | None


@dataclass(frozen=True)
class LooksBack:
    """What `inspect` measured."""

    dataset: str
    agent: str
    seed: int
    checkpoint: str
    context_length: int  # steps of the windows looked at
    half_life: dict[str, int] | None  # in tokens and steps; None where the past has no influence
    far: float | None  # influence FAR tokens back over that of the token acted at; None: not seen


@dataclass(frozen=True)
class Selection:
    """Expected score when checkpoints and targets are chosen by rollouts, by how many are spent."""

    dataset: str
    agent: str
    candidates: int
    episodes: int  # that judge a candidate
    scores: list[float]  # after 1, 2, ... candidates; mean over seeds
    unit: str


def last_or_best(runs: Sequence[Run]) -> list[Versus]:
    """Chosen checkpoints next to the last, where both were evaluated."""
    lines = []
    for kind in ("validation", "best"):
        pairs = [
            (run, run.rows, [r for r in run.others if r["checkpoint"] == kind]) for run in runs
        ]
        lines += _versus(pairs, "last", kind, lambda row: row["context"])
    return lines


def window_or_stream(runs: Sequence[Run]) -> list[Versus]:
    """Both contexts next to each other, where both were evaluated."""

    def of(run: Run, context: str) -> list[Row]:
        return [row for row in run.rows if row["context"] == context]

    pairs = [(run, of(run, "window"), of(run, "stream")) for run in runs]
    return _versus(pairs, "window", "stream", lambda row: "")


def _versus(
    pairs: Iterable[tuple[Run, list[Row], list[Row]]],
    first: str,
    second: str,
    context: Callable[[Row], str],
) -> list[Versus]:
    """A line for each dataset, environment, target, context and agent that has both."""
    groups: dict[tuple[str, str, str, str, str], list[tuple[Row, Row]]] = {}
    for run, base, other in pairs:
        found = {(r["env"], target_label(r), context(r), r["env_seed"]): r for r in base}
        for row in other:
            kind = (row["env"], target_label(row), context(row))
            if mate := found.get((*kind, row["env_seed"])):
                key = (run.dataset["name"], *kind, run.agent)
                groups.setdefault(key, []).append((mate, row))
    lines = []
    for key, matched in sorted(groups.items()):
        unit = unit_of([row for pair in matched for row in pair])
        x: dict[tuple[str, int], list[float]] = {}
        y: dict[tuple[str, int], list[float]] = {}
        for mate, row in matched:
            x.setdefault(("", row["train_seed"]), []).append(value(row, unit))
            y.setdefault(("", row["train_seed"]), []).append(value(mate, unit))
        others, bases = ({k: float(np.mean(v)) for k, v in side.items()} for side in (x, y))
        counts = sorted({str(row["candidates"] or "?") for _, row in matched})
        lines.append(
            Versus(
                *key,
                first,
                second,
                candidates=", ".join(counts) if first == "last" else "",
                seeds=len(x),
                base=float(np.mean(list(bases.values()))),
                other=float(np.mean(list(others.values()))),
                difference=stats.paired_difference(others, bases),
                unit=unit,
                milliseconds=(
                    float(np.mean([mate["milliseconds_per_step"] for mate, _ in matched])),
                    float(np.mean([row["milliseconds_per_step"] for _, row in matched])),
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
                runs=len(members),
                parameters=next((r["parameters"] for r in rows if r["parameters"]), None),
                training_seconds=_mean([run.training_seconds for run, _ in members]),
                training_memory_mib=_mean([run.training_memory_mib for run, _ in members]),
                milliseconds_per_step=float(np.mean([r["milliseconds_per_step"] for r in rows])),
                rollout_memory_mib=_mean([r["peak_memory_mib"] for r in rows]),
            )
        )
    return lines


def score_by_step(runs: Sequence[Run], tasks: Sequence[Task]) -> dict[str, Any]:
    """task -> agent -> [(step, mean score over seeds)], of runs evaluated at several steps."""
    curves: dict[str, Any] = {}
    for task in tasks:
        for run in runs:
            rows = [r for r in [*run.others, *run.rows] if _of_task(run, r, task)]
            rows = [r for r in rows if r["checkpoint"] in ("last", "interval", "candidate")]
            if len({row["step"] for row in rows}) > 1:
                steps = curves.setdefault(task.name, {}).setdefault(run.agent, {})
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
        curves: dict[tuple[str, int, int], list[np.ndarray]] = {}
        for run in runs:
            if len(found := _candidates(run, task)) < 2:
                continue
            fewest = min(len(chosen) for chosen, _ in found)
            rollouts = np.array([chosen[:fewest] for chosen, _ in found])
            truths = np.array([np.mean(own) for _, own in found])
            for episodes in sorted({1, fewest}):
                key = (run.agent, len(found), episodes)
                curve = stats.selection_curve(rollouts, truths, episodes)
                curves.setdefault(key, []).append(curve)
        lines += [
            Selection(task.dataset, *key, np.mean(group, axis=0).tolist(), task.unit)
            for key, group in sorted(curves.items())
        ]
    return lines


def _candidates(run: Run, task: Task) -> list[tuple[list[float], list[float]]]:
    """Of every checkpoint and target: scores of the rollouts that choose, and of the others."""
    found: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    for row in run.others:
        if row["checkpoint"] in ("selection", "candidate") and _of_task(run, row, task, False):
            pair = found.setdefault((row["step"], target_label(row)), ([], []))
            pair[row["checkpoint"] == "candidate"].append(value(row, task.unit))
    return [pair for _, pair in sorted(found.items()) if all(pair)]


def _of_task(run: Run, row: Row, task: Task, same_target: bool = True) -> bool:
    return (
        (run.dataset["name"], row["env"], row["context"]) == (task.dataset, task.env, task.context)
        and (not same_target or target_label(row) in (task.target, "none"))
        and (task.unit == "return" or row["normalized_score"] is not None)
    )


def looks_back(runs: Sequence[Run]) -> list[LooksBack]:
    """What the report says of each run's inspection."""
    lines = []
    for run in runs:
        if (inspection := run.inspection) is None:
            continue
        by_lag = [row["mean"] for row in inspection["influence"]["by_lag"]]
        lines.append(
            LooksBack(
                dataset=run.dataset["name"],
                agent=run.agent,
                seed=run.config.seed,
                checkpoint=f"{inspection['checkpoint']} ({inspection['step']})",
                context_length=inspection["context_length"],
                half_life=inspection["influence"]["half_life"],
                far=by_lag[FAR] / by_lag[0] if len(by_lag) > FAR and by_lag[0] else None,
            )
        )
    return lines


def protocol(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """How the numbers came about."""
    rows = [row for run in runs for row in run.rows]
    chosen = [r for run in runs for r in run.others if r["checkpoint"] in ("validation", "best")]

    def every(values: Iterable[Any]) -> str:
        return "; ".join(sorted({str(v) for v in values}))

    seeds = sorted({run.config.seed for run in runs})
    data = {f"{r.dataset['name']} ({r.dataset['hash']})": None for r in runs}
    lines = [
        ("datasets (hash of the episodes)", "; ".join(data)),
        ("environments", every(row["env"] for row in rows)),
        ("targets", every(map(_who_chose, rows))),
        ("checkpoint", f"last (gradient step {every(row['step'] for row in rows)})"),
    ]
    if chosen:
        lines.append(("chosen checkpoints, beside the last", every(map(_how_chosen, chosen))))
    lines += [
        ("context", every(map(_context, rows))),
        ("training seeds", ", ".join(map(str, seeds))),
        ("environment seeds", _span([row["env_seed"] for row in rows])),
        ("episodes a target and seed", every(_episodes(runs))),
    ]
    if any(row["normalized_score"] is not None for row in rows):
        named = [r["score_reference"] or "not named in the rows" for r in rows
                 if r["normalized_score"] is not None]  # fmt: skip
        lines.append(("references of normalized scores", every(named)))
    return [
        *lines,
        ("batch size", every(run.config.train.batch_size for run in runs)),
        ("learning rate", every(run.config.train.learning_rate for run in runs)),
        ("versions", every(", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in rows)),
        ("hardware of the rollouts", every(map(hardware_of, rows))),
    ]


def commands(runs: Sequence[Run]) -> list[str]:
    """What makes each run again: as a comparison's ledger has it, else from its folder."""
    lines: list[str] = []
    for run in runs:
        ledger = read_ledger(run.folder.parent.parent)
        started = [e for e in ledger if e["cell"] == run.folder.name and "commands" in e]
        if started:
            own = [str(command) for command in started[-1]["commands"]]
            again = shlex.split(own[-1])[2]
        else:
            again = f"NEW/{run.folder.name}"
            config = shlex.quote(str(run.folder / "config.yaml"))
            own = [f"decision-seq train {config} --out {shlex.quote(again)}"]
        # a comparison's commands may name the context that is the config's own
        context = {"--context", run.config.eval.context}
        known = {frozenset(shlex.split(c)) - context for c in own}
        more = dict.fromkeys(_evaluations(run, again))
        lines += [*own, *(c for c in more if frozenset(shlex.split(c)) - context not in known)]
    return lines


def _evaluations(run: Run, folder: str) -> list[str]:
    """The commands whose rows the report is made from; they say what differs from the config."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in [*run.rows, *run.others]:
        if row["checkpoint"] in ("last", "validation", "best"):
            key = ("checkpoint", "env", "context", "target_rule", "target_quantile")
            groups.setdefault(tuple(row[k] for k in key), []).append(row)
    plan, lines = run.config.eval, []
    name = run.config.env.rpartition(":")[2]  # its module is not imported for a report
    for (checkpoint, env, context, rule, quantile), rows in groups.items():
        seeds = [row["env_seed"] for row in rows]
        given = rule == "given" and rows[0]["target"] is not None
        targets = tuple(dict.fromkeys(row["target"] for row in rows)) if given else ()
        options = [
            ("--checkpoint", checkpoint, "last"),
            ("--env", env, NAMES.get(name.lower(), name)),
            ("--context", context, plan.context),
            ("--episodes", len(set(seeds)), plan.episodes),
            ("--seed", min(seeds), plan.seed),
        ]
        words = [w for flag, found, planned in options if found != planned for w in (flag, found)]
        if rule == "auto" and (plan.targets, plan.target_quantile) != ("auto", quantile):
            words += ["--targets", "auto", "--target-quantile", f"{quantile:g}"]
        elif targets and targets != plan.targets:
            words += ["--targets", *(f"{target:.10g}" for target in targets)]
        lines.append(shlex.join(["decision-seq", "evaluate", folder, *map(str, words)]))
    return lines


def hardware_of(row: Row) -> str:
    """The row's hardware in words."""
    if not (found := row["hardware"]):
        return "not in the rows, which are of an older version"
    parts = [f"{found['cores']} x {found['cpu']}", f"torch threads: {found['threads']}"]
    return ", ".join([*parts, found["gpu"]] if found["gpu"] else [*parts, "no GPU"])


def _who_chose(row: Row) -> str:
    if row["target"] is None:
        return "none asked for"
    if row["target_rule"] == "given":
        return "named by hand"
    return (
        f"auto: quantile {row['target_quantile']:g} of the data's returns given an episode's first "
        "observation"
    )


def _how_chosen(row: Row) -> str:
    count = row["candidates"] or "an unknown number of"
    return f"{row['checkpoint']}: {row['checkpoint_rule']}, out of {count} candidates"


def _context(row: Row) -> str:
    means = {
        "window": "the last K steps are recomputed at every step",
        "stream": "the state is carried over the whole episode",
    }.get(row["context"], "?")
    return f"{row['context']}, K = {row['context_length']}: {means}"


def _episodes(runs: Sequence[Run]) -> set[int]:
    counts = set()
    for run in runs:
        kinds = Counter((r["env"], r["context"], target_label(r)) for r in run.rows)
        counts |= set(kinds.values())
    return counts


def _span(seeds: list[int]) -> str:
    return f"{min(seeds)} to {max(seeds)}, the same for every agent and target"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
