"""How a trained run is evaluated, and whether its rows say that it has been.

Rows are written all at once, so no moment of a crash can leave a run that is half evaluated and
passes for finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from decision_seq.envs.identity import simulated
from decision_seq.envs.registry import env_id
from decision_seq.eval.rows import Row, cut_off, read_rows, target_name
from decision_seq.run_config import RunConfig
from decision_seq.run_folder import has_checkpoint, read_index
from decision_seq.settings import Context


@dataclass(frozen=True)
class Evaluation:
    """One `evaluate` of a trained run."""

    context: Context | None = None  # by default the run's
    checkpoint: Literal["last", "validation", "best", "selection"] = "last"
    env: str | None = None  # by default the run's

    def command(self, run: Path) -> tuple[str, ...]:
        """Arguments of decision-seq."""
        context = ("--context", self.context) if self.context else ()
        checkpoint = ("--checkpoint", self.checkpoint) if self.checkpoint != "last" else ()
        env = ("--env", self.env) if self.env else ()
        return ("evaluate", str(run), *context, *checkpoint, *env)


def finished(
    run: Path, config: RunConfig, evaluations: Sequence[Evaluation] = (Evaluation(),)
) -> bool:
    """Whether the run folder holds every row that the `evaluations` of `config` give."""
    if config.env is None:  # what has no simulator is trained
        return has_checkpoint(run) and read_index(run)["last"]["step"] >= config.train.steps
    rows = read_rows(run)
    validation = read_index(run)["validation"]["step"] if has_checkpoint(run) else None
    steps = {key: config.train.steps for key in ("last", "selection")} | {"validation": validation}
    return all(_evaluated(rows, config, evaluation, steps) for evaluation in evaluations)


def _evaluated(
    rows: list[Row], config: RunConfig, evaluation: Evaluation, steps: Mapping[str, int | None]
) -> bool:
    kind, context = evaluation.checkpoint, evaluation.context or config.eval.context
    assert config.env is not None
    env = simulated(env_id(evaluation.env or config.env), config.eval.simulator)
    cut = config.eval.max_steps
    rows = [
        r
        for r in rows
        if (r["env"], r["context"]) == (env, context) and cut in (r["max_steps"], cut_off(r))
    ]
    if kind == "best":  # rows from before the last checkpoint was a candidate are another choice's
        judged = ("selection", config.train.steps)
        last = [i for i, r in enumerate(rows) if (r["checkpoint"], r["step"]) == judged]
        rows = rows[max(last, default=len(rows)) :]
    rows = [r for r in rows if r["checkpoint"] == kind and r["step"] == steps.get(kind, r["step"])]
    if not config.agent.follows_target:
        wanted = [target_name(None)]
    elif config.eval.targets == "auto":
        wanted = [target_name(None, config.eval.target_quantile)]
    else:
        wanted = [target_name(target) for target in config.eval.targets]
    protocol = config.eval.judging() if kind == "selection" else config.eval
    seeds = range(protocol.seed, protocol.seed + protocol.episodes)
    done = {(target_name(r["target"], r["target_quantile"]), r["env_seed"]) for r in rows}
    return all((target, seed) in done for target in wanted for seed in seeds)
