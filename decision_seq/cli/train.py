"""`decision-seq train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import FlagCreatePairsOff, Positional

from decision_seq.cli.arguments import Assignments, Device, torch_device

if TYPE_CHECKING:
    from decision_seq.agents import SequenceAgent
    from decision_seq.run_config import RunConfig


def train(
    config: Positional[Path],
    out: Path,
    assignments: Assignments = (),
    resume: FlagCreatePairsOff[bool] = False,
    device: Device = "auto",
    seeds: tuple[int, ...] = (),
) -> None:
    """Train an agent. Ctrl-C saves and stops; --resume goes on from there.

    Args:
        config: YAML file, or the name of one that is shipped (`list configs`), such as
            hopper-decision-mamba.
        out: run folder to make.
        resume: continue the run in `out`, if there is one.
        seeds: train all of these as one, for a GPU; into run folders OUT/seed0, OUT/seed1, ..., or
            OUT itself with the seed in place of {seed}.
    """
    from decision_seq.run_config import load_run_config
    from decision_seq.training.distributed import is_rank_zero
    from decision_seq.training.loop import train
    from decision_seq.training.stacked import folders, train_seeds

    run, on = load_run_config(config, assignments), torch_device(device)
    if seeds:
        finished = train_seeds(run, seeds, out, on, resume, _rollouts_on_the_way)
    else:
        finished = train(run, out, on, resume, _rollouts_on_the_way(run, out))
    if is_rank_zero() and finished:
        where = "" if run.env is not None else " --env ENVIRONMENT (the run names none)"
        folder = folders(out, seeds)[0] if seeds else out
        print(f"{out}: trained; next: decision-seq evaluate {folder}{where}")
    elif is_rank_zero():
        print(f"{out}: stopped and saved; the same command with --resume goes on")
    if not finished:
        sys.exit(130)


def _rollouts_on_the_way(config: RunConfig, out: Path) -> Any:
    """What `eval.interval` asks for: rollouts during training, counted as online evaluations."""
    from decision_seq.eval.rollout.protocol import evaluate_agent

    def roll(agent: SequenceAgent, step: int) -> dict[str, float]:
        rows = evaluate_agent(agent, config, out, step, "interval")
        returns = [row["episode_return"] for row in rows]
        return {"return_mean": sum(returns) / len(returns)}

    return roll
